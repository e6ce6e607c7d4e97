"""Runs to be killed: small distillations of every kind, forked by a server that has imported everything once.

As a program it reads a JSON command a line from one named pipe, runs it in one process a rank, sends the signal that
the command asks for once the run has reached a place, and answers in another pipe with the exit codes. A kill and a
resume take a fraction of a second.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lit_distill import DistillModule, LossTerm, SafeCheckpointIO
from lit_distill.balance import Balancer, GradientNorm, Uncertainty
from lit_distill.callbacks import (
    EMATeacher,
    ExactResume,
    LastCheckpoint,
    NonFinite,
    Preemption,
    RankGuard,
    StepSeed,
    TeacherCache,
    TermGradients,
)
from lit_distill.data import Mixup, SampleKey
from lit_distill.data.datasets import Item
from lit_distill.data.loading import SampleDataModule, Split
from lit_distill.data.samplers import seeded
from lit_distill.loggers import MetricsCSV
from lit_distill.losses import CRDLoss, DMLLoss, KDLoss
from lit_distill.schedules import WarmupCosine

CLASSES, EPOCHS = 4, 3
SIZES = {"train": 29, "val": 10, "test": 10}

SCENARIOS: dict[str, dict[str, Any]] = {
    "DML, Adam, dropout": {"kind": "dml", "optimizer": "adam"},
    "DML on two ranks": {"kind": "dml", "ranks": 2, "every_n_steps": 1},
    "EMA teacher on two ranks": {"kind": "ema", "ranks": 2, "every_n_steps": 1},
    "EMA teacher, bf16-mixed": {"kind": "ema", "precision": "bf16-mixed"},
    "CRD memory bank, validation twice an epoch": {"kind": "crd", "val_check_interval": 0.5},
    "Mixup, gradients accumulated over 3 batches": {"kind": "kd", "mixup": True, "accumulate": 3},
    "cached teacher, Mixup": {"kind": "kd", "mixup": True, "views": 2, "cache": "float32"},
    "cached teacher on two ranks": {"kind": "kd", "ranks": 2, "every_n_steps": 1, "views": 2, "cache": "float32"},
    "cached teacher, rounded": {"kind": "kd", "views": 2, "cache": "float16"},
    "checkpoints of epochs alone": {"kind": "kd", "every_n_steps": None},
    "learned uncertainties, gradients watched": {"kind": "dml", "optimizer": "adam", "balance": Uncertainty},
    "balanced gradient norms on two ranks": {"kind": "kd", "ranks": 2, "every_n_steps": 1, "balance": GradientNorm},
}


class Points:
    """Small pictures with noise that a sample's key decides."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, key: SampleKey | int) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = seeded("noise", self.split, epoch, index)
        pixels = [rng.randrange(60) + (150 if place % CLASSES == index % CLASSES else 0) for place in range(48)]
        return torch.tensor(pixels, dtype=torch.uint8).reshape(1, 3, 4, 4), index % CLASSES, index


class PointsModule(SampleDataModule[Points]):
    """Our data module over them."""

    layout = ""

    def __init__(self, *, workers: int, mixup: bool, views: int | None) -> None:
        super().__init__(
            root=".", num_classes=CLASSES, mix=Mixup(alpha=0.4) if mixup else None, batch_size=4, eval_batch_size=3,
            num_workers=workers, mean=(0.5,) * 3, std=(0.5,) * 3, seed=5, views_per_sample=views,
        )  # fmt: skip

    def _dataset(self, split: Split) -> Points:
        return Points(split)

    def _read_class_names(self) -> None:
        return None


class Distilled(DistillModule):
    """Writes down the samples of each training step, and every step again that is done again."""

    folder = Path()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        line = f"{self.current_epoch} {batch_idx} {','.join(str(int(i)) for i in batch[2])}\n"
        with (self.folder / f"samples{self.global_rank}.txt").open("ab", buffering=0) as file:
            file.write(line.encode())
        return super().training_step(batch, batch_idx)


class Trained(Callback):
    """The samples that the weights have seen, as the checkpoint knows them."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, _: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append([trainer.current_epoch, batch_idx, *batch[2].tolist()])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": [list(step) for step in self.seen]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = [list(step) for step in state_dict["seen"]]


class Events(Callback):
    """Tells the server where the run is."""

    def __init__(self, descriptor: int, *, long: str = "", hold: str = "", at: int = 0) -> None:
        self.descriptor, self.long, self.hold, self.left = descriptor, long, hold, at
        self.preemption = Preemption()

    def tell(self, event: str) -> None:
        os.write(self.descriptor, f"{event}\n".encode())
        if event == self.long:  # one that takes longer than any test waits
            time.sleep(300)
        if event == self.hold:
            self.left -= 1
            deadline = time.monotonic() + 60
            while self.left == 0 and not self.preemption._received and time.monotonic() < deadline:
                time.sleep(0.001)

    def on_train_start(self, *_: Any) -> None:
        self.tell("start")

    def on_train_epoch_start(self, *_: Any) -> None:
        self.tell("epoch")

    def on_train_batch_start(self, *_: Any) -> None:
        self.tell("step")

    def on_before_backward(self, *_: Any) -> None:
        self.tell("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.tell("optimizer")

    def on_train_batch_end(self, *_: Any) -> None:
        self.tell("stepped")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.tell("validation")

    def on_validation_end(self, *_: Any) -> None:
        self.tell("validated")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.tell("epoch end")

    def on_save_checkpoint(self, *_: Any) -> None:
        self.tell("save")


class TellingIO(SafeCheckpointIO):
    """Tells of each write, when it begins and when it has ended."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self.events = events

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.events.tell("write")
        super().save_checkpoint(checkpoint, path, storage_options)
        self.events.tell("written")


def net() -> nn.Sequential:
    """Convolution, BatchNorm and dropout over (B, 1, 3, 4, 4)."""
    return nn.Sequential(
        nn.Flatten(1, 2), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


def build(kind: str, optimizer: str, balance: Balancer | None = None) -> Distilled:
    """A module of one kind of distillation."""
    torch.manual_seed(11)
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    frozen = ["Teacher"] if kind in ("kd", "ema") else []
    if kind == "dml":
        losses["ce_teacher"] = LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth"))
        losses["dml"] = LossTerm(DMLLoss(), pair=("Student", "Teacher"), weight=0.5)
    elif kind == "crd":
        losses["ce_teacher"] = LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth"))
        losses["crd"] = LossTerm(
            CRDLoss(embedding_dim=4, negatives=8), pair=("Student.6:input", "Teacher.6:input"),
            target=("SampleIndex", "GroundTruth"), weight=0.1,
        )  # fmt: skip
    else:
        losses["kd"] = LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=0.5)
    make = (
        partial(torch.optim.AdamW, lr=0.01) if optimizer == "adam" else partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    )
    val_losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    return Distilled(
        models={"Student": net(), "Teacher": net()}, losses=losses, val_losses=val_losses, frozen=frozen,
        optimizer=make, scheduler=WarmupCosine(epochs=EPOCHS, warmup_epochs=1), balance=balance,
    )  # fmt: skip


def train(folder: Path, scenario: dict[str, Any], workers: int, events: Events, *, resume: bool) -> None:
    """One run, or what is left of it."""
    torch.set_num_threads(1)
    ranks = scenario.get("ranks", 1)
    balance = scenario["balance"]() if "balance" in scenario else None
    module = build(scenario["kind"], scenario.get("optimizer", "sgd"), balance)
    module.folder = folder
    callbacks: list[Callback] = [
        LastCheckpoint(folder, every_n_steps=scenario.get("every_n_steps", 3)),
        ModelCheckpoint(folder, filename="best", monitor="val/loss", mode="min", enable_version_counter=False),
        NonFinite(), RankGuard(), ExactResume(), StepSeed(seed=3), events.preemption, Trained(), events,
    ]  # fmt: skip
    if scenario["kind"] == "ema":
        callbacks.append(EMATeacher(decay=0.9))
    if scenario.get("cache"):
        callbacks.append(TeacherCache(folder=folder / "teachers", dtype=scenario["cache"]))
    if balance is not None:
        callbacks.append(TermGradients(every_n_steps=3))
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=ranks, precision=scenario.get("precision", "32-true"),
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto", logger=MetricsCSV(folder),
        callbacks=callbacks, plugins=[TellingIO(events)], log_every_n_steps=2, num_sanity_val_steps=0,
        val_check_interval=scenario.get("val_check_interval", 1.0),
        accumulate_grad_batches=scenario.get("accumulate", 1), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
    )  # fmt: skip
    datamodule = PointsModule(workers=workers, mixup=scenario.get("mixup", False), views=scenario.get("views"))
    last = folder / "last.ckpt"
    trainer.fit(module, datamodule=datamodule, ckpt_path=last if resume and last.is_file() else None, weights_only=True)


def fork(command: dict[str, Any], rank: int, ranks: int, port: int, descriptor: int) -> int:
    """Start one rank; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(f"{command['folder']}/log{rank}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if ranks > 1:
            os.environ.update(
                LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )  # fmt: skip
        hold = command["event"] if command.get("hold") and rank in command["to"] else ""
        told = descriptor if rank == 0 else os.open(os.devnull, os.O_WRONLY)
        events = Events(told, long=command.get("long", ""), hold=hold, at=command.get("at", 0))
        scenario = {**SCENARIOS[command["scenario"]], **command.get("but", {})}
        train(Path(command["folder"]), scenario, command["workers"], events, resume=command["resume"])
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def obey(command: dict[str, Any]) -> dict[str, Any]:
    """Run a command; its exit codes are negative signals where a rank was killed."""
    ranks = SCENARIOS[command["scenario"]].get("ranks", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    children = [fork(command, rank, ranks, port, writing) for rank in range(ranks)]
    os.close(writing)
    count, sent, place, left = 0, False, "", ""
    after: list[str] = []
    wanted, at = command.get("event", ""), command.get("at", 0)
    while received := os.read(reading, 4096):
        lines = (left + received.decode()).split("\n")
        left = lines.pop()
        for event in lines:
            count += wanted in ("", event)
            if sent:
                after.append(event)
            if at and count >= at and not sent:
                time.sleep(command.get("delay", 0.0))
                sent, place = True, event
                for rank in command.get("to", range(ranks)):
                    for _ in range(command.get("times", 1)):
                        os.kill(children[rank], signal.Signals[command["signal"]])
                        time.sleep(command.get("pause", 0.0))
                        if os.waitid(os.P_PID, children[rank], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                            break
    os.close(reading)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"codes": codes, "events": count, "sent": sent, "place": place, "after": after}


if __name__ == "__main__":
    with Path(sys.argv[1]).open() as commands, Path(sys.argv[2]).open("w") as answers:
        for text in commands:
            print(json.dumps(obey(json.loads(text))), file=answers, flush=True)
