"""What losses that are sized from an example batch share in their tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lit_distill.losses.base import Example, Signal, SizedLoss

L = TypeVar("L", bound=SizedLoss)


def built(make: Callable[[], L], example: Example, *, seed: int = 0) -> L:
    """A loss sized for ``example``, with seeded parameters, in double precision where the example is."""
    torch.manual_seed(seed)
    loss = make()
    loss.build(example)
    first = example.student if isinstance(example.student, Tensor) else example.student[0]
    return loss.double() if first.dtype == torch.float64 else loss


def fresh(make: Callable[[], SizedLoss]) -> Callable[[Signal, Signal], Tensor]:
    """A function of student and teacher that sizes a new, equally seeded loss each time: no state, any shape."""

    def loss(student: Signal, teacher: Signal) -> Tensor:
        value: Tensor = built(make, Example(student, teacher))(student, teacher)
        return value

    return loss


def check_state_dict_round_trip(make: Callable[[], L], example: Example, evaluate: Callable[[L], Tensor]) -> None:
    """A loss sized for the same shapes but with other parameters takes over the first one's state, all of it."""
    first, second = built(make, example, seed=1), built(make, example, seed=2)
    torch.manual_seed(0)
    before = evaluate(first)
    second.load_state_dict(first.state_dict())
    first.load_state_dict(second.state_dict())
    torch.manual_seed(0)
    once = evaluate(first)
    torch.manual_seed(0)
    assert torch.equal(once, evaluate(second))
    assert before.isfinite()


def check_build_is_idempotent(make: Callable[[], L], example: Example) -> None:
    """A second build with the same shapes keeps every parameter as it is."""
    loss = built(make, example)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    assert loss.is_built
    assert state, "the loss has nothing to be sized"
    loss.build(example)
    after = loss.state_dict()
    assert after.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(after[name].nan_to_num(), value.nan_to_num())
