from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import SSKDAuxLoss, sskd_aux_loss
from losses.cases import Case
from losses.checks import check_gradcheck, check_half_precision, gradients, logits

CASES = [Case(lambda: SSKDAuxLoss(gather=True))]

FEATURE = logits(12, 6, seed=1)


@pytest.mark.parametrize("views", [2, 3, 4, 6])
def test_is_the_published_formula(views: int) -> None:
    first, other = FEATURE[::views], FEATURE[torch.arange(12) % views > 0]
    cosines = F.cosine_similarity(other[:, None], first[None], dim=2)
    expected = F.cross_entropy(cosines, torch.arange(12 // views).repeat_interleave(views - 1))
    torch.testing.assert_close(sskd_aux_loss(FEATURE, views=views), expected)


def test_holds_to_the_checks() -> None:
    check_gradcheck(sskd_aux_loss, FEATURE)
    check_half_precision(sskd_aux_loss, FEATURE)
    for extreme in (torch.zeros(8, 3), torch.full((8, 3), 1e4), torch.full((8, 3), 1e-30), FEATURE[:4]):
        value, (slope,) = gradients(sskd_aux_loss, extreme)
        assert value.isfinite()
        assert slope is not None
        assert slope.isfinite().all()
    with pytest.raises(ValueError, match="NaN"):
        sskd_aux_loss(FEATURE.masked_fill(FEATURE[3, 3] == FEATURE, torch.nan))


def test_views_that_are_their_samples_have_the_smallest_loss() -> None:
    alike = torch.eye(3).repeat_interleave(4, dim=0)
    assert sskd_aux_loss(alike, temperature=0.01) < 1e-6
    assert sskd_aux_loss(alike.roll(1, 0), temperature=0.01) > 1


def test_compiles_whole() -> None:
    loss = SSKDAuxLoss()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(FEATURE, FEATURE), loss(FEATURE, FEATURE))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"groups of views=5 rows.*got \(12, 6\)"):
        SSKDAuxLoss(views=5)(FEATURE)
    with pytest.raises(ValueError, match="at least two"):
        sskd_aux_loss(FEATURE, views=1)
