"""Rows that do not count: every loss between logits leaves them out, whatever they hold, and maps are rows, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_distill.losses import HardLabelLoss, KDLoss
from lit_distill.losses._masks import mask_of_rows, masked_mean
from lit_distill.losses.base import takes
from losses.cases import classes_of, row_losses
from losses.checks import gradients, labels, logits

MASKED = row_losses()
BATCH, TOKENS, CLASSES = 4, 6, 5
MASK = torch.arange(TOKENS) < torch.tensor([6, 2, 4, 1])[:, None]


def test_every_loss_between_logits_takes_a_mask() -> None:
    assert len(MASKED) > 10
    assert not [loss.__name__ for loss in classes_of("response") if not takes(loss(), "mask")]


def signals(loss: nn.Module, *shape: int) -> list[Tensor]:
    """What the loss compares: logits of student and teacher, and labels."""
    drawn = labels(torch.Size(shape).numel(), CLASSES).reshape(shape)
    made = {"student": logits(*shape, CLASSES, seed=1), "teacher": logits(*shape, CLASSES, seed=2), "target": drawn}
    return [value for name, value in made.items() if takes(loss, name)]


def masked(loss: Callable[..., Tensor], mask: Tensor) -> Callable[..., Tensor]:
    return lambda *given: loss(*given, mask=mask)


@pytest.mark.parametrize("make", MASKED, ids=lambda make: make.__name__)
def test_padding_counts_in_no_loss(make: Callable[..., Any]) -> None:
    loss = make()
    given = signals(loss, BATCH, TOKENS)
    value, found = gradients(loss, *(x[MASK] for x in given))
    padded = [x.clone() for x in given]
    for x, bad in zip(padded, (float("nan"), float("-inf"), -100), strict=False):
        x[~MASK] = bad if x.is_floating_point() else -100
    ours, kept = gradients(masked(loss, MASK), *padded)
    torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-12)
    for one, other in zip(kept, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert not one[~MASK].any()
            torch.testing.assert_close(one[MASK], other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("make", MASKED, ids=lambda make: make.__name__)
def test_a_weight_of_two_is_a_row_that_stands_there_twice(make: Callable[..., Any]) -> None:
    loss = make()
    given = signals(loss, TOKENS)
    weights = torch.tensor([1, 2, 1, 0, 1, 2])
    rows = torch.arange(TOKENS).repeat_interleave(weights)
    torch.testing.assert_close(loss(*given, mask=weights), loss(*(x[rows] for x in given)))


@pytest.mark.parametrize("make", MASKED, ids=lambda make: make.__name__)
def test_no_row_that_counts_is_no_loss(make: Callable[..., Any]) -> None:
    loss = make()
    value, found = gradients(masked(loss, torch.zeros(BATCH, dtype=torch.bool)), *signals(loss, BATCH, TOKENS))
    assert value == 0
    assert not any(gradient.any() for gradient in found if gradient is not None)


@pytest.mark.parametrize("make", MASKED, ids=lambda make: make.__name__)
def test_pixels_are_rows(make: Callable[..., Any]) -> None:
    loss, of_maps = make(), make(class_dim=1)
    given = signals(loss, 2, 2, 3)
    maps = [x.movedim(-1, 1) if x.is_floating_point() else x for x in given]
    flat = [x.flatten(0, 2) for x in given]
    torch.testing.assert_close(of_maps(*maps), loss(*flat))
    mask = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    torch.testing.assert_close(of_maps(*maps, mask=mask), loss(*flat, mask=mask.flatten()))


@pytest.mark.parametrize("make", MASKED, ids=lambda make: make.__name__)
def test_masked_losses_compile_whole(make: Callable[..., Any]) -> None:
    loss = make()
    given = signals(loss, BATCH, TOKENS)
    compiled: Callable[..., Tensor] = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given, mask=MASK), loss(*given, mask=MASK))


def test_says_what_is_wrong() -> None:
    given = [logits(BATCH, TOKENS, CLASSES), logits(BATCH, TOKENS, CLASSES, seed=2)]
    with pytest.raises(
        ValueError, match=r"kd_loss expects a mask of the signal's leading dimensions \(4, 6\).*\(4, 5\)"
    ):
        KDLoss()(*given, mask=torch.ones(BATCH, CLASSES))
    with pytest.raises(ValueError, match="weights of at least 0, got -1"):
        HardLabelLoss()(*given, mask=-torch.ones(BATCH))


def test_a_mask_of_the_first_dimensions_covers_the_rest() -> None:
    assert mask_of_rows("x", torch.tensor([True, False]), (2, 3)).tolist() == [True] * 3 + [False] * 3
    values = torch.tensor([1.0, 2.0, 6.0])
    assert masked_mean(values, torch.tensor([1, 0, 3])) == 19 / 4
    assert masked_mean(values, None) == 3
