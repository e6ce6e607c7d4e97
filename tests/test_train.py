"""`python -m lit_distill.train`: what a run leaves is read back, runs repeat, and mistakes are one line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

import processes
from lit_distill._command.command import conf_dir
from lit_distill.loggers import is_installed
from lit_distill.models.identity import state_sha256
from lit_distill.models.state_files import file_sha256

RUN_FILES = {
    "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.csv", "results.json", "student.json",
    "student.safetensors",
}  # fmt: skip


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the clips in it: what a command prints does not depend on which test is the first to need them."""
    folder = tmp_path_factory.mktemp("cache")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["experiment=baseline_pptsmv2", "data=moving_digits_tiny", f"data.root={folder}"])
    instantiate(config.data, _convert_="all").prepare_data()
    return folder


def train(cache: Path, folder: Path, *overrides: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return processes.run(
        ["-m", "lit_distill.train", "data=moving_digits_tiny", "trainer=cpu", f"hydra.run.dir={folder}", *overrides],
        env={**os.environ, "LIT_DISTILL_CACHE": str(cache)}, cwd=cwd,
    )  # fmt: skip


def figures(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One DML run of two epochs, shared by the tests that read it back."""
    folder = tmp_path_factory.mktemp("run") / "dml"
    result = train(
        cache, folder, "experiment=dml_pptsmv2", "trainer.max_epochs=2", "seed=3", "trainer.log_every_n_steps=2"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def test_a_run_leaves_exactly_what_is_promised(run: tuple[Path, str]) -> None:
    folder, _ = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert files - events == RUN_FILES
    assert len(events) == (1 if is_installed("tensorboard") else 0)


def test_the_last_screen_says_accuracy_folder_and_next_command(run: tuple[Path, str]) -> None:
    folder, screen = run
    assert "Student" in screen
    assert "Teacher" in screen
    assert "top-1" in screen
    assert folder.name in screen
    assert "python -m lit_distill.train experiment=kd_pptsmv2 models.Teacher.pretrained=" in screen
    assert "epoch 2/2" in screen, "an epoch leaves a line, also where there is no terminal"


def test_metrics_have_every_term_and_both_models(run: tuple[Path, str]) -> None:
    rows = figures(run[0])
    wanted = {
        "step",
        "epoch",
        "train/loss",
        "train/ce",
        "train/ce_teacher",
        "train/dml",
        "train/lr",
        "val/loss",
        "val/ce",
    }
    wanted |= {f"val/{model}/{metric}" for model in ("Student", "Teacher") for metric in ("top1", "top5")}
    wanted |= {"val/Student-Teacher/agreement", "val/Student-Teacher/kl"}
    assert set(rows[0]) == wanted
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)), "one row a step"
    for row in (row for row in rows if row["train/loss"]):
        total = sum(float(row[f"train/{term}"]) for term in ("ce", "ce_teacher", "dml"))
        assert total == pytest.approx(float(row["train/loss"]), rel=1e-5)
    assert sum(bool(row["val/loss"]) for row in rows) == 2


def test_results_repeat_the_figures_of_the_best_epoch(run: tuple[Path, str]) -> None:
    results = json.loads((run[0] / "results.json").read_text())
    validations = [row for row in figures(run[0]) if row["val/loss"]]
    best = max(float(row["val/Student/top1"]) for row in validations)
    assert results["best"]["val/Student/top1"] == pytest.approx(best)
    assert results["final"]["val/loss"] == pytest.approx(float(validations[-1]["val/loss"]))
    assert results["seed"] == 3
    assert results["epochs"] == 2
    assert results["seconds"] > 0
    assert results["versions"]["torch"] == torch.__version__
    assert results["experiment"] == "dml_pptsmv2"


def test_the_student_loads_into_a_bare_network_and_equals_the_best_checkpoint(run: tuple[Path, str]) -> None:
    folder, _ = run
    card = json.loads((folder / "student.json").read_text())
    config = OmegaConf.load(folder / "config.yaml")
    student = instantiate(card["model"])
    state = load_file(folder / "student.safetensors")
    student.load_state_dict(state, strict=True)
    stored = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in state.items():
        assert torch.equal(value, stored[f"models.Student.{name}"])
    assert card["sha256"] == file_sha256(folder / "student.safetensors")
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    teacher = {key.removeprefix("models.Teacher."): v for key, v in last.items() if key.startswith("models.Teacher.")}
    assert card["teachers"]["Teacher"]["sha256"] == state_sha256(teacher)
    assert len(card["class_names"]) == card["model"]["num_classes"]
    assert config.seed == 3


def test_the_same_command_gives_the_same_figures(cache: Path, tmp_path: Path) -> None:
    given = ("experiment=self_pptsmv2", "trainer.max_epochs=1", "seed=3", "+preset.weights.dml=0.5")
    for name in ("a", "b"):
        result = train(cache, tmp_path / name, *given)
        assert result.returncode == 0, result.stderr[-3000:]
        assert "weight of dml, from the data's preset: 0.5" in result.stdout
        assert OmegaConf.load(tmp_path / name / "config.yaml").losses.dml.weight == 0.5
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


def test_a_run_goes_on_from_its_last_checkpoint(cache: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    result = train(
        cache, tmp_path / "on", "experiment=dml_pptsmv2", "trainer.max_epochs=3", "seed=3",
        f"ckpt_path={folder}/checkpoints/last.ckpt",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "on" / "results.json").read_text())["epochs"] == 3


def test_kd_takes_its_teacher_from_a_run(cache: Path, run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    result = train(
        cache, tmp_path / "kd", "experiment=kd_pptsmv2", "trainer.max_epochs=1",
        f"models.Teacher.pretrained='{folder}/checkpoints/best.ckpt#Teacher'",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    card = json.loads((tmp_path / "kd" / "student.json").read_text())
    assert card["teachers"]["Teacher"]["loaded_sha256"] == file_sha256(folder / "checkpoints" / "best.ckpt")
    stored = torch.load(tmp_path / "kd" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in stored if key.startswith("models.Teacher")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=nope"], "error: there is no experiment=nope; "),
        (["experiment=kd_pptsmv2"], "error: Teacher is frozen but has no weights: give models.Teacher.pretrained="),
        (["experiment=kd_pptsmv2", "models.Teacher.pretrained=missing.pth"], "error: .*missing.pth"),
        (["experiment=dml_pptsmv2", "losses.dml.pair=[Student.stags.2,Teacher]"],
         r"error: term 'dml': 'Student.stags.2' names no submodule of Student: closest are \['stages.2'"),
        (["experiment=dml_pptsmv2", "models.Student.num_classes=7"],
         r"error: Student gives 7 classes but the data has \d+: .*models.Student.num_classes=\d+"),
        (["experiment=dml_pptsmv2", "modls.Student.num_classes=7"], "error: .*modls"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(cache: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    import re

    result = train(cache, tmp_path / "run", *overrides, cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert re.search(message, lines[0]), lines[0]
