"""Two ranks of which one does what would leave the other waiting, a scenario a process pair."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import NonFinite, RankGuard
from lit_distill.losses import RKDDistanceLoss

SAMPLES = 32


class Points(Dataset[tuple[Tensor, int]]):
    """Points of three classes; sample ``fails`` can't be read."""

    def __init__(self, size: int = SAMPLES, fails: int | None = None, label: int | None = None) -> None:
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
        self.fails, self.label = fails, label

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.fails:
            raise OSError("sample can't be read")
        return self.x[index], int(self.x[index, :3].argmax()) if self.label is None else self.label


class Stream(IterableDataset[tuple[Tensor, int]]):
    """So many of the points, without a length; the last takes ``slow`` seconds."""

    def __init__(self, size: int, slow: float = 0.0) -> None:
        self.points, self.slow = Points(size), slow

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for index in range(len(self.points)):
            time.sleep(self.slow if index == len(self.points) - 1 else 0.0)
            yield self.points[index]


class Fails(Callback):
    """Raises in one hook of one rank."""

    def __init__(self, rank: int, hook: str) -> None:
        self.rank = rank
        setattr(self, hook, self.fail)

    def fail(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_rank == self.rank:
            raise RuntimeError("a fault on one rank")


class Net(nn.Module):
    """A small network; ``spare`` says on which ranks its second layer is left out of the forward pass."""

    def __init__(self, spare: tuple[int, ...] = (), widths: tuple[int, int] = (8, 8)) -> None:
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(4, 8), nn.Linear(8, 3), spare
        self.unused = nn.Linear(8, 3)
        self.embedding = nn.Identity()
        self.widths = widths

    def forward(self, x: Tensor) -> Tensor:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        h = self.body(x).relu()
        self.embedding(h[:, : self.widths[rank]])
        result: Tensor = self.head(h)
        return result if rank in self.spare else result + 0 * self.unused(h)


def main(scenario: str, folder: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    torch.manual_seed(0)
    net, data, batch, workers = Net(), Points(), 4, 0
    ce: nn.Module = nn.CrossEntropyLoss()
    callbacks: list[Callback] = [NonFinite(), RankGuard(patience=4.0)]
    if "streams" in scenario:
        callbacks[1] = RankGuard(patience=2.0)
    if scenario == "uneven batches" and rank == 1:
        data = Points(SAMPLES - 4)
    elif scenario == "no valid element" and rank == 1:
        data = Points(label=-100)
    elif scenario == "unused parameter":
        net = Net(spare=(0, 1))
    elif scenario == "unused on one rank":
        net = Net(spare=(1,))
    elif scenario in ("unequal relational batches", "unequal relational widths"):
        batch = 4 + 2 * rank if "batches" in scenario else 4
        data = Points(batch * 6)
        net = Net(widths=(8, 8) if "batches" in scenario else (8, 7))
    elif scenario.startswith("loading"):
        data, workers = Points(fails=9 if rank == 1 else None), 2 if "worker" in scenario else 0
    elif scenario == "saving":
        callbacks += [Fails(0, "on_save_checkpoint"), ModelCheckpoint(folder, every_n_train_steps=2)]
    elif scenario.startswith("raise"):
        who, hook = scenario.split()[1:3]
        callbacks.append(Fails(int(who), hook))
    losses: dict[str, LossTerm] = {
        "ce": LossTerm(ce, pair=("Student", "GroundTruth")),
        "rkd": LossTerm(RKDDistanceLoss(gather=True), pair=("Student.embedding", "Teacher.embedding")),
    }
    if "validation streams" in scenario:
        del losses["rkd"]  # which gathers over the ranks in validation too
    module = DistillModule(
        {"Student": net, "Teacher": Net(widths=net.widths)}, losses, frozen=["Teacher"], preflight=False,
        optimizer=partial(torch.optim.SGD, lr=0.01), metrics=None,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, callbacks=callbacks,
        enable_checkpointing=scenario == "saving", enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=4 if "accumulated" in scenario else 1, num_sanity_val_steps=0, log_every_n_steps=1,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    loader = DataLoader(data, batch_size=batch, num_workers=workers)
    validation: Any = DataLoader(Points(), batch_size=4)
    if "streams" in scenario:
        longer = scenario.split()[-1] == str(rank)
        size = (0 if "empty" in scenario else SAMPLES) + 8 * longer
        loader = DataLoader(Stream(SAMPLES if "validation" in scenario else size), batch_size=4)
        slow = 6.0 if "slow" in scenario and longer else 0.0
        validation = DataLoader(Stream(size, slow), batch_size=4) if "validation" in scenario else validation
        validation = None if "alone" in scenario else validation
    try:
        trainer.fit(module, loader, validation)
    except RuntimeError:
        if scenario.endswith("caught"):
            time.sleep(20)  # a program that lives on for a while: nothing closes its connections
        raise


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
