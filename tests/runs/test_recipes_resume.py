"""A recipe that is resumed after its first epoch ends where it would have ended, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distill.training.train import run
from run_folders import composed

RECIPES = [
    "be_your_own_teacher_pptsmv2",
    pytest.param("dml_group_pptsmv2", marks=pytest.mark.slow),  # test_kill_resume.py resumes peers too
    pytest.param("cml_pptsmv2", marks=pytest.mark.slow),
    pytest.param("udml_pptsmv2", marks=pytest.mark.slow),
    pytest.param("ensemble_pptsmv2", marks=pytest.mark.slow),
    pytest.param("smaller_input_pptsmv2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def trained(name: str, clips: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    keep = f"{{_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: {folder / 'each'}, save_top_k: -1}}"
    return run(composed(
        "train", f"experiment={name}", "data=moving_digits_tiny", "trainer=cpu", f"data.root={clips}", "doctor=false",
        "callbacks.progress=null", "preset.lr=0.01", "trainer.max_epochs=2", f"+callbacks.each={keep}",
        f"run_dir={folder}", *overrides,
    ))  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_is_as_not_interrupted(name: str, clips: Path, tmp_path: Path) -> None:
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    results = trained(name, clips, whole)
    first, _ = sorted((whole / "each").glob("epoch=*.ckpt"))
    resumed = trained(name, clips, rest, f"ckpt_path='{first}'")
    assert resumed["final"] == results["final"]
    stored = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, rest)
    ]
    assert stored[0].keys() == stored[1].keys()
    for key, value in stored[0].items():
        assert torch.equal(value, stored[1][key]), key
