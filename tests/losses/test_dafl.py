from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import DAFLLoss, dafl_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    gradients,
    logits,
)

CASES = [Case(lambda: DAFLLoss(gather=True), "own logits and map")]

LOGITS, FEATURE = logits(6, 5, seed=1), logits(6, 4, 3, 2, seed=2)
MASK = torch.tensor([True, False, True, True, False, True])


def published(given: Tensor, feature: Tensor, form: str) -> Tensor:
    """mmrazor's three terms."""
    q = given.softmax(1).mean(0)
    strength = feature.abs().mean() if form == "abs" else feature.norm()
    return 0.05 * F.cross_entropy(given, given.argmax(1)) + 5 * (q * q.log10()).sum() - 0.01 * strength


@pytest.mark.parametrize("form", ["abs", "norm"])
@pytest.mark.parametrize("shape", [(1, 3), (7, 4), (16, 31)])
def test_is_the_published_formula(shape: tuple[int, int], form: str) -> None:
    given, feature = logits(*shape, seed=3), logits(shape[0], 6, seed=4)
    ours = gradients(lambda a, b: dafl_loss(a, b, activation_form=form), given, feature)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, gradients(lambda a, b: published(a, b, form), given, feature))


def test_holds_to_the_checks() -> None:
    check_gradcheck(dafl_loss, LOGITS, FEATURE, wrt=(0, 1))
    for form in ("abs", "norm"):

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return dafl_loss(a, b, activation_form=form)  # noqa: B023

        check_half_precision(loss, LOGITS, FEATURE)
        check_finite_or_error(loss, LOGITS, FEATURE)
        check_nan_raises(loss, LOGITS, FEATURE)
        check_permutation_invariant(loss, LOGITS, FEATURE)


def test_a_class_that_never_comes_up_is_finite() -> None:
    value, given = gradients(dafl_loss, torch.tensor([[1e4, 0.0, -1e4]] * 4), torch.ones(4, 2))
    torch.testing.assert_close(value, torch.tensor(-0.01))
    assert given[0] is not None
    assert given[0].isfinite().all()


def test_balance_is_smallest_where_all_classes_come_up_alike() -> None:
    balanced = dafl_loss(40 * torch.eye(4), torch.zeros(4, 1))
    torch.testing.assert_close(balanced, -5 * torch.tensor(4.0).log10())
    assert dafl_loss(40 * torch.eye(4)[[0, 0, 1, 2]], torch.zeros(4, 1)) > balanced


def test_samples_that_do_not_count_change_nothing() -> None:
    given = LOGITS.masked_fill(~MASK[:, None], torch.nan), FEATURE.masked_fill(~MASK[:, None, None, None], torch.nan)
    for form in ("abs", "norm"):
        kept = dafl_loss(LOGITS[MASK], FEATURE[MASK], activation_form=form)
        torch.testing.assert_close(dafl_loss(*given, mask=MASK, activation_form=form), kept)
    weights = torch.tensor([1, 2, 1, 0, 1, 2])
    rows = torch.arange(6).repeat_interleave(weights)
    torch.testing.assert_close(dafl_loss(LOGITS, FEATURE, mask=weights), dafl_loss(LOGITS[rows], FEATURE[rows]))
    value, slopes = gradients(lambda a, b: dafl_loss(a, b, mask=torch.zeros(6)), LOGITS, FEATURE)
    assert value == 0
    assert not any(slope.any() for slope in slopes if slope is not None)


def test_its_gradient_passes_through_the_network_that_is_called_teacher() -> None:
    assert DAFLLoss.teaches_both


def test_compiles_whole() -> None:
    loss = DAFLLoss()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(LOGITS, FEATURE, mask=MASK), loss(LOGITS, FEATURE, mask=MASK))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"of the same samples, got \(6, 5\) and \(5, 4, 3, 2\)"):
        DAFLLoss()(LOGITS, FEATURE[:5])
    with pytest.raises(ValueError, match="activation_form must be one of 'abs', 'norm'"):
        DAFLLoss(activation_form="max")  # type: ignore[arg-type]
