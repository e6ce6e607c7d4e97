from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import TfKDLoss, tf_kd_loss
from losses.cases import Case
from losses.checks import (
    check_gradcheck,
    check_half_precision,
    check_permutation_invariant,
    gradients,
    labels,
    logits,
)

CASES = [Case(TfKDLoss, "labels"), Case(TfKDLoss, "mixed labels", note="mixed")]

STUDENT, TARGET = logits(6, 5, seed=1), labels(6, 5)


def published(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """The authors' program, divided by the batch instead of all elements."""
    u = torch.full_like(student, 0.01 / (student.shape[1] - 1)).scatter(1, target[:, None], 0.99)
    return F.kl_div(student.log_softmax(dim=1), (u / temperature).softmax(dim=1), reduction="batchmean")


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_is_the_published_formula(temperature: float) -> None:
    loss = TfKDLoss(temperature=temperature, student_temperature=1.0, softened="probabilities")
    ours = gradients(loss, STUDENT, TARGET)
    theirs = gradients(lambda s, y: published(s, y, temperature), STUDENT, TARGET)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_student_that_matches_has_the_virtual_teachers_logits(temperature: float) -> None:
    u = torch.full((6, 5), 0.2 / 4).double().scatter(1, TARGET[:, None], 0.8)
    assert tf_kd_loss(u.log(), TARGET, correct_probability=0.8, temperature=temperature).abs() < 1e-12


def test_is_label_smoothing_at_a_temperature_of_one() -> None:
    """Torch spreads its share over all classes, this one over the others; the entropy of the labels is a constant."""
    smoothing = 0.1
    _, ours = gradients(TfKDLoss(correct_probability=1 - smoothing, temperature=1.0), STUDENT, TARGET)
    torchs = torch.nn.CrossEntropyLoss(label_smoothing=smoothing * 5 / 4)
    _, theirs = gradients(torchs, STUDENT, TARGET)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [TfKDLoss(), TfKDLoss(softened="probabilities", student_temperature=1.0)])
def test_holds_to_the_checks(loss: TfKDLoss) -> None:
    check_gradcheck(loss, STUDENT, TARGET)
    check_half_precision(loss, STUDENT, TARGET)
    check_permutation_invariant(loss, STUDENT, TARGET)
    for extreme in (STUDENT.sign() * 1e4, STUDENT * 0, STUDENT[:1]):
        value, (given,) = gradients(loss, extreme, TARGET[: len(extreme)])
        assert value.isfinite()
        assert given is not None
        assert given.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_raises(bad: float) -> None:
    broken = STUDENT.clone()
    broken[2, 1] = bad
    with pytest.raises(ValueError, match="student"):
        tf_kd_loss(broken, TARGET)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_ends_of_the_range_are_finite(probability: float) -> None:
    value, (given,) = gradients(TfKDLoss(correct_probability=probability, temperature=1.0), STUDENT, TARGET)
    assert value.isfinite()
    assert given is not None
    assert given.isfinite().all()
    if probability == 1:
        torch.testing.assert_close(value, F.cross_entropy(STUDENT, TARGET))


def test_mixed_labels_count_by_their_dominant_class() -> None:
    mixed = 0.7 * F.one_hot(TARGET, 5) + 0.3 * F.one_hot(TARGET.roll(1), 5)
    torch.testing.assert_close(TfKDLoss()(STUDENT, mixed), TfKDLoss()(STUDENT, TARGET))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"class indices int64 \(6,\)"):
        tf_kd_loss(STUDENT, TARGET[:4])
    with pytest.raises(ValueError, match="correct_probability must be a number from 0 to 1"):
        TfKDLoss(correct_probability=99)
    assert "softened='logarithms'" in repr(TfKDLoss())
