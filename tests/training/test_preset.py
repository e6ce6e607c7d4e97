"""A data set's preset: weights of terms in place of the published ones, and what networks start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from lit_distill._command.command import conf_dir
from lit_distill.models.shipped import read_card
from lit_distill.runs.artifacts import read_json, read_results
from lit_distill.runs.opened import load_run
from lit_distill.runs.resume import differing_keys
from lit_distill.training.preset import set_preset_start, set_preset_weights
from lit_distill.training.stages import stages_of
from lit_distill.training.train import run

RAMP = "{_target_: lit_distill.schedules.Linear, start: 0.0, end: 1.0, epochs: 2}"


def weights(*overrides: str, **said: str) -> tuple[dict[str, Any], dict[str, Any]]:
    given = ["data=moving_digits_tiny", *(f"+preset.weights.{term}={weight}" for term, weight in said.items())]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [*overrides, *given])
    applied = set_preset_weights(config, [*overrides, *given])
    return applied, {term: node.get("weight") for term, node in config.losses.items()}


def test_a_preset_weights_the_terms_that_there_are() -> None:
    applied, of_terms = weights("experiment=dml_pptsmv2", dml="0.5", kd="3")
    assert applied == {"dml": 0.5}
    assert of_terms == {"ce": None, "ce_teacher": None, "dml": 0.5}


def test_a_schedule_is_a_weight_too() -> None:
    _, of_terms = weights("experiment=dml_pptsmv2", dml=RAMP)
    assert of_terms["dml"] == {"_target_": "lit_distill.schedules.Linear", "start": 0.0, "end": 1.0, "epochs": 2}


@pytest.mark.parametrize(
    "override",
    [
        "+losses.dml.weight=2",
        "++losses.dml.weight=2",
        "++losses.dml={weight: 2}",
        "++losses={dml: {weight: 2}}",
    ],
)
def test_what_the_command_line_says_stands(override: str) -> None:
    applied, of_terms = weights("experiment=dml_pptsmv2", override, dml="0.5")
    assert applied == {}
    assert of_terms["dml"] == 2


def test_a_schedule_of_the_experiment_stands() -> None:
    applied, of_terms = weights("experiment=dml_ramp_pptsmv2", dml="0.5")
    assert applied == {}
    assert "RampUp" in str(of_terms["dml"])


OF_TODAY = sorted((conf_dir() / "data").glob("*.yaml"))


@pytest.mark.parametrize("file", OF_TODAY, ids=lambda file: file.stem)
def test_no_data_set_of_ours_changes_a_published_weight(file: Path) -> None:
    given = [
        "experiment=baseline_pptsmv2",
        f"data={file.stem}",
        *["data.num_classes=5"] * (file.stem == "image_folder"),
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert not compose("train", given).preset.weights


def test_a_null_takes_a_weight_of_the_preset_away() -> None:
    applied, of_terms = weights("experiment=dml_pptsmv2", dml="null")
    assert applied == {}
    assert of_terms["dml"] is None


def test_in_a_stage_a_schedule_is_as_long_as_the_stage() -> None:
    schedule = "{_target_: lit_distill.schedules.Relative, total: '${trainer.max_epochs}', schedule: " + RAMP + "}"
    given = ["experiment=dml_pptsmv2", "data=digits_few_labels", "run_dir=x", f"+preset.weights.dml={schedule}"]
    given.append("+stages={short: {trainer: {max_epochs: 5}}, long: {}}")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", given)
    set_preset_weights(config, given)
    assert [stage.config.losses.dml.weight.total for stage in stages_of(config)] == [5, 20]


# What networks start from ---------------------------------------------------------------------------------------------


def start(*overrides: str) -> tuple[list[str], dict[str, Any]]:
    given = ["data=digits_few_labels", "run_dir=x", *overrides]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", given)
    lines = set_preset_start(config)
    return lines, {name: node.get("pretrained") for name, node in config.models.items()}


def test_networks_start_from_the_weights_that_fit_them() -> None:
    lines, files = start("experiment=dml_pptsmv2")
    assert files == {"Student": "shipped:digits_pptsmv2", "Teacher": "shipped:digits_pptsm_resnet18"}
    assert lines[0] == (
        "Student starts from shipped:digits_pptsmv2, pretrained on the digits 3 to 9 in motion (data=digits_pretext) "
        "(preset.init)"
    )


def test_scratch_is_random_weights() -> None:
    lines, files = start("experiment=dml_pptsmv2", "preset.init=scratch")
    assert files == {"Student": None, "Teacher": None}
    assert lines[0] == "Student starts from random weights (preset.init=scratch)"
    with pytest.raises(ValueError, match=r"preset\.init is pretrained or scratch, got 'random'"):
        start("experiment=dml_pptsmv2", "preset.init=random")


def test_networks_that_no_weights_fit_say_why() -> None:
    lines, files = start("experiment=dml_pptsmv2", "preset.student_scale=0.5", "model@models.Teacher=pptsm_resnet50")
    assert files == {"Student": None, "Teacher": None}
    assert lines == [
        "Student starts from random weights: shipped:digits_pptsmv2 has scale=0.25, not 0.5",
        "Teacher starts from random weights: shipped:digits_pptsm_resnet18 has depth=18, not 50",
    ]


def test_what_is_frozen_or_has_weights_is_the_users() -> None:
    _, files = start("experiment=kd_pptsmv2", "models.Student.pretrained=mine.safetensors")
    assert files == {"Student": "mine.safetensors", "Teacher": None}


def test_a_network_within_a_model_starts_from_them_too() -> None:
    lines, _ = start("experiment=simkd_pptsmv2")
    assert lines[0].startswith("Student.network starts from shipped:digits_pptsmv2, ")


def test_each_stage_starts_from_what_fits_it() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = ["experiment=progressive_frames_pptsmv2", "data=digits_few_labels", "run_dir=x"]
        config = compose("train", given)
    assert set_preset_start(config) == []
    lines = [set_preset_start(stage.config) for stage in stages_of(config)]
    assert lines == [
        ["Student starts from random weights: shipped:digits_pptsmv2 has num_frames=4, not 3"], [],
    ]  # fmt: skip


def test_a_run_says_what_it_starts_from_and_is_known_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "experiment=baseline_pptsmv2", "data=digits_few_labels", "data.clips=[24,12,12]", f"data.root={tmp_path}",
        "data.batch_size=4", "data.num_workers=0", "trainer=cpu", "trainer.max_epochs=1", "callbacks.progress=null",
        "doctor=false", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        first, again = compose("train", given), compose("train", [*given, "resume=auto"])
    run(first)
    assert "Student starts from shipped:digits_pptsmv2" in capsys.readouterr().out
    stored = load_run(tmp_path / "run")
    assert stored.config["models"]["Student"]["pretrained"] == "shipped:digits_pptsmv2"
    card = read_json(tmp_path / "run" / "student.json")
    assert card["initialised"]["loaded_from"] == "shipped:digits_pptsmv2"
    assert card["initialised"]["loaded_sha256"] == read_card("shipped:digits_pptsmv2")["sha256"]
    assert run(again) == read_results(tmp_path / "run"), "finished: nothing is trained again"
    assert not differing_keys(tmp_path / "run", first)
