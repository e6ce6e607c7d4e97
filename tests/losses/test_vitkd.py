from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_distill.losses import Example, ViTKDLoss, vitkd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: ViTKDLoss(ratio=1.0), "maps")]  # what is hidden is drawn by each process for itself

TOKENS = [(logits(3, 9, 4, seed=n), logits(3, 9, 5, seed=n + 10)) for n in range(3)]
OURS, THEIRS = [s for s, _ in TOKENS], [t for _, t in TOKENS]


def test_sums_shallow_layers_and_hidden_places() -> None:
    ours = [logits(3, 9, 5, seed=n) for n in range(3)]
    hidden = torch.arange(9).expand(3, 9) % 2
    shallow = sum((s - t).square().sum() for s, t in zip(ours[:2], THEIRS[:2], strict=True)) / 3
    deep = sum((ours[2][:, n] - THEIRS[2][:, n]).square().sum() for n in (1, 3, 5, 7)) / 3
    expected = 0.2 * shallow + 0.3 / 0.25 * deep
    torch.testing.assert_close(vitkd_loss(ours, THEIRS, hidden, alpha=0.2, beta=0.3, ratio=0.25), expected)


def test_the_module_hides_generates_and_compares() -> None:
    loss = built(ViTKDLoss, Example(OURS, THEIRS)).eval()
    projected = [layer(x) for layer, x in zip(loss.projectors, OURS, strict=True)]
    hidden = loss._draw_hidden(projected[2])
    assert hidden.sum(dim=1).tolist() == [5, 5, 5]  # int(9 / 2) are kept
    given = projected[2].masked_fill(hidden[..., None], 0.0)  # the token starts at 0
    generated = loss.generation(given.mT.unflatten(2, (3, 3))).flatten(2).mT
    torch.testing.assert_close(loss(OURS, THEIRS), vitkd_loss([*projected[:2], generated], THEIRS, hidden))
    loss(OURS, THEIRS).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_what_is_hidden_follows_the_global_seed_in_training_only() -> None:
    loss = built(ViTKDLoss, Example(OURS, THEIRS))
    torch.manual_seed(3)
    first, other = loss(OURS, THEIRS), loss(OURS, THEIRS)
    torch.manual_seed(3)
    assert torch.equal(first, loss(OURS, THEIRS))
    assert not torch.equal(first, other)
    loss.eval()
    assert torch.equal(loss(OURS, THEIRS), loss(OURS, THEIRS))


def test_holds_to_the_checks() -> None:
    example = Example(OURS, THEIRS)

    def both(student: Tensor, teacher: Tensor) -> Tensor:
        return fresh(ViTKDLoss)([student, student], [teacher, teacher])

    check_gradcheck(both, OURS[0], THEIRS[0])
    check_half_precision(both, OURS[0], THEIRS[0])
    check_finite_or_error(both, OURS[0], THEIRS[0])
    check_nan_raises(both, OURS[0], THEIRS[0])
    check_permutation_invariant(lambda s, t: fresh(lambda: ViTKDLoss(ratio=1.0))([s, s], [t, t]), OURS[0], THEIRS[0])
    check_build_is_idempotent(ViTKDLoss, example)
    check_state_dict_round_trip(ViTKDLoss, example, lambda loss: loss(OURS, THEIRS))


def test_padding_does_not_count_and_it_compiles_whole() -> None:
    loss = built(ViTKDLoss, Example(OURS, THEIRS)).eval()
    mask = torch.tensor([True, False, True])
    broken = [x.masked_fill(~mask[:, None, None], torch.nan) for x in OURS]
    hidden = loss._draw_hidden(OURS[0])
    loss._draw_hidden = lambda tokens: hidden[mask] if len(tokens) == 2 else hidden  # type: ignore[method-assign]
    kept = loss([x[mask] for x in OURS], [x[mask] for x in THEIRS])
    torch.testing.assert_close(loss(broken, THEIRS, mask=mask), kept)
    compiled: Any = torch.compile(built(ViTKDLoss, Example(OURS, THEIRS)), backend="eager", fullgraph=True)
    assert compiled(broken, THEIRS, mask=mask[:, None].expand(3, 9)).isfinite()


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"ratio must be a number above 0 and at most 1, got 1\.5"):
        ViTKDLoss(ratio=1.5)
    tokens = [torch.zeros(2, 10, 4)] * 2
    with pytest.raises(ValueError, match=r"fill a grid of 3 x 3, got 10"):
        built(ViTKDLoss, Example(tokens, tokens))(tokens, tokens)
    check_shapes_named(lambda s, t: vitkd_loss(s, t, torch.zeros(3, 9)), OURS[0], THEIRS[0])
