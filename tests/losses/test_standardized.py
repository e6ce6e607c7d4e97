from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_distill.losses import (
    DKDLoss,
    DMLLoss,
    KDLoss,
    NKDLoss,
    StandardizedLoss,
    WSLDLoss,
    standardized_loss,
)
from losses.cases import Case, row_losses
from losses.checks import check_all, check_shapes_named, gradients, labels, logits

CASES = [
    Case(StandardizedLoss),
    Case(lambda: StandardizedLoss(loss=DKDLoss(warmup_epochs=0)), note="around DKD"),
]

STUDENT, TEACHER, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)


def z_scores(x: Tensor) -> Tensor:
    return (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-7)


@pytest.mark.parametrize(
    "loss", [DKDLoss(temperature=2.0), NKDLoss(), WSLDLoss()], ids=lambda loss: type(loss).__name__
)
def test_is_the_loss_of_the_z_scores(loss: nn.Module) -> None:
    ours = gradients(StandardizedLoss(loss=loss), STUDENT, TEACHER, TARGET)
    theirs = gradients(lambda s, t, y: loss(z_scores(s), z_scores(t), y), STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_around_kd_it_is_the_option_of_kd() -> None:
    ours = gradients(StandardizedLoss(loss=KDLoss(temperature=2.0)), STUDENT, TEACHER)
    theirs = gradients(KDLoss(temperature=2.0, logit_standardization=True), STUDENT, TEACHER)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make", row_losses(), ids=lambda make: make.__name__)
def test_takes_every_loss_between_logits(make: type[nn.Module]) -> None:
    """Scale and shift of a sample's logits, of either network, change nothing."""
    if make.__name__ == "TfKDLoss":  # has no teacher
        return
    loss = StandardizedLoss(loss=make())
    scale, shift = torch.linspace(1, 40, 6).double()[:, None], logits(6, 1, seed=9)
    value = loss(STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(loss(STUDENT * scale + shift, TEACHER * scale, TARGET), value, rtol=1e-6, atol=1e-9)


def test_holds_to_the_checks() -> None:
    check_all(StandardizedLoss(loss=DKDLoss()), STUDENT, TEACHER, TARGET)
    check_all(StandardizedLoss(), STUDENT, TEACHER)


def test_the_loss_warms_up_and_teaches_as_by_itself() -> None:
    loss = StandardizedLoss(loss=DKDLoss(warmup_epochs=10))
    full = loss(STUDENT, TEACHER, TARGET)
    loss.set_epoch(5.0)
    torch.testing.assert_close(loss(STUDENT, TEACHER, TARGET), full / 2)
    StandardizedLoss().set_epoch(5.0)
    assert StandardizedLoss(loss=DMLLoss()).teaches_both
    assert not StandardizedLoss().teaches_both


def test_says_what_is_wrong() -> None:
    check_shapes_named(StandardizedLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="DKDLoss needs the labels: name the target GroundTruth"):
        standardized_loss(STUDENT, TEACHER, loss=DKDLoss())
    with pytest.raises(ValueError, match="eps must be"):
        StandardizedLoss(eps=0)
    assert "DKDLoss" in repr(StandardizedLoss(loss=DKDLoss()))
    assert repr(StandardizedLoss()).count("KDLoss") == 1


@pytest.mark.parametrize("loss", [StandardizedLoss(), KDLoss(logit_standardization=True)], ids=["loss", "option"])
def test_two_classes_are_refused(loss: nn.Module) -> None:
    """Their z-scores are the same whatever the logits are: the gradient was below 1e-5."""
    with pytest.raises(ValueError, match=r"at least three classes, got 2: .* use the loss without standardization"):
        loss(STUDENT[:, :2], TEACHER[:, :2])
    assert gradients(loss, STUDENT[:, :3], TEACHER[:, :3])
