"""What every loss is held to: gradients, precision, extremes, NaN, order of the batch. One tolerance a dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

Loss: TypeAlias = Callable[..., Tensor]
"""Takes the signals in order (student, teacher, target, …) and gives a scalar."""

VALUE_TOLERANCE = {torch.float16: 1e-4, torch.bfloat16: 1e-4, torch.float32: 1e-4}
"""Relative, of the loss against float64 on the same rounded inputs: reductions are in float32 whatever comes in."""

GRADIENT_TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 1e-3}
"""Relative, of the gradient's norm: the gradient itself is rounded to the input's dtype."""


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Seeded float64 normal values, representable in every dtype that the checks use."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return values.bfloat16().double()


def labels(batch: int, classes: int, *, seed: int = 0) -> Tensor:
    """Seeded class indices."""
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))


def gradients(loss: Loss, *inputs: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and its gradient for each floating-point input (None where none arrives), inputs cast to ``dtype``."""
    leaves = [_leaf(x, dtype) for x in inputs]
    value = loss(*leaves)
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    return value.detach(), [x.grad for x in leaves if x.is_floating_point()]


def check_gradcheck(loss: Loss, *inputs: Tensor, wrt: tuple[int, ...] = (0,)) -> None:
    """Analytic against numeric gradient in float64, for the inputs numbered in ``wrt`` (the student's by default)."""
    fixed = [x.detach().double() if x.is_floating_point() else x for x in inputs]

    def of_some(*some: Tensor) -> Tensor:
        full = list(fixed)
        for index, value in zip(wrt, some, strict=True):
            full[index] = value
        return loss(*full)

    assert torch.autograd.gradcheck(of_some, [fixed[i].clone().requires_grad_() for i in wrt], rtol=1e-4, atol=1e-7)


def check_half_precision(loss: Loss, *inputs: Tensor) -> None:
    """float16, bfloat16, float32 and autocast on the CPU against float64 on the same (rounded) inputs."""
    for dtype in VALUE_TOLERANCE:
        rounded = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        expected, wanted = gradients(loss, *rounded, dtype=torch.float64)
        value, given = gradients(loss, *rounded, dtype=dtype)
        assert value.dtype == torch.float32, f"{dtype} in must give a float32 loss, got {value.dtype}"
        _assert_close(value, expected, VALUE_TOLERANCE[dtype], f"value in {dtype}")
        _assert_gradients(given, wanted, GRADIENT_TOLERANCE[dtype], f"gradient in {dtype}")

    expected, wanted = gradients(loss, *inputs, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        # Only the forward pass, as in training: backward follows what forward did.
        value, given = gradients(torch.autocast("cpu", dtype=dtype)(loss), *inputs, dtype=torch.float32)
        assert value.dtype == torch.float32
        _assert_close(value, expected, 1e-6, f"value under autocast to {dtype}")
        _assert_gradients(given, wanted, 1e-6, f"gradient under autocast to {dtype}")


def extremes(*inputs: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
    """The named extreme inputs made from ordinary ones: student and teacher first, then what else the loss takes."""
    student, teacher, *rest = inputs
    sign_s, sign_t = (torch.where(x >= 0, 1e4, -1e4).to(x.dtype) for x in (student, teacher))
    yield "values of ±1e4", [sign_s, sign_t, *rest]
    yield "opposite values of ±1e4", [sign_s, -sign_s if student.shape == teacher.shape else sign_t, *rest]
    yield "only the student at ±1e4", [sign_s, teacher, *rest]
    yield "only the teacher at ±1e4", [student, sign_t, *rest]
    if student.shape == teacher.shape:
        yield "student equal to teacher", [student, student.clone(), *rest]
    yield "all samples identical", [x[:1].expand_as(x).clone() for x in (student, teacher)] + rest
    yield "all zeros", [torch.zeros_like(student), torch.zeros_like(teacher), *rest]
    yield "a batch of one", [x[:1] for x in inputs]
    if student.ndim >= 2:
        yield "one class", [x[:, :1] for x in (student, teacher)] + [_one_class(x) for x in rest]


def check_finite_or_error(
    loss: Loss, *inputs: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.float16)
) -> None:
    """Every extreme gives a finite loss with finite gradients, or a ValueError that says something."""
    for name, extreme in extremes(*inputs):
        for dtype in dtypes:
            refusal = ""
            try:
                value, given = gradients(loss, *extreme, dtype=dtype)
            except ValueError as error:
                refusal = str(error)
            if refusal:
                assert "formula itself overflowed" not in refusal, f"{name} in {dtype}: {refusal}"
                continue
            assert value.isfinite().all(), f"{name} in {dtype}: the loss is {value}"
            for gradient in given:
                assert gradient is None or gradient.isfinite().all(), f"{name} in {dtype}: a gradient is not finite"


def check_nan_raises(loss: Loss, *inputs: Tensor, values: tuple[float, ...] = (float("nan"), float("inf"))) -> None:
    """One NaN or infinity in student or teacher is a clear error: never a silent NaN, never silently finite."""
    for which in (0, 1):
        for bad in values:
            for position in (0, -1):
                broken = [x.clone() for x in inputs]
                broken[which].view(-1)[position] = bad
                with pytest.raises(ValueError, match=r"NaN"):
                    loss(*broken)


def check_permutation_invariant(loss: Loss, *inputs: Tensor, rtol: float = 1e-10) -> None:
    """The order of the batch does not change the loss, and permutes its gradient."""
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(5))
    value, given = gradients(loss, *inputs)
    permuted, moved = gradients(loss, *(x[order] for x in inputs))
    _assert_close(permuted, value, rtol, "value after a permutation")
    _assert_gradients(moved, [g if g is None else g[order] for g in given], rtol, "gradient after a permutation")


def check_zero_when_equal(loss: Loss, student: Tensor, *rest: Tensor, atol: float = 1e-12) -> None:
    """A student that gives what the teacher gives has no loss and no gradient."""
    value, given = gradients(loss, student, student.clone(), *rest)
    assert abs(value.item()) <= atol
    assert given[0] is not None
    assert given[0].abs().max() <= max(atol, 1e-9)


def check_shapes_named(loss: Loss, student: Tensor, teacher: Tensor, *rest: Tensor) -> None:
    """Signals that cannot be matched are refused with both shapes in the message."""
    with pytest.raises(ValueError) as caught:
        loss(student, teacher, *rest)
    for shape in (tuple(student.shape), tuple(teacher.shape)):
        assert str(shape) in str(caught.value), f"{shape} is missing in: {caught.value}"


def check_all(
    loss: Loss,
    *inputs: Tensor,
    wrt: tuple[int, ...] = (0,),
    not_finite: tuple[float, ...] = (float("nan"), float("inf")),
) -> None:
    """The checks that every loss without a batch order must pass."""
    check_gradcheck(loss, *inputs, wrt=wrt)
    check_half_precision(loss, *inputs)
    check_finite_or_error(loss, *inputs)
    check_nan_raises(loss, *inputs, values=not_finite)
    check_permutation_invariant(loss, *inputs)


def _leaf(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not value.is_floating_point():
        return value
    return value.detach().to(dtype or value.dtype).clone().requires_grad_()


def _one_class(value: Tensor) -> Tensor:
    return value[:, :1] if value.is_floating_point() and value.ndim == 2 else torch.zeros_like(value)


def _assert_close(value: Tensor, expected: Tensor, rtol: float, what: str) -> None:
    difference = (value.double() - expected.double()).abs().max().item()
    assert difference <= rtol * (1e-3 + expected.double().abs().max().item()), f"{what}: {value} against {expected}"


def _assert_gradients(given: list[Tensor | None], wanted: list[Tensor | None], rtol: float, what: str) -> None:
    for index, (one, other) in enumerate(zip(given, wanted, strict=True)):
        assert (one is None) == (other is None), f"{what} of input {index}: only one of both arrives"
        if one is not None and other is not None:
            distance = (one.double() - other.double()).norm().item()
            assert distance <= rtol * (1e-3 + other.double().norm().item()), (
                f"{what} of input {index}: off by {distance}"
            )
