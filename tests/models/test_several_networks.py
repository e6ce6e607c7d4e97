"""A weights file with several networks names them; one with a single network, whatever lies beside it, is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_distill.models.weights import WeightsError, load_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(value.shape) if value.ndim else value for name, value in network().state_dict().items()}


def behind(prefix: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in given.items()}


RAW, AVERAGED = state(0), state(1)
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(8, 4), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"state_dict": RAW, "ema_state_dict": AVERAGED}, ("state_dict", "ema_state_dict")),
        ({"state_dict": behind("module.", RAW), "state_dict_ema": AVERAGED}, ("state_dict.module", "state_dict_ema")),
        ({"state_dict": RAW, "ema": {"shadow": AVERAGED}, "optimizer": OPTIMIZER}, ("state_dict", "ema.shadow")),
        ({"state_dict": behind("model.", RAW), "ema": {"module": behind("model.", AVERAGED)}}, ("state_dict", "ema")),
        ({"model": RAW, "model_ema": AVERAGED, "optimizer": OPTIMIZER}, ("model", "model_ema")),
        ({"teacher": RAW, "student": AVERAGED}, ("teacher", "student")),
        ({"generator": RAW, "discriminator": AVERAGED}, ("generator", "discriminator")),
        ({**RAW, **behind("ema.", AVERAGED)}, (".", "ema")),
        ({"state_dict": {**behind("models.A.", RAW), **behind("models.B.", AVERAGED)}}, ("A", "B")),
    ],
)  # fmt: skip
def test_several_networks_must_be_named(content: dict[str, Any], keys: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "last.pth"
    torch.save(content, file)
    with pytest.raises(WeightsError, match=r"several networks that fit, .*: name one of them, .*#") as raised:
        load_weights(network(), file)
    for key, wanted in zip(keys, (RAW, AVERAGED), strict=True):
        assert key in str(raised.value)
        made = network()
        assert load_weights(made, f"{file}#{key}").complete
        assert torch.equal(made.state_dict()["0.weight"], wanted["0.weight"])


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": RAW, "optimizer": OPTIMIZER, "epoch": 3},
        {"model": RAW, "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 1}},
        {"model": RAW, "discriminator": {"conv.weight": torch.zeros(3, 3)}},
        {"state_dict": behind("models.Student.", RAW), "callbacks": {"x": {"best": torch.tensor(1.0)}}, "loops": {}},
        {"state_dict": RAW, "ema": None, "ema_state_dict": {}},
        {"state_dict": RAW, "momentum": {"0.weight": torch.zeros(8, 4)}},
        {"model": RAW, "model_ema": {name: tensor.clone() for name, tensor in RAW.items()}},
        {"model": RAW, "optimizer": {"exp_avgs": list(AVERAGED.values())}},
        {"model": RAW, "shapes": [(8, 4), (8,)], "history": [torch.zeros(()), torch.zeros(())]},
        RAW,
    ],
)
def test_a_single_network_is_taken(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "last.pth")
    made = network()
    assert load_weights(made, tmp_path / "last.pth").complete
    assert torch.equal(made.state_dict()["2.bias"], RAW["2.bias"])


@pytest.mark.parametrize("name", ["model", "state_dict"])
def test_averages_without_names_are_said(name: str, tmp_path: Path) -> None:
    torch.save({name: RAW, "ema": {"decay": 0.9, "shadow_params": list(AVERAGED.values())}}, tmp_path / "last.pth")
    with pytest.warns(UserWarning, match=r"as ema.shadow_params, a list of tensors of its shapes without names"):
        load_weights(network(), tmp_path / "last.pth")


def test_a_checkpoint_of_lightnings_averaging_gives_the_averages(tmp_path: Path) -> None:
    content = {
        "pytorch-lightning_version": "2.6", "state_dict": behind("models.Student.", AVERAGED),
        "current_model_state": behind("models.Student.", RAW), "averaging_state": {"n_averaged": torch.tensor(3)},
    }  # fmt: skip
    torch.save(content, tmp_path / "best.ckpt")
    made = network()
    load_weights(made, f"{tmp_path}/best.ckpt#Student")
    assert torch.equal(made.state_dict()["2.bias"], AVERAGED["2.bias"])


def test_containers_that_nest_one_another_are_searched_once(tmp_path: Path) -> None:
    inner: dict[str, Any] = {str(number): 0 for number in range(3000)}
    for _ in range(4):
        inner = {str(number): inner for number in range(3000)}
    torch.save({"state_dict": RAW, "other": inner}, tmp_path / "last.pth")
    assert load_weights(network(), tmp_path / "last.pth").complete
