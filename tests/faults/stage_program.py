"""Trains runs of several stages whole, and again killed at a chain of places and resumed; tells how each process ended.

`python stage_program.py <scenario> <folder>` leaves `whole` and `parts` in the folder and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer

from lit_distill._command.command import conf_dir
from lit_distill.callbacks import StepSeed
from lit_distill.runs import artifacts
from lit_distill.training import fit as running
from lit_distill.training import run_stages as staging
from lit_distill.training.train import run

# A place is a stage's number and what of it has not happened yet: a step (epoch, batch), the stage itself, the student
# that it writes once it is trained; 0 is the run: what stands at its top.
Place = tuple[int, Any]

SCENARIOS: dict[str, tuple[dict[str, Any], list[tuple[Place, str]]]] = {
    "generations": (
        {"experiment": "born_again_pptsmv2", "generations": 2},
        [
            ((1, (1, 2)), "SIGKILL"),
            ((2, "begin"), "SIGKILL"),
            ((2, (0, 3)), "SIGTERM"),
            ((2, (1, 3)), "SIGKILL"),
            ((2, "student"), "SIGKILL"),
            ((0, "top"), "SIGKILL"),
        ],
    ),
    "stages": (
        {
            "experiment": "fixres_pptsmv2",
            "stages.fix.trainer.max_epochs": 2,
            "+stages.fix.optimizer": "{_target_: torch.optim.AdamW, _partial_: true, lr: 0.01}",
        },
        [((1, "student"), "SIGKILL"), ((2, (0, 0)), "SIGKILL"), ((2, (1, 1)), "SIGTERM"), ((2, (1, 3)), "SIGKILL")],
    ),
}


def overrides_of(scenario: str, folder: Path) -> list[str]:
    more = {
        "data": "moving_digits_tiny", "trainer": "cpu", "trainer.max_epochs": 2, "trainer.log_every_n_steps": 1,
        "callbacks.progress": "null", "doctor": "false", "resume": "auto", "checkpoint_every_n_steps": 2,
        "preset.lr": 0.01, "run_dir": folder,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in {**SCENARIOS[scenario][0], **more}.items()]


def put(owner: Any, name: str, value: Any) -> None:
    """Replace a part of the program, in this process."""
    setattr(owner, name, value)


def arm(place: Place, name: str) -> None:
    """Send this process a signal when it comes to a place."""
    number, what = place

    def here(folder: Any) -> bool:
        return Path(folder).name.startswith(f"{number}_")

    def strike() -> None:
        os.kill(os.getpid(), signal.Signals[name])

    if what == "begin":
        put(staging, "fit", lambda config: strike() if here(config.run_dir) else running.fit(config))
    elif what == "student":
        write = artifacts.write_student
        put(artifacts, "write_student", lambda folder, *more: strike() if here(folder) else write(folder, *more))
    elif what == "top":
        put(staging, "_copy_student", lambda *_: strike())
    else:
        step = StepSeed.on_train_batch_start

        def watched(self: StepSeed, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
            if here(trainer.default_root_dir) and (trainer.current_epoch, batch_idx) == what:
                strike()
            step(self, trainer, module, batch, batch_idx)

        put(StepSeed, "on_train_batch_start", watched)


def note_steps(file: Path) -> None:
    """Write down every step that begins."""
    step = StepSeed.on_train_batch_start

    def noting(self: StepSeed, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        line = f"{Path(trainer.default_root_dir).name} {trainer.current_epoch} {batch_idx}\n"
        with file.open("ab", buffering=0) as stream:
            stream.write(line.encode())
        step(self, trainer, module, batch, batch_idx)

    put(StepSeed, "on_train_batch_start", noting)


def fork(scenario: str, folder: Path, strike: tuple[Place, str] | None) -> int:
    """Run a process until it ends; its exit code, negative for a signal that killed it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        log = os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        note_steps(folder.with_suffix(".steps"))
        if strike is not None:
            arm(*strike)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("train", overrides_of(scenario, folder))
        run(config)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def done(folder: Path) -> dict[str, list[int]]:
    """Identity and time of what finished stages have left: it is not made again."""
    files = [
        file
        for results in folder.glob("stages/*/results.json")
        if not json.loads(results.read_text())["interrupted"]
        for file in results.parent.rglob("*")
        if file.is_file()
    ]
    return {str(f.relative_to(folder)): [f.stat().st_ino, f.stat().st_mtime_ns] for f in files}


def main(scenario: str, folder: Path) -> None:
    whole = fork(scenario, folder / "whole", None)
    parts = folder / "parts"
    codes, kept = [], []
    for strike in [*SCENARIOS[scenario][1], None]:
        before = done(parts)
        codes.append(fork(scenario, parts, strike))
        after = done(parts)
        kept.append({name: mark for name, mark in before.items() if after.get(name) != mark})
    print(json.dumps({"whole": whole, "codes": codes, "made again": kept}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
