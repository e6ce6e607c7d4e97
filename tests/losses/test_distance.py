from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill import LossComposer, LossTerm
from lit_distill.losses import DistanceLoss, distance_loss
from losses import checks
from losses.cases import Case

CASES = [Case(DistanceLoss, "equal map")]

Mode = Literal["l1", "l2", "smooth_l1"]
MODES: tuple[Mode, ...] = ("l1", "l2", "smooth_l1")
STUDENT, TEACHER = checks.logits(3, 4, 5, 4, seed=1), checks.logits(3, 4, 5, 4, seed=2)


def test_values_are_the_plain_formulas() -> None:
    d = STUDENT - TEACHER
    for delta in (0.5, 1.0, 2.5):
        huber = torch.where(d.abs() < delta, d.square() / 2, delta * d.abs() - delta**2 / 2)
        value = distance_loss(STUDENT, TEACHER, mode="smooth_l1", delta=delta)
        torch.testing.assert_close(value, huber.mean())
    torch.testing.assert_close(distance_loss(STUDENT, TEACHER, mode="l1"), d.abs().mean())
    torch.testing.assert_close(distance_loss(STUDENT, TEACHER), d.square().mean())


@pytest.mark.parametrize("mode", MODES)
def test_activations_come_first(mode: Mode) -> None:
    logits = STUDENT.flatten(1), TEACHER.flatten(1)
    for name, activate in (("softmax", lambda x: F.softmax(x, dim=-1)), ("sigmoid", torch.sigmoid)):
        expected = distance_loss(*(activate(x) for x in logits), mode=mode)
        loss = DistanceLoss(mode=mode, activation=name)  # type: ignore[arg-type]
        torch.testing.assert_close(loss(*logits), expected)


@pytest.mark.parametrize("mode", MODES)
def test_every_check(mode: Mode) -> None:
    loss = DistanceLoss(mode=mode)
    checks.check_all(loss, STUDENT, TEACHER, wrt=(0, 1))
    checks.check_zero_when_equal(loss, STUDENT)
    checks.check_shapes_named(loss, STUDENT, TEACHER[:, :2])


@pytest.mark.parametrize("mode", MODES)
def test_it_is_symmetric_and_sees_only_differences(mode: Mode) -> None:
    expected = distance_loss(STUDENT, TEACHER, mode=mode)
    torch.testing.assert_close(distance_loss(TEACHER, STUDENT, mode=mode), expected)
    torch.testing.assert_close(distance_loss(STUDENT + 0.25, TEACHER + 0.25, mode=mode), expected)


def test_layers_are_summed_and_may_have_any_shape() -> None:
    vector = checks.logits(3, 7, seed=3)
    total = DistanceLoss()([STUDENT, vector], [TEACHER, 2 * vector])
    torch.testing.assert_close(total, distance_loss(STUDENT, TEACHER) + vector.square().mean())


@pytest.mark.parametrize("mutual", [False, True])
def test_mutual_teaches_both_networks_through_one_term(mutual: bool) -> None:
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {name: nn.Conv2d(3, 4, 3) for name in ("Student", "Teacher")}
    composer = LossComposer({"distance": LossTerm(DistanceLoss(mutual=mutual), pair=("Student", "Teacher"))})
    x = torch.randn(2, 3, 6, 6)
    with composer.capture(models) as signals:
        outputs: list[Tensor] = [model(x) for model in models.values()]
    composer(signals).total.backward()  # type: ignore[no-untyped-call]
    weights = [next(model.parameters()) for model in models.values()]
    student, teacher = (weight.grad for weight in weights)
    assert student is not None
    assert student.abs().sum() > 0
    assert (teacher is not None) == mutual
    if teacher is not None:
        outputs = [model(x) for model in models.values()]
        wanted = torch.autograd.grad((outputs[0] - outputs[1]).square().mean(), weights)
        torch.testing.assert_close([student, teacher], list(wanted))


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match="mode must be one of 'l1', 'l2', 'smooth_l1'"):
        DistanceLoss(mode="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation must be one of 'softmax', 'sigmoid', or None, got 'relu'"):
        DistanceLoss(activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta"):
        DistanceLoss(delta=0.0)
    with pytest.raises(ValueError, match=r"as many student layers.*\(3, 4, 5, 4\)"):
        distance_loss([STUDENT, STUDENT], [TEACHER])
