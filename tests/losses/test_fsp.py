from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import FSPLoss, fsp_loss
from losses import checks
from losses.cases import Case

CASES = [Case(FSPLoss, "equal maps")]

CHANNELS = (3, 5, 2)


def layers(seed: int, *, sizes: tuple[int, ...] = (8, 4, 4), batch: int = 3) -> list[Tensor]:
    return [
        checks.logits(batch, c, size, size, seed=seed + i)
        for i, (c, size) in enumerate(zip(CHANNELS, sizes, strict=True))
    ]


def matrix(bottom: Tensor, top: Tensor) -> Tensor:
    size = min(bottom.shape[2], top.shape[2])
    b, t = F.adaptive_avg_pool2d(bottom, size), F.adaptive_avg_pool2d(top, size)
    return torch.einsum("nihw,njhw->nij", b, t) / size**2


def bottom_of(bottom: Tensor, teacher_bottom: Tensor) -> Tensor:
    """As a loss of two tensors, whose tops are their own upside down."""
    return fsp_loss([bottom, bottom.flip(2)], [teacher_bottom, teacher_bottom.flip(2)])


def test_consecutive_pairs_are_summed() -> None:
    s, t = layers(0), layers(10, sizes=(6, 6, 3))
    differences = [matrix(s[i], s[i + 1]) - matrix(t[i], t[i + 1]) for i in (0, 1)]
    torch.testing.assert_close(fsp_loss(s, t), sum(d.square().mean() for d in differences))
    expected = sum(d.square().sum(dim=(1, 2)).mean() for d in differences)
    torch.testing.assert_close(FSPLoss(reduction="sum")(s, t), expected)


def test_disjoint_pairs() -> None:
    s, t = [*layers(0)[:2], *layers(3)[1:]], [*layers(10)[:2], *layers(13)[1:]]
    expected = fsp_loss(s[:2], t[:2]) + fsp_loss(s[2:], t[2:])
    torch.testing.assert_close(FSPLoss(pairing="disjoint")(s, t), expected)


def test_gradients_of_every_layer() -> None:
    s, t = layers(0, sizes=(4, 2, 2), batch=2), layers(10, sizes=(4, 2, 2), batch=2)
    leaves = [x.requires_grad_() for x in s]
    assert torch.autograd.gradcheck(lambda *x: fsp_loss(list(x), t), leaves)


def test_every_check() -> None:
    student, teacher = checks.logits(3, 4, 3, 3, seed=1, scale=1.0), checks.logits(3, 4, 3, 3, seed=2, scale=1.0)
    checks.check_gradcheck(bottom_of, student, teacher, wrt=(0, 1))
    checks.check_half_precision(bottom_of, student, teacher)
    # A product of two features, squared: its gradient at 1e4 is 1e12, which is no float16.
    checks.check_finite_or_error(bottom_of, student, teacher, dtypes=(torch.float64, torch.float32, torch.bfloat16))
    checks.check_nan_raises(bottom_of, student, teacher)
    checks.check_permutation_invariant(bottom_of, student, teacher)
    checks.check_zero_when_equal(bottom_of, student)


def test_a_shuffle_of_positions_common_to_both_layers_changes_nothing() -> None:
    s, t = layers(0, sizes=(4, 4, 4)), layers(10, sizes=(4, 4, 4))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = [x.flatten(2)[..., order].reshape(x.shape) for x in s]
    torch.testing.assert_close(fsp_loss(shuffled, t), fsp_loss(s, t))


def test_errors_say_what_came() -> None:
    s = layers(0)
    with pytest.raises(ValueError, match=r"same channels.*\(3, 3, 8, 8\).*\(3, 5, 4, 4\)"):
        fsp_loss(s[:2], [s[0], s[2]])
    with pytest.raises(ValueError, match="two or more layers"):
        fsp_loss(s[0], s[0])
    with pytest.raises(ValueError, match="an even number of layers"):
        fsp_loss(s, s, pairing="disjoint")
    with pytest.raises(ValueError, match="as many from student and teacher"):
        fsp_loss(s, s[:2])
    with pytest.raises(ValueError, match="one batch size"):
        fsp_loss(s, [x[:2] for x in s])
    with pytest.raises(ValueError, match="reduction must be one of"):
        FSPLoss(reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pairing must be one of"):
        FSPLoss(pairing="all")  # type: ignore[arg-type]
