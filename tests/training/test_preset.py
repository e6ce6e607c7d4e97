"""Weights of terms that a data set's preset has in place of the published ones."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from lit_distill._command.command import conf_dir
from lit_distill.training.preset import set_preset_weights
from lit_distill.training.stages import stages_of

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


def test_the_embedded_data_lets_mutual_terms_grow_and_others_are_as_published() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["experiment=self_pptsmv2", "data=moving_digits"])
        published = compose("train", ["experiment=self_pptsmv2", "data=kinetics400"])
    assert set_preset_weights(config, [])["dml"]["total"] == config.trainer.max_epochs
    assert set_preset_weights(published, []) == {}


def test_a_null_takes_a_weight_of_the_preset_away() -> None:
    given = ["experiment=dml_pptsmv2", "data=moving_digits", "preset.weights.dml=null"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", given)
    assert set_preset_weights(config, given) == {}
    assert "weight" not in config.losses.dml


def test_in_a_stage_a_schedule_is_as_long_as_the_stage() -> None:
    given = ["experiment=dml_pptsmv2", "data=moving_digits", "run_dir=x"]
    given.append("+stages={short: {trainer: {max_epochs: 5}}, long: {}}")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", given)
    set_preset_weights(config, given)
    assert [stage.config.losses.dml.weight.total for stage in stages_of(config)] == [5, 20]
