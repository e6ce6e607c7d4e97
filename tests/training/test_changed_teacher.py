"""Something writes to a frozen teacher: the run ends with an error, and its student and results are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import OmegaConf

from faults import tiny
from lit_distill import load_student
from lit_distill.checkpoints import read_checkpoint
from lit_distill.training.train import run
from run_folders import composed

ALARM = "Teacher: frozen, but its values have changed since training began"


class Writes(Callback):
    """Writes to the teacher at the end of an epoch, or of a batch, with PyTorch's count of changes or past it."""

    def __init__(self, at: str = "epoch", by_data: bool = False) -> None:
        self.at, self.by_data = at, by_data

    def _write(self, module: Any) -> None:
        for parameter in module.models["Teacher"].parameters():
            (parameter.data if self.by_data else parameter.detach()).add_(1e-3)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.at == "epoch":
            self._write(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if self.at == "batch":
            self._write(pl_module)


def kept(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="kept", save_on_train_epoch_end=True)


class Epochs(Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1


@pytest.mark.parametrize(("at", "by_data", "batches"), [("batch", False, 1), ("epoch", False, 4), ("epoch", True, 12)])
def test_the_alarm_is_as_early_as_it_can_be_and_checkpoints_are_kept(
    at: str, by_data: bool, batches: int, tmp_path: Path
) -> None:
    count = Epochs()
    fit = tiny.trainer(
        tmp_path, max_epochs=3, enable_checkpointing=True,
        callbacks=[count, Writes(at, by_data), kept(tmp_path)],
    )  # fmt: skip
    module = tiny.module()
    with pytest.raises(RuntimeError, match=ALARM):
        fit.fit(module, tiny.loader(), tiny.loader())
    assert count.batches == batches
    if at == "epoch":
        stored = read_checkpoint(tmp_path / "kept.ckpt")
        student = module.models["Student"].state_dict()
        assert all(
            torch.equal(stored["state_dict"][f"models.Student.{name}"], value) for name, value in student.items()
        )
        assert ("changed_frozen" in stored["lit_distill"]) == (not by_data)


def test_a_checkpoint_that_says_so_is_resumed_with_a_warning(tmp_path: Path) -> None:
    fit = tiny.trainer(
        tmp_path, max_epochs=3, enable_checkpointing=True,
        callbacks=[Writes(), kept(tmp_path)],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=ALARM):
        fit.fit(tiny.module(), tiny.loader(), tiny.loader())
    with pytest.warns(UserWarning, match="written after something had changed Teacher"):
        tiny.trainer(tmp_path, max_epochs=2).fit(tiny.module(), tiny.loader(), ckpt_path=tmp_path / "kept.ckpt")


def test_a_run_of_the_command_line_keeps_its_student_and_results(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = composed(
        "train", "experiment=baseline_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1",
        "doctor=false", "callbacks.progress=null", f"data.root={tmp_path_factory.getbasetemp() / 'clips'}",
        f"run_dir={tmp_path / 'teacher'}",
    )  # fmt: skip
    run(config)
    weights = tmp_path / "teacher" / "student.safetensors"
    config = composed(
        "train", "experiment=kd_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1",
        "doctor=false", "callbacks.progress=null", f"data.root={tmp_path_factory.getbasetemp() / 'clips'}",
        "model@models.Teacher=pptsmv2", f"models.Teacher.pretrained={weights}", f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    OmegaConf.set_struct(config, False)
    config.callbacks.writes = {"_target_": f"{__name__}.Writes", "by_data": True}
    with pytest.raises(ValueError, match=f"{ALARM}.*; the student, and the results until then, are in "):
        run(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert ALARM in results["error"]
    assert results["epochs"] == 1
    assert load_student(tmp_path / "run") is not None
