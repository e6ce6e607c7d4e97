from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import BinaryKDLoss, binary_kd_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

DIRECTIONS = ["forward", "reverse", "symmetric"]
CASES = [Case(BinaryKDLoss), Case(lambda: BinaryKDLoss(direction="symmetric"), note="symmetric")]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


def coin(p: Tensor, q: Tensor) -> Tensor:
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_is_the_divergence_of_coins(direction: str, temperature: float) -> None:
    def by_hand(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = (student / temperature).sigmoid(), (teacher / temperature).sigmoid()
        kinds = {"forward": coin(p, q), "reverse": coin(q, p), "symmetric": (coin(p, q) + coin(q, p)) / 2}
        return kinds[direction].mean() * temperature**2

    ours = gradients(lambda s, t: binary_kd_loss(s, t, direction=direction, temperature=temperature), STUDENT, TEACHER)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, gradients(by_hand, STUDENT, TEACHER), rtol=1e-8, atol=1e-12)


def test_its_gradient_is_that_of_a_binary_cross_entropy_with_soft_labels() -> None:
    _, ours = gradients(BinaryKDLoss(), STUDENT, TEACHER)
    _, theirs = gradients(lambda s: F.binary_cross_entropy_with_logits(s, TEACHER.sigmoid()), STUDENT)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_holds_to_the_checks(direction: str) -> None:
    check_all(BinaryKDLoss(direction=direction), STUDENT, TEACHER, wrt=(0, 1))  # type: ignore[arg-type]
    check_zero_when_equal(BinaryKDLoss(direction=direction), STUDENT)  # type: ignore[arg-type]


def test_classes_do_not_compete() -> None:
    """What the networks say of one class changes nothing for another."""
    raised = STUDENT.clone()
    raised[:, 0] += 5
    _, before = gradients(BinaryKDLoss(), STUDENT, TEACHER)
    _, after = gradients(BinaryKDLoss(), raised, TEACHER)
    assert before[0] is not None
    assert after[0] is not None
    torch.testing.assert_close(before[0][:, 1:], after[0][:, 1:])


def test_class_weights_weigh_classes() -> None:
    single = [binary_kd_loss(STUDENT[:, c : c + 1], TEACHER[:, c : c + 1]) for c in range(5)]
    weights = [1.0, 0.0, 3.0, 0.5, 2.0]
    expected = torch.stack([w * x for w, x in zip(weights, single, strict=True)]).sum() / 5
    torch.testing.assert_close(BinaryKDLoss(class_weights=weights)(STUDENT, TEACHER), expected)


def test_says_what_is_wrong() -> None:
    check_shapes_named(BinaryKDLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="a weight for each of the 5 classes, got 2"):
        BinaryKDLoss(class_weights=[1.0, 2.0])(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="class_weights must be a list, each a finite number of at least 0, or None"):
        BinaryKDLoss(class_weights=[1.0, -2.0])
    with pytest.raises(ValueError, match="direction must be one of 'forward', 'reverse', 'symmetric'"):
        BinaryKDLoss(direction="backward")  # type: ignore[arg-type]
