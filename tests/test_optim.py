from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.optim import paddle_momentum, takes_models


def student() -> PPTSMv2:
    torch.manual_seed(0)
    return PPTSMv2(4, 3, scale=0.1, depths=(1, 1, 1, 1), class_expand=8)


def settings_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and decay of every parameter, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }


def test_pptsm_v2_learns_as_published() -> None:
    model = student()
    settings = settings_of(paddle_momentum({"Student": model}, lr=0.1, weight_decay=0.01), model)
    assert settings.keys() == dict(model.named_parameters()).keys()
    assert settings.pop("temporal_attention.fc.weight") == pytest.approx((0.5, 1e-4))
    assert settings.pop("temporal_attention.fc.bias") == pytest.approx((1.0, 0.0))
    for name, value in settings.items():
        assert value == (0.1, 0.0 if ".bn." in name else 0.01), name
    assert settings["fc.bias"] == settings["stages.2.0.se.conv1.bias"] == (0.1, 0.01)


def test_synchronised_norms_do_not_decay_either() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(student())  # type: ignore[no-untyped-call]
    settings = settings_of(paddle_momentum({"Student": model}, lr=0.1, weight_decay=0.01), model)
    assert {value for name, value in settings.items() if ".bn." in name} == {(0.1, 0.0)}


def test_pptsm_v2_without_attention_has_no_fast_layer() -> None:
    model = PPTSMv2(4, 3, scale=0.1, temporal_attention=False)
    optimizer = paddle_momentum({"Student": model}, lr=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["Student/weights", "Student/norms"]


def test_pptsm_resnet_learns_as_published() -> None:
    model = PPTSMResNet(18, 4, 3, width=0.1)
    settings = settings_of(paddle_momentum({"Teacher": model}, lr=0.1, weight_decay=0.01), model)
    assert settings.keys() == dict(model.named_parameters()).keys()
    assert settings.pop("fc.weight") == pytest.approx((0.5, 1e-4))
    assert settings.pop("fc.bias") == pytest.approx((1.0, 0.0))
    for name, value in settings.items():
        assert value == (0.1, 0.0 if ".bn." in name else 0.01), name


def test_other_models_and_the_losses_are_plain_groups() -> None:
    connector = nn.Parameter(torch.zeros(2))
    optimizer = paddle_momentum({"Student": nn.Linear(2, 2), "Other": nn.Linear(2, 2)}, [connector], lr=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["Student/all", "Other/all", "losses"]
    assert optimizer.param_groups[-1]["params"][0] is connector


def test_frozen_parameters_are_left_out_and_shared_ones_taken_once() -> None:
    model, other = student(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.stem.requires_grad_(False)
    other.append(model.fc)
    optimizer = paddle_momentum({"Student": model, "Other": other}, lr=0.1)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    assert all(parameter.requires_grad for parameter in parameters)
    expected = sum(p.requires_grad for p in [*model.parameters(), *list(other.parameters())[:4]])
    assert len(parameters) == expected


def test_steps_by_the_formula() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    model = nn.Module()
    model.weight = weight
    optimizer = paddle_momentum({"Student": model}, lr=0.1, momentum=0.9, weight_decay=0.01)
    expected, velocity = weight.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        gradient = torch.tensor([0.5, 1.0 + step], dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        decayed = gradient + 0.01 * expected
        velocity = 0.9 * velocity + decayed
        expected = expected - 0.1 * (decayed + 0.9 * velocity)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=0)


def test_a_factory_says_that_it_takes_models() -> None:
    assert getattr(partial(paddle_momentum, lr=0.1).func, "takes_models", False)

    @takes_models
    def factory(models: Mapping[str, nn.Module], extra_parameters: list[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(models["Student"].parameters(), lr=0.1)

    assert getattr(factory, "takes_models", False)
    assert isinstance(factory({"Student": nn.Linear(1, 1)}, []), torch.optim.SGD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr above 0, got 0.0"),
        ({"lr": 0.1, "momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay of at least 0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paddle_momentum({"Student": nn.Linear(1, 1)}, **options)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match=r"nothing to train in \['Student'\]"):
        paddle_momentum({"Student": nn.Linear(1, 1).requires_grad_(False)}, lr=0.1)
