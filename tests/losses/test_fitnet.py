from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lit_distill.losses import Example, FitNetLoss, fitnet_loss
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(FitNetLoss, "map")]

STUDENT, TEACHER = checks.logits(3, 4, 4, 6, seed=1, scale=1.0), checks.logits(3, 6, 4, 6, seed=2, scale=1.0)
Regressor = Literal["conv_bn_relu", "conv_bn", "conv"]


def test_the_function_is_held_to_every_check() -> None:
    student, teacher = checks.logits(3, 4, 2, 2, seed=0), checks.logits(3, 4, 2, 2, seed=1)
    torch.testing.assert_close(fitnet_loss(student, teacher), (student - teacher).square().mean())
    checks.check_all(fitnet_loss, student, teacher, wrt=(0, 1))
    checks.check_zero_when_equal(fitnet_loss, student)
    checks.check_shapes_named(fitnet_loss, student, teacher[:, :2])


@pytest.mark.parametrize(
    ("size", "kind", "kernel"),
    [
        ((4, 6), nn.Conv2d, (1, 1)),
        ((8, 12), nn.Conv2d, (3, 3)),
        ((2, 3), nn.ConvTranspose2d, (4, 4)),
        ((7, 9), nn.Conv2d, (4, 4)),
        ((5, 12), nn.Conv2d, (2, 7)),
    ],
)
def test_the_regressor_brings_the_student_to_the_hint(
    size: tuple[int, int], kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    student = checks.logits(3, 4, *size, seed=3)
    loss = built(FitNetLoss, Example(student, TEACHER))
    convolution, norm, activation = loss.regressors[0].children()
    assert isinstance(convolution, kind)
    assert convolution.kernel_size == kernel
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(activation, nn.ReLU)
    regressed = loss.regressors[0](student)
    assert regressed.shape == TEACHER.shape
    torch.testing.assert_close(loss(student, TEACHER), (regressed - TEACHER).square().mean())


@pytest.mark.parametrize(("regressor", "layers"), [("conv", 1), ("conv_bn", 2), ("conv_bn_relu", 3)])
def test_regressors_and_layers(regressor: Regressor, layers: int) -> None:
    loss = built(lambda: FitNetLoss(regressor=regressor), Example([STUDENT, TEACHER], [TEACHER, STUDENT]))
    assert [len(list(r.children())) for r in loss.regressors] == [layers, layers]
    total = loss([STUDENT, TEACHER], [TEACHER, STUDENT])
    first, second = loss.regressors
    torch.testing.assert_close(total, fitnet_loss(first(STUDENT), TEACHER) + fitnet_loss(second(TEACHER), STUDENT))


def test_without_a_regressor_shapes_must_match() -> None:
    loss = FitNetLoss(regressor=None)
    assert loss.is_built
    loss.build(Example(STUDENT, STUDENT))
    assert not list(loss.parameters())
    torch.testing.assert_close(loss(STUDENT, STUDENT + 1), torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 6\).*\(3, 6, 4, 6\)"):
        loss.build(Example(STUDENT, TEACHER))


@pytest.mark.parametrize("regressor", ["conv_bn_relu", "conv"])
def test_the_module_is_held_to_every_check(regressor: Regressor) -> None:
    loss = fresh(lambda: FitNetLoss(regressor=regressor))
    checks.check_all(loss, STUDENT[:, :, :2, :2].clone(), TEACHER[:, :, :2, :2].clone())


def test_every_parameter_learns_under_autocast() -> None:
    loss = built(FitNetLoss, Example(STUDENT.float(), TEACHER.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value: Tensor = loss(STUDENT.bfloat16(), TEACHER.bfloat16())
    value.backward()  # type: ignore[no-untyped-call]
    assert value.dtype == torch.float32
    # A BatchNorm behind it takes the convolution's bias out again.
    learning = [p for name, p in loss.named_parameters() if not name.endswith("0.0.bias")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)


def test_parameters_in_half_precision() -> None:
    loss = built(FitNetLoss, Example(STUDENT.float(), TEACHER.float()))
    expected = loss(STUDENT.float(), TEACHER.float())
    value = loss.bfloat16()(STUDENT.bfloat16(), TEACHER.bfloat16())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=2e-2, atol=0)


def test_state_dict_and_build() -> None:
    example = Example([STUDENT, TEACHER], [TEACHER, STUDENT])
    check_state_dict_round_trip(FitNetLoss, example, lambda loss: loss(example.student, example.teacher))
    check_build_is_idempotent(FitNetLoss, example)


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        FitNetLoss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"half as large: got student \(3, 4, 3, 4\) and teacher \(3, 6, 4, 6\)"):
        FitNetLoss().build(Example(STUDENT[:, :, :3, :4], TEACHER))
    loss = built(FitNetLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for \(student, teacher\) channels \[\(4, 6\)\], got \[\(6, 4\)\]"):
        loss.build(Example(TEACHER, STUDENT))
    with pytest.raises(ValueError, match="same shapes"):
        loss(STUDENT, TEACHER[:, :, :2])
    with pytest.raises(ValueError, match="regressor must be one of"):
        FitNetLoss(regressor="linear")  # type: ignore[arg-type]
