"""Losses between maps take what other networks give: tokens, vectors, maps with a time axis; each as a map by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_distill import LossComposer, LossTerm
from lit_distill.losses import (
    AFDLoss,
    AttentionTransferLoss,
    CWDLoss,
    Example,
    FactorTransferLoss,
    FitNetLoss,
    FSPLoss,
    MGDLoss,
    NORMLoss,
    NSTLoss,
    OverhaulLoss,
    ReviewKDLoss,
    VIDLoss,
)
from lit_distill.losses.base import SizedLoss
from losses import checks

LISTS = (AFDLoss, FSPLoss, ReviewKDLoss)
OVER_PLACES = (AFDLoss, AttentionTransferLoss, NSTLoss)
KINDS: list[Callable[[], nn.Module]] = [
    AFDLoss, AttentionTransferLoss, FactorTransferLoss, FitNetLoss, FSPLoss, MGDLoss, NORMLoss, NSTLoss, OverhaulLoss,
    ReviewKDLoss, VIDLoss,
]  # fmt: skip
FORMS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "tokens": ((3, 10, 4), lambda x: x.transpose(1, 2).unsqueeze(3)),
    "vectors": ((3, 4), lambda x: x.reshape(3, 4, 1, 1)),
    "frames": ((3, 4, 2, 5, 5), lambda x: torch.stack([x[n, :, t] for n in range(3) for t in range(2)])),
}


def value_and_gradients(loss: nn.Module, student: Any, teacher: Any, *leaves: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    value = loss(student, teacher)
    of = [*leaves, *loss.parameters()]
    return [value, *torch.autograd.grad(value, of, allow_unused=True, materialize_grads=True, retain_graph=True)]


def built(kind: Callable[[], nn.Module], student: Any, teacher: Any) -> nn.Module:
    torch.manual_seed(0)
    loss = kind()
    modules = (nn.BatchNorm2d(4),) if kind is OverhaulLoss else ()
    if isinstance(loss, SizedLoss):
        loss.build(Example(student, teacher, teacher_modules=modules))
    return loss.double().eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_form_is_the_map_that_one_makes_by_hand(kind: Callable[[], nn.Module], form: str) -> None:
    shape, by_hand = FORMS[form]
    one, other = (checks.logits(*shape, seed=seed).double().requires_grad_() for seed in (1, 2))
    student: Any = [one, one * 2] if kind in LISTS else one
    teacher: Any = [other, other.flip(1)] if kind in LISTS else other
    maps = [[by_hand(x) for x in each] if isinstance(each, list) else by_hand(each) for each in (student, teacher)]
    if form == "vectors" and kind in OVER_PLACES:
        with pytest.raises(ValueError, match=r"compares the places of maps, and vectors have one: got student"):
            built(kind, student, teacher)(student, teacher)
        return
    loss = built(kind, student, teacher)
    same = copy.deepcopy(loss)
    got = value_and_gradients(loss, student, teacher, one)
    expected = value_and_gradients(same, maps[0], maps[1], one)
    assert got[0] > 0
    for mine, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-9)


def evaluated(loss: nn.Module, student: Tensor, teacher: Tensor, batch: Any = None, **arguments: Any) -> Tensor:
    """The value of a term of two networks that give these."""
    composer = LossComposer({"term": LossTerm(loss, pair=("Student", "Teacher"), monitor=True, **arguments)})
    models = {"Student": nn.Identity(), "Teacher": nn.Identity()}
    with composer.capture(models) as signals:
        models["Student"](student)
        models["Teacher"](teacher)
    return composer.values(signals, None, batch=batch)["term"]


def test_tokens_of_two_lengths_ask_for_a_grid() -> None:
    with pytest.raises(ValueError, match=r"as many tokens in all layers.*LossTerm\(tokens='grid'\)"):
        AttentionTransferLoss()(torch.randn(2, 50, 8), torch.randn(2, 197, 8))


@pytest.mark.parametrize(
    ("tokens", "shape", "extras"), [("grid", (4, 4), 1), ("grid", (4, 4), 5), ((2, 5), (2, 5), 0), ([2, 5], (2, 5), 2)]
)
def test_a_term_makes_maps_of_a_grid(tokens: Any, shape: tuple[int, int], extras: int) -> None:
    height, width = shape
    given = checks.logits(3, extras + height * width, 8, seed=1)
    maps = checks.logits(3, 6, height, width, seed=2)
    by_hand = given[:, extras:].reshape(3, height, width, 8).permute(0, 3, 1, 2)
    value = evaluated(AttentionTransferLoss(), given, maps, tokens=tokens)
    torch.testing.assert_close(value, AttentionTransferLoss()(by_hand, maps))


def test_a_mask_of_tokens_becomes_one_of_places() -> None:
    given, taught = checks.logits(2, 17, 6, seed=1), checks.logits(2, 6, 4, 4, seed=2)
    mask = torch.rand(2, 17, generator=torch.Generator().manual_seed(0)) > 0.4
    value = evaluated(CWDLoss(), given, taught, {"mask": mask}, tokens="grid", mask="Batch.mask")
    by_hand = given[:, 1:].reshape(2, 4, 4, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(value, CWDLoss()(by_hand, taught, mask=mask[:, 1:].reshape(2, 4, 4)))


@pytest.mark.parametrize(
    ("tokens", "count", "message"),
    [
        ("square", 16, "tokens is 'grid', for the largest square, or a height and a width, got 'square'"),
        ((4,), 16, "a height and a width"), ((0, 4), 16, "a height"), ((True, 4), 16, "a height"),
        ("grid", 99, r"99 of \(2, 99, 8\) are not"), ((4, 5), 16, "a grid of 4 x 5"),
    ],
)  # fmt: skip
def test_what_is_no_grid(tokens: Any, count: int, message: str) -> None:
    given = torch.randn(2, count, 8)
    with pytest.raises(ValueError, match=message):
        evaluated(AttentionTransferLoss(), given, given, tokens=tokens)


def test_a_grid_without_tokens_is_refused() -> None:
    maps = torch.randn(2, 8, 4, 4)
    with pytest.raises(ValueError, match=r"'term': tokens makes maps of tokens \(B, N, C\), and no signal holds any"):
        evaluated(AttentionTransferLoss(), maps, maps, tokens="grid")
