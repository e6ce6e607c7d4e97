from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lit_distill.losses._numerics import (
    centered,
    full_precision,
    kl_from_logits,
    require_finite,
    upcast,
)
from losses.checks import logits


@full_precision
def product_loss(student: Tensor, teachers: Sequence[Tensor], *, weight: Tensor | None = None) -> Tensor:
    """The mean of matrix products, which autocast would take to half precision."""
    total = torch.stack([(student @ teacher.T).mean() for teacher in teachers]).sum()
    return total if weight is None else total * weight


def test_full_precision_upcasts_everything_and_leaves_autocast() -> None:
    student, teacher = logits(3, 4), logits(3, 4, seed=1)
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = product_loss(student.to(dtype), [teacher.to(dtype)] * 2, weight=torch.ones((), dtype=dtype))
            assert torch.is_autocast_enabled("cpu")
        assert result.dtype == expected
        wanted = 2 * (student.to(dtype).to(expected) @ teacher.to(dtype).to(expected).T).mean()
        torch.testing.assert_close(result, wanted)
    assert product_loss.__name__ == "product_loss"
    assert product_loss(student.to("meta"), [teacher.to("meta")]).device.type == "meta"


def test_full_precision_names_who_brought_nan() -> None:
    student, teacher = torch.ones(2, 3), torch.ones(2, 3)
    teacher[1, 2], teacher[0, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"product_loss is nan: teachers \(2, 3\) holds 1 NaN and 1 infinite"):
        product_loss(student, [student, teacher])
    with pytest.raises(ValueError, match="product_loss is inf: all its inputs are finite, so the formula itself"):
        product_loss(student * 3e38, [student * 3e38])


def test_upcast_walks_containers() -> None:
    half = torch.ones(2, dtype=torch.float16)
    result = upcast({"a": (half, [half.bfloat16()]), "b": (half.double(), [torch.ones(2, dtype=torch.int64)])})
    kinds = {name: (first.dtype, rest[0].dtype) for name, (first, rest) in result.items()}
    assert kinds == {"a": (torch.float32, torch.float32), "b": (torch.float64, torch.int64)}


def test_centered_takes_rounding_for_what_it_is() -> None:
    rows = torch.tensor([[0.1, 0.1, 0.1], [1e4, 1e4, 1e4], [1.0, 2.0, 3.0], [1e-9, 2e-9, 3e-9]])
    rows[1, 1] += 1e-3  # one rounding step of a float32 of that size
    rows.requires_grad_()
    result = centered(rows, 1)
    assert not result[:2].any()
    torch.testing.assert_close(result[2:] / result[2:, 2:], torch.tensor([[-1.0, 0.0, 1.0]] * 2))
    result.square().sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert not rows.grad[:2].any()
    assert rows.grad[2:].any(dim=1).all()


def test_kl_is_finite_and_exact_at_any_logits() -> None:
    far = torch.tensor([[1e4, -1e4], [0.0, 200.0]])
    torch.testing.assert_close(kl_from_logits(far, -far), torch.tensor([2e4, 200.0]))
    torch.testing.assert_close(kl_from_logits(far, -far, temperature=4.0), torch.tensor([5e3, 50.0]))


def test_requirements_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"some_loss is not finite: teacher \(2,\) holds 1 NaN and 1 infinite"):
        require_finite("some_loss", student=torch.ones(2), teacher=torch.tensor([torch.nan, -torch.inf]))
