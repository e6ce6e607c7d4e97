"""What a run says of its gain over the plain student: only where that was measured for the same settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from lit_distill.models.shipped import read_card
from lit_distill.training import plain
from lit_distill.training.plain import gain_lines, plain_of, settings_of
from lit_distill.training.preset import set_preset_start
from run_folders import composed

RESULTS = {"student": "Student", "best": {"val/Student/top1": 0.55}}


def of(*overrides: str) -> DictConfig:
    config = composed("train", "data=digits_few_labels", "run_dir=x", *overrides)
    set_preset_start(config)
    return config


def record(**changed: Any) -> dict[str, Any]:
    """As `compare.json` has it."""
    runs = [{"seed": seed, "top1": 49.0 + seed, "val_top1": 50.0 + seed} for seed in range(3)]
    return {
        "command": "python -m lit_distill.compare …", "date": "2026-11-30", "versions": {"lit_distill": "0.1.0"},
        "seeds": [0, 1, 2], "reference": "baseline", "strategies": {"baseline": {"runs": runs}},
        "settings": settings_of(of("experiment=baseline_pptsmv2")), **changed,
    }  # fmt: skip


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    made = json.loads(json.dumps(plain_of(record())))
    (tmp_path / "plain.json").write_text(json.dumps(made))
    monkeypatch.setattr(plain, "FILE", tmp_path / "plain.json")
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=dml_pptsmv2"], ["experiment=dml_pptsmv2", "seed=7", "data.num_workers=0", "data.root=elsewhere"],
        ["experiment=ssld_pptsmv2"], ["experiment=udml_pptsmv2"],
    ],
)  # fmt: skip
def test_the_gain_is_named_with_what_it_is_measured_against(overrides: list[str], known: dict[str, Any]) -> None:
    (line,) = gain_lines(of(*overrides), RESULTS)
    assert line == (
        "the plain student of these settings has 51.0 ± 1.0 % on validation (3 seeds, lit_distill 0.1.0, 2026-11-30), "
        "this run 55.0 %: +4.0 points"
    )


def test_with_a_frozen_teacher_the_share_of_its_lead_is_named(known: dict[str, Any]) -> None:
    config = of("experiment=kd_pptsmv2", "models.Teacher.pretrained=x.safetensors")
    results: dict[str, Any] = {"student": "Student", "best": {"val/Student/top1": 0.55, "val/Teacher/top1": 0.71}}
    (line,) = gain_lines(config, results)
    assert line.endswith("this run 55.0 %: +4.0 points, 20 % of the way to Teacher's 71.0 %")
    results["best"]["val/Teacher/top1"] = 0.5  # below the plain Student there is no way to go
    (line,) = gain_lines(config, results)
    assert line.endswith("this run 55.0 %: +4.0 points")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("preset.lr=0.001", "optimizer.lr"), ("optimizer=sgd", "optimizer._target_"),
        ("trainer.max_epochs=5", "scheduler.epochs"), ("preset.warmup_epochs=0", "scheduler.warmup_epochs"),
        ("data.batch_size=32", "data.batch_size"), ("data.labelled_share=0.5", "data.labelled_share"),
        ("preset.init=scratch", "student.pretrained"), ("preset.student_dropout=0", "student.dropout"),
        ("+trainer.limit_train_batches=3", "trainer.limit_train_batches"),
    ],
)  # fmt: skip
def test_where_a_setting_differs_no_gain_is_named(override: str, key: str, known: dict[str, Any]) -> None:
    (line,) = gain_lines(of("experiment=dml_pptsmv2", override), RESULTS)
    assert line.startswith("no plain reference was measured for these settings (")
    assert key in line
    assert "points" not in line


def test_other_pretrained_weights_are_another_setting(known: dict[str, Any], tmp_path: Path) -> None:
    assert known["settings"]["weights"] == read_card("shipped:digits_pptsmv2")["sha256"]
    other = copy.deepcopy(known)
    other["settings"]["weights"] = "0" * 64
    (tmp_path / "plain.json").write_text(json.dumps(other))
    (line,) = gain_lines(of("experiment=dml_pptsmv2"), RESULTS)
    assert "(weights differ)" in line


def test_without_a_reference_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "FILE", tmp_path / "none.json")
    assert gain_lines(of("experiment=dml_pptsmv2"), RESULTS) == []


def test_a_run_without_validation_names_nothing(known: dict[str, Any]) -> None:
    assert gain_lines(of("experiment=dml_pptsmv2"), {"best": {}}) == []


def test_a_reference_needs_finished_runs_of_several_seeds() -> None:
    runs = [{"seed": 0, "top1": 50.0, "val_top1": 50.0}, {"seed": 1, "top1": None, "val_top1": None}]
    for few in (runs, runs[:1]):
        with pytest.raises(ValueError, match="two or more finished runs of baseline"):
            plain_of(record(strategies={"baseline": {"runs": few}}))
