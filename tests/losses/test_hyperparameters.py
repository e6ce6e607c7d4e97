"""A hyperparameter's annotation says what it may be, for functions and for modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, TypeAlias

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from lit_distill.losses import Example, KDLoss, Signal, SizedLoss
from lit_distill.losses._hyperparameters import Count, NonNegative, Positive, Share, checked, rules_of
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters

Mode: TypeAlias = Literal["a", "b"] | None
NAN, INF = float("nan"), float("inf")
WRONG: dict[str, tuple[str, list[Any]]] = {
    "eps": ("a finite number above 0", [0.0, -1.0, NAN, INF, "0.1", None]),
    "weight": ("a finite number of at least 0", [-1e-9, NAN, INF, "1"]),
    "share": ("a number from 0 to 1", [-0.1, 1.1, NAN]),
    "size": ("a whole number of at least 1, or None", [0, -2, 1.5, INF, NAN]),
    "sizes": ("a list, each a whole number of at least 1", [[2, 0], (1.5,)]),
    "mode": ("one of 'a', 'b', or None", ["c", 1]),
}
RIGHT: dict[str, list[Any]] = {
    "eps": [1, 1e-30, torch.tensor(2.0)],
    "weight": [0, 0.0, 3],
    "share": [0, 1, 0.5],
    "size": [None, 1, 4.0],
    "sizes": [(), [1, 2]],
    "mode": [None, "a"],
}


@full_precision
def some_loss(
    student: Tensor,
    *,
    eps: Positive = 1.0,
    weight: NonNegative = 1.0,
    share: Share = 0.5,
    size: Count | None = None,
    sizes: Sequence[Count] = (4, 2),
    mode: Mode = "a",
    name: str = "",
) -> Tensor:
    return student.sum()


@hyperparameters
class SomeLoss(Loss):
    eps: Positive = 1.0
    weight: NonNegative = 1.0
    share: Share = 0.5
    size: Count | None = None
    sizes: Sequence[Count] = (4, 2)
    mode: Mode = "a"
    name: str = ""

    def forward(self, student: Tensor) -> Tensor:
        return some_loss(student, **self.hyperparameters)


@pytest.mark.parametrize(
    ("name", "text", "value"), [(n, text, v) for n, (text, values) in WRONG.items() for v in values]
)
def test_a_wrong_value_is_named_with_what_it_must_be(name: str, text: str, value: Any) -> None:
    for owner, call in (("some_loss", lambda **given: some_loss(torch.ones(1), **given)), ("SomeLoss", SomeLoss)):
        with pytest.raises(ValueError) as caught:
            call(**{name: value})
        assert str(caught.value) == f"{owner}: {name} must be {text}, got {value!r}"


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in RIGHT.items() for v in values])
def test_a_right_value_is_taken(name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    assert some_loss(torch.ones(1), **given) == 1
    loss = SomeLoss(**given)
    assert getattr(loss, name) is value
    assert f"{name}={value!r}" in repr(loss)
    assert loss(torch.ones(1)) == 1


def test_only_keywords_with_a_rule_are_looked_at() -> None:
    @checked
    def function(eps: Positive, *, other: float = 1.0) -> float:
        return eps + other

    assert not rules_of(function)
    assert function(-1.0, other=-1.0) == -2.0


def test_hydra_takes_a_module_in_a_mapping_for_no_config() -> None:
    terms = OmegaConf.create({"losses": {"kd": {"_target_": "lit_distill.losses.KDLoss", "temperature": 2.0}}})
    built = instantiate(terms, _convert_="object")
    assert isinstance(built["losses"]["kd"], KDLoss)
    assert not is_dataclass(KDLoss)


def test_a_subclass_has_the_constructor_and_may_have_another() -> None:
    class Warm(SomeLoss):
        pass

    class Fixed(SomeLoss):
        def __init__(self) -> None:
            super().__init__(eps=2.0)

    assert Warm(eps=3.0).hyperparameters["eps"] == 3.0
    assert Fixed().hyperparameters == {**SomeLoss().hyperparameters, "eps": 2.0}
    with pytest.raises(AssertionError, match="Warm inherits a constructor: give it an __init__"):
        hyperparameters(Warm)


def test_a_module_compiles_whole() -> None:
    compiled = torch.compile(SomeLoss(size=2), backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)) == 3


def test_a_loss_of_a_users_own_needs_no_dataclass() -> None:
    class Own(SizedLoss):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            self.layer: nn.Linear | None = None

        @property
        def is_built(self) -> bool:
            return self.layer is not None

        def build(self, example: Example) -> None:
            self.layer = nn.Linear(self.channels, 1)

        def forward(self, student: Signal, teacher: Signal) -> Tensor:
            raise NotImplementedError

    loss = Own(3)
    assert not loss.hyperparameters
    loss.build(Example(torch.ones(1), torch.ones(1)))
    assert len(list(loss.parameters())) == 2
