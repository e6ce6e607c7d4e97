"""`make pretrained`, small: stills, clips, and the weights that the package would ship."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distill.models import PPTSMv2, shipped
from lit_distill.models.shipped import read_card
from lit_distill.training.train import run
from run_folders import composed

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("pretrained")


def test_weights_are_made_from_nothing(pretrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(
        "train", *pretrained.RUNS["digits_pptsmv2"], f"data.root={tmp_path}", "data.clips=[28,28,28]",
        "data.num_workers=0", "preset.stills.epochs=1", "preset.stills.batch_size=28",
        "data.batch_size=14", "trainer=cpu", "trainer.max_epochs=1", "callbacks.progress=null", "doctor=false",
        f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    run(config)
    made = pretrained.write("digits_pptsmv2", tmp_path / "run", tmp_path / "shipped", most_lost=100.0)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    assert read_card("shipped:digits_pptsmv2") == made
    options = {**made["model"], "num_classes": 12, "pretrained": "shipped:digits_pptsmv2", "reset_head": True}
    options.pop("_target_")
    network = PPTSMv2(**options)
    assert set(network.load_report.reset) == {"fc.weight", "fc.bias"}
    assert network(torch.zeros(1, 4, 3, 32, 32)).shape == (1, 12)


@pytest.mark.parametrize("name", shipped.shipped_names())
def test_the_card_says_the_command_that_makes_the_weights(pretrained: Any, name: str) -> None:
    assert read_card(name)["command"] == pretrained.command(name.removeprefix("shipped:"))


def test_every_weights_file_is_made_by_the_program(pretrained: Any) -> None:
    assert sorted(f"shipped:{name}" for name in pretrained.RUNS) == shipped.shipped_names()
