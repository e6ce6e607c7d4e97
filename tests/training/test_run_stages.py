"""Stages in training: each begins as the one before ended, what is frozen stands still, one folder tells of all."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from lit_distill import load_student
from lit_distill.callbacks import Interrupted, Preemption
from lit_distill.checkpoints import read_checkpoint
from lit_distill.models.identity import state_of, state_sha256
from lit_distill.runs.opened import load_run
from lit_distill.training.fit import build_module
from lit_distill.training.train import run
from run_folders import composed

FITNET = "experiment=fitnet_stages_pptsmv2"
TWO = {"wide": {}, "head": {"train_only": ["Student.fc", "Student.stages.3.*.bn"]}}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def train(clips: Path, folder: Path, *overrides: str, stages: dict[str, Any] | None = None) -> dict[str, Any]:
    config = composed(
        "train", *overrides, "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1", "doctor=false",
        "trainer.log_every_n_steps=1", "callbacks.progress=null", "preset.lr=0.01", f"data.root={clips}",
        f"run_dir={folder}",
    )  # fmt: skip
    if stages is not None:
        config.stages = stages
    return run(config)


@pytest.fixture(scope="module")
def two(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of a student, then its classifier and some BatchNorm."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    train(clips, folder, "experiment=baseline_pptsmv2", stages=TWO)
    return folder


@pytest.fixture(scope="module")
def fitnet(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a hint, KD."""
    folder = tmp_path_factory.mktemp("runs") / "fitnet"
    train(clips, folder, FITNET)
    return folder


@pytest.fixture(scope="module")
def generations(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "born_again"
    train(clips, folder, "experiment=born_again_pptsmv2", "trainer.max_epochs=2", "student_from=best")
    return folder


def last_of(stage: Path, model: str = "Student") -> dict[str, Tensor]:
    return state_of(read_checkpoint(stage / "checkpoints" / "last.ckpt"), model)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are the same bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if torch.equal(one[name], other[name])]


def test_a_stage_begins_bit_for_bit_as_the_one_before_ended(two: Path) -> None:
    before = last_of(two / "stages" / "1_wide")
    module = build_module(OmegaConf.load(two / "stages" / "2_head" / "config.yaml"))  # type: ignore[arg-type]
    assert len(equal(module.models["Student"].state_dict(), before)) == len(before)


@pytest.mark.parametrize(
    ("network", "own"),
    [
        ("pptsmv2", ("temporal_attention.fc.weight", "temporal_attention.fc.bias")),
        pytest.param("pptsm_resnet18", (), marks=pytest.mark.slow),  # nothing of it begins from scratch
    ],
)
def test_clips_begin_as_stills_ended_but_for_the_attention(
    network: str, own: tuple[str, ...], clips: Path, tmp_path: Path
) -> None:
    resnet = ["stages.clips.fresh=[]"] if network == "pptsm_resnet18" else []
    chosen = ["experiment=stills_first_pptsmv2", f"model@models.Student={network}", "preset.stills.epochs=1", *resnet]
    results = train(clips, tmp_path / "run", *chosen)
    stills, second = (tmp_path / "run" / "stages" / name for name in ("1_stills", "2_clips"))
    assert OmegaConf.load(stills / "config.yaml").data.batch_size == 16
    assert load_run(stills).config["data"]["num_frames"] == 1
    before = last_of(stills)
    begun = build_module(OmegaConf.load(second / "config.yaml")).models["Student"]  # type: ignore[arg-type]
    state = begun.state_dict()
    assert state.keys() - before.keys() == set(own)
    assert len(equal({name: state[name] for name in before}, before)) == len(before)
    assert begun(torch.zeros(1, 4, 3, 32, 32)).shape == (1, 8)
    assert list(results["stages"]) == ["stills", "clips"]
    assert last_of(second).keys() == state.keys()


def test_what_train_only_does_not_name_stands_still_buffers_and_all(two: Path) -> None:
    before, after = (last_of(two / "stages" / name) for name in ("1_wide", "2_head"))
    moved = set(before) - set(equal(before, after))
    named = {name for name in before if name.startswith("fc.") or (name.startswith("stages.3.") and ".bn." in name)}
    assert moved == named
    assert {"fc.weight", "fc.bias"} < named
    assert any("running_mean" in name for name in named)


def test_a_frozen_teacher_stays_what_its_stage_made_of_it(fitnet: Path) -> None:
    trained = state_sha256(last_of(fitnet / "stages" / "1_teacher", "Teacher"))
    for name in ("2_hint", "3_kd"):
        card = json.loads((fitnet / "stages" / name / "student.json").read_text())
        assert card["teachers"]["Teacher"]["sha256"] == trained
        assert not [
            key
            for key in read_checkpoint(fitnet / "stages" / name / "checkpoints" / "last.ckpt")["state_dict"]
            if key.startswith("models.Teacher")
        ]


def test_the_hint_trains_the_layers_up_to_it(fitnet: Path) -> None:
    begun = last_of(fitnet / "stages" / "2_hint")
    still = set(equal(begun, begun_with(fitnet / "stages" / "2_hint")))
    behind = {name for name in begun if name.startswith(("stages.3", "last_conv", "fc"))}
    assert behind
    assert behind <= still
    weights = {name for name in begun if name.endswith("weight")}
    assert not weights & still - behind


def begun_with(stage: Path) -> dict[str, Tensor]:
    """The student as a stage began with it."""
    config = OmegaConf.load(stage / "config.yaml")
    seed_everything(config.seed, workers=True, verbose=False)
    return build_module(config).models["Student"].state_dict()  # type: ignore[arg-type]


def test_a_generations_teacher_is_the_best_student_of_the_one_before(generations: Path) -> None:
    stages = sorted((generations / "stages").iterdir())
    assert [stage.name for stage in stages] == ["1_generation_1", "2_generation_2", "3_generation_3"]
    students = [state_sha256(load_file(stage / "student.safetensors")) for stage in stages]
    assert len(set(students)) == 3
    for before, stage in zip(students, stages[1:], strict=False):
        card = json.loads((stage / "student.json").read_text())
        assert card["teachers"]["Teacher"]["sha256"] == before
    assert json.loads((stages[0] / "student.json").read_text())["teachers"] == {}


def test_the_best_generation_is_the_runs_student(generations: Path) -> None:
    results = json.loads((generations / "results.json").read_text())
    accuracies = {name: section["best"]["val/Student/top1"] for name, section in results["stages"].items()}
    best = max(accuracies, key=lambda name: (accuracies[name], name))
    assert results["best"]["val/Student/top1"] == accuracies[best]
    assert results["student_stage"].endswith(best)
    stage = generations / "stages" / results["student_stage"]
    assert (generations / "student.safetensors").read_bytes() == (stage / "student.safetensors").read_bytes()


def test_one_results_file_has_a_section_a_stage(fitnet: Path) -> None:
    results = json.loads((fitnet / "results.json").read_text())
    assert list(results["stages"]) == ["teacher", "hint", "kd"]
    for name, section in results["stages"].items():
        own = json.loads((fitnet / section["folder"] / "results.json").read_text())
        assert section["final"] == own["final"]
        assert (section["epochs"], section["steps"]) == (1, 4), name
    assert (results["epochs"], results["steps"]) == (3, 12)
    assert results["final"] == results["stages"]["kd"]["final"]
    assert results["interrupted"] is False


def test_one_metrics_file_counts_through_the_run(fitnet: Path) -> None:
    with (fitnet / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["stage", "step", "epoch"]
    assert [row["stage"] for row in rows] == sorted(row["stage"] for row in rows)
    assert {row["stage"]: row["epoch"] for row in rows} == {"1": "0", "2": "1", "3": "2"}
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == 11
    assert {row["stage"] for row in rows if row["train/fitnet"]} == {"2"}


@pytest.mark.parametrize("which", ["fitnet", "generations"])
def test_a_staged_run_is_read_back_as_any_other(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    results = json.loads((folder / "results.json").read_text())
    stage = folder / "stages" / results["student_stage"]
    student = load_student(folder)
    assert len(equal(student.state_dict(), load_file(stage / "student.safetensors"))) == len(student.state_dict())
    opened = load_run(folder)
    assert opened.folder == folder
    assert len(equal(opened.model(checkpoint="last").state_dict(), last_of(stage))) == len(student.state_dict())
    for name in set(opened.models) - {"Student"}:
        card = json.loads((stage / "student.json").read_text())
        assert state_sha256(opened.model(name).state_dict()) == card["teachers"][name]["sha256"]
    assert load_run(stage).student == "Student", "a stage is a run of its own too"


def test_a_moved_run_still_finds_what_its_stages_began_with(fitnet: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(fitnet, tmp_path / "elsewhere")
    card = json.loads((moved / "student.json").read_text())
    assert state_sha256(load_run(moved).model("Teacher").state_dict()) == card["teachers"]["Teacher"]["sha256"]
    (moved / "stages" / "1_teacher" / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match="Teacher was frozen, so its weights are in no checkpoint"):
        load_run(moved).model("Teacher")


def test_a_run_that_is_not_finished_says_so(fitnet: Path, tmp_path: Path) -> None:
    run_folder = shutil.copytree(fitnet, tmp_path / "run")
    (run_folder / "results.json").unlink()
    with pytest.raises(ValueError, match=r"several stages that is not finished: .*1_teacher, .*2_hint, .*3_kd"):
        load_run(run_folder)
    (run_folder / "results.json").write_text('{"student_stage": "../../outside"}')
    with pytest.raises(ValueError, match="is not finished"):
        load_run(run_folder)


def test_a_signal_behind_a_stages_last_step_ends_before_the_next(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Preemption.on_train_end

    def late(self: Preemption, *given: Any) -> None:
        self._handle(signal.SIGTERM, None)
        ended(self, *given)

    monkeypatch.setattr(Preemption, "on_train_end", late)
    with pytest.raises(Interrupted) as end:
        train(clips, tmp_path / "run", "experiment=baseline_pptsmv2", stages=TWO)
    assert end.value.code == 143
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["interrupted"] == "SIGTERM"
    assert list(results["stages"]) == ["wide"]
    monkeypatch.undo()
    results = train(clips, tmp_path / "run", "experiment=baseline_pptsmv2", "resume=auto", stages=TWO)
    assert not results["interrupted"]
    assert list(results["stages"]) == ["wide", "head"]


def test_other_frames_need_what_begins_anew_to_be_named(clips: Path, tmp_path: Path) -> None:
    few: dict[str, dict[str, Any]] = {"few": {"data": {"num_frames": 3}}, "all": {}}
    message = r"stage 2, all: Student cannot begin as .*last.ckpt has it: .*fresh=\[Student.<part>\]"
    with pytest.raises(ValueError, match=message):
        train(clips, tmp_path / "run", "experiment=baseline_pptsmv2", stages=few)
    assert not (tmp_path / "run" / "stages").exists(), "it is told before anything is trained"
    few["all"] = {"fresh": ["Student.temporal_attention"]}
    train(clips, tmp_path / "anew", "experiment=baseline_pptsmv2", stages=few)
    before = last_of(tmp_path / "anew" / "stages" / "1_few")
    begun = begun_with(tmp_path / "anew" / "stages" / "2_all")
    assert [name for name in begun if begun[name].shape != before[name].shape] == [
        "temporal_attention.fc.weight", "temporal_attention.fc.bias",
    ]  # fmt: skip
    kept = [name for name in begun if not name.startswith("temporal_attention")]
    assert all(torch.equal(begun[name], before[name]) for name in kept)
