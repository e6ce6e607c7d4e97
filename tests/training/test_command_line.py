"""What the command line builds: weights of frozen models, lists that are tensors, typos that name their term."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

import processes
from lit_distill._command.arguments import as_hydra
from lit_distill._command.command import conf_dir
from lit_distill._command.run import unknown_key, user_error_text
from lit_distill.models.weights import weights_files
from lit_distill.training.fit import build_module
from lit_distill.untrusted.building import build


class Net(nn.Sequential):
    """A network whose class has no argument for weights."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, 8))
        self[1] = nn.Linear(4 * 3 * 32 * 32, width)


class Loaded(Net):
    def __init__(self, weights: str | None = None) -> None:
        super().__init__()


NET = f"++models.Teacher={{_target_: {__name__}.Net}}"


def composed(*overrides: str, experiment: str = "kd_pptsmv2") -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(
            "train", as_hydra([f"experiment={experiment}", "data=moving_digits_tiny", "run_dir=x", *overrides])
        )


def with_net(*overrides: str, node: str = f"_target_: {__name__}.Net") -> DictConfig:
    config = composed(*overrides)
    config.frozen = ["Teacher"]
    target, *rest = node.split(", ")
    config.models.Teacher = {part.split(": ")[0]: part.split(": ")[1] for part in (target, *rest)}
    return config


def test_a_frozen_model_of_any_class_needs_weights_from_somewhere() -> None:
    with pytest.raises(ValueError, match=r"Teacher is frozen, .*frozen_weights\.Teacher=<file> .*allow_random_teacher"):
        build_module(with_net())
    with pytest.raises(ValueError, match="Teacher is frozen, and nothing"):
        build_module(with_net("allow_random_teacher=false"))
    assert build_module(with_net("allow_random_teacher=true")).frozen == ("Teacher",)
    assert build_module(with_net(node=f"_target_: {__name__}.Loaded, weights: DEFAULT")).frozen == ("Teacher",)
    with pytest.raises(ValueError, match="Teacher is frozen but has no weights"):
        build_module(composed("teacher=frozen"))


def test_weights_for_any_class(tmp_path: Path) -> None:
    trained = Net()
    torch.save(trained.state_dict(), tmp_path / "a = (1).pth")
    teacher: Any = build_module(with_net(f"frozen_weights.Teacher={tmp_path}/a = (1).pth")).models["Teacher"]
    assert torch.equal(teacher[1].weight, next(trained[1].parameters()))
    assert teacher.load_report.complete
    with pytest.raises(ValueError, match="frozen_weights names Student, but frozen are Teacher"):
        build_module(with_net(f"frozen_weights.Student={tmp_path}/a = (1).pth", "allow_random_teacher=true"))


@pytest.mark.parametrize("value", [None, False])
def test_no_weights_are_no_file(value: Any) -> None:
    assert weights_files({"pretrained": value}) == {"": None}


# ---------------------------------------------------------------- lists that are tensors


@pytest.mark.parametrize(
    ("loss", "override", "attribute"),
    [
        ("torch.nn.CrossEntropyLoss", "weight=[1,1,2,1,1,1,1,1]", "weight"),
        ("torch.nn.BCEWithLogitsLoss", "pos_weight=[1,2,1,1,1,1,1,0.5]", "pos_weight"),
        ("torch.nn.NLLLoss", "weight=[1,1,1,1,1,1,1,1]", "weight"),
        ("torch.nn.MultiMarginLoss", "weight=[1,1,1,1,1,1,1,1]", "weight"),
    ],
)
def test_a_list_is_a_tensor_where_a_loss_takes_one(loss: str, override: str, attribute: str) -> None:
    config = composed(
        f"losses.ce.loss={{_target_: {loss}}}", f"+losses.ce.loss.{override}", experiment="baseline_pptsmv2"
    )
    term = build_module(config).composer.terms["ce"]
    value = getattr(term.loss, attribute)
    assert value.dtype == torch.float32
    assert value.tolist() == [float(part) for part in override.partition("[")[2].rstrip("]").split(",")]
    node = {"_target_": loss, attribute: value.tolist()}
    assert torch.equal(getattr(build(node, name="loss"), attribute), value), "and of a run's config"


def test_lists_of_other_arguments_stay_lists() -> None:
    made = build({"_target_": "torch.nn.AdaptiveAvgPool2d", "output_size": [1, 2]})
    assert made.output_size == [1, 2]


# ---------------------------------------------------------------- typos


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+losses.kd.loss.temprature=4", ["losses.kd.loss.temprature", "did you mean", "temperature"]),
        ("+losses.ce.loss.label_smothing=0.1", ["losses.ce.loss.label_smothing", "did you mean", "label_smoothing"]),
        ("+losses.kd.wieght=4", ["kd", "wieght", "did you mean", "weight"]),
        ("+losses.kd.loss.temperature=-1", ["term 'kd'", "temperature must be"]),
    ],
)
def test_a_typo_in_a_loss_names_term_and_argument(override: str, said: list[str]) -> None:
    with pytest.raises(Exception, match=r"") as raised:
        build_module(composed(override, "allow_random_teacher=true"))
    text = user_error_text(raised.value)
    assert text is not None
    for part in said:
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("command", "typed", "said"),
    [
        ("doctor", ["run=runs/a"], "there is no 'run'; did you mean run_dir?"),
        ("train", ["experimnt=kd_pptsmv2"], "there is no 'experimnt'; did you mean experiment?"),
        ("train", ["modle.x=1"], "there is no 'modle.x'; did you mean model?"),
        ("index", ["chekc=decode"], "there is no 'chekc'; did you mean check?"),
        ("pack", ["outptu=a"], "there is no 'outptu'; did you mean output?"),
        ("predict", ["inptu=a"], "there is no 'inptu'; did you mean input?"),
        ("train", ["experiment=x", "+mine=1", "hydra.run.dir=x", "data.x=1", "model@models.A=y", "-m", "seed=1"], ""),
        ("doctor", ["steps=3", "as_json=true", "losses.kd.weight=1", "trainer=cpu", "optimizer.lr=1"], ""),
    ],
)
def test_an_unknown_key_is_said_first(command: str, typed: list[str], said: str) -> None:
    assert unknown_key(typed, command) == said


def test_doctor_says_the_unknown_key_and_not_the_missing_experiment() -> None:
    result = processes.run(["-m", "lit_distill.doctor", "run=runs/a"])
    assert result.returncode == 1
    assert result.stderr.startswith("error: there is no 'run'; did you mean run_dir?")
