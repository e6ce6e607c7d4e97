from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distill.losses import SimilarityLoss, similarity_loss
from lit_distill.losses.relation.similarity import RowNorm
from losses import relations
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: SimilarityLoss(gather=True))]

STUDENT, TEACHER = logits(6, 4, seed=1), logits(6, 5, seed=2)


@pytest.mark.parametrize(("row_norm", "p"), [("l2", 2.0), ("l1", 1.0)])
@pytest.mark.parametrize("shape", [(1, 3), (7, 16), (40, 3), (5, 4, 3, 2)])
def test_is_the_published_formula(shape: tuple[int, ...], row_norm: RowNorm, p: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(shape[0], shape[1] + 1, seed=4)
    theirs = gradients(lambda s, t: relations.similarity(s, t.detach(), p=p), student, teacher)
    torch.testing.assert_close(gradients(SimilarityLoss(row_norm=row_norm), student, teacher), theirs)


@pytest.mark.parametrize("row_norm", ["l2", "l1"])
def test_holds_to_the_checks(row_norm: RowNorm) -> None:
    check_all(SimilarityLoss(row_norm=row_norm), STUDENT, TEACHER)
    check_zero_when_equal(SimilarityLoss(row_norm=row_norm), STUDENT)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 20), scale=st.floats(-3, 6))
def test_rotating_and_scaling_change_nothing(seed: int, n: int, scale: float) -> None:
    student, teacher = logits(n, 5, seed=seed), logits(n, 3, seed=seed + 1)
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=seed + 2))
    value = similarity_loss(student, teacher)
    assert 0 <= value <= 4 / n
    torch.testing.assert_close(similarity_loss(10**scale * student @ rotation, teacher), value, rtol=1e-6, atol=1e-12)


def test_identical_samples_are_equally_similar() -> None:
    torch.testing.assert_close(similarity_loss(torch.ones(4, 3), 2 * torch.ones(4, 5)), torch.tensor(0.0))


def test_hyperparameters_and_shapes_are_checked() -> None:
    check_shapes_named(similarity_loss, logits(4, 3), logits(5, 3))
    with pytest.raises(ValueError, match="row_norm must be one of 'l2', 'l1'"):
        SimilarityLoss(row_norm="max")  # type: ignore[arg-type]
