"""How often a training step reads a value of a tensor: on an accelerator each such read waits for the device."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from faults.poison import BATCH, Points, module
from lit_distill.callbacks import (
    ExactResume,
    LastCheckpoint,
    NonFinite,
    Preemption,
    Quarantine,
    RankGuard,
    StepSeed,
    non_finite,
)
from lit_distill.losses._numerics import can_look

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select")


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that wait for a value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in READS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


class OfSteps(Callback):
    """The reads between the ends of two steps."""

    def __init__(self, reads: Reads) -> None:
        self.reads, self.counts = reads, list[list[str]]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.counts.append(list(self.reads.found))
        self.reads.found.clear()


@pytest.mark.parametrize("on_device", [False, True], ids=["the CPU decides", "the device decides"])
def test_a_step_with_all_protections_reads_one_value(
    on_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of NonFinite: of the step itself on the CPU, on a device of the step before, which has long arrived."""
    for loaded in list(sys.modules.values()):  # what losses look at in passing on the CPU alone
        if getattr(loaded, "can_look", None) is can_look:
            monkeypatch.setattr(loaded, "can_look", lambda _: False)
    monkeypatch.setattr(non_finite, "_can_decide_on_device", lambda *_: on_device)
    model = module()
    model._optimizer_factory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    guards = [
        NonFinite(), RankGuard(), LastCheckpoint(dirpath=tmp_path, every_n_steps=100), ExactResume(), StepSeed(seed=0),
        Preemption(), Quarantine(folder=tmp_path),
    ]  # fmt: skip
    with Reads() as reads:
        steps = OfSteps(reads)
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[*guards, steps], logger=False,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=100, default_root_dir=tmp_path,
        )  # fmt: skip
        points: Any = Points()
        points.y = points.y.tolist()  # which the data set reads one by one
        trainer.fit(model, DataLoader(points, batch_size=BATCH))
    assert steps.counts[2:] == [["aten::_local_scalar_dense"]] * (len(steps.counts) - 2)
