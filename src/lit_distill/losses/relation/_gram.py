"""What the relational losses share: the rows of a batch, and their squared distances from one Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients

Convention = Literal["paper", "paddleclas"]
"""Whose form of RKD: that of the paper's authors, or PaddleClas'."""

Slopes: TypeAlias = Callable[[Tensor, Tensor, Sequence[bool]], tuple[Tensor, list[Tensor | None]]]
"""A loss of student and teacher with its gradients, None for one that is not wanted."""

_CLOSE = 1e-4
"""Pairs whose squared distance is below this part of their squared norms get it from the difference itself."""

_CHUNK = 1 << 20
"""Elements of the differences that are formed at once."""


def sample_rows(name: str, student: Tensor, teacher: Tensor, *, gather: bool) -> tuple[Tensor, Tensor]:
    """Student and teacher as one row a sample, (N, D) and (N, D'), of all ranks when ``gather``.

    Raises:
        ValueError: the signals do not hold the same number of samples, or a sample holds no values.
    """
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher) or not student.numel() * teacher.numel():
        raise ValueError(
            f"{name} expects embeddings (N, ...) of the same N samples, each with at least one value, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    student, teacher = student.flatten(1), teacher.flatten(1)
    if gather:
        student, teacher = gather_with_gradients(student), gather_with_gradients(teacher)
    return student, teacher


def both_squared_distances(
    name: str, student: Tensor, teacher: Tensor, *, convention: Convention, target_size: int | None, gather: bool
) -> tuple[Tensor, Tensor]:
    """:func:`squared_distances` of student and teacher, as all parts of RKD take them.

    Raises:
        ValueError: as :func:`sample_rows`.
    """
    if convention == "paper":
        teacher = teacher.detach()
    if target_size is not None:
        student, teacher = (F.adaptive_avg_pool2d(x, target_size) if x.ndim == 4 else x for x in (student, teacher))
    student, teacher = sample_rows(name, student, teacher, gather=gather)
    return squared_distances(student), squared_distances(teacher)


def squared_distances(rows: Tensor) -> Tensor:
    """|e_i - e_j|² of all pairs (N, N), in float64, from the Gram matrix of the centered rows.

    The relative error stays below about 1e-11 for any pair: where two rows are so close that the Gram matrix would
    cancel, their difference is formed. Equal rows are exactly 0 apart. Extra memory is O(N² + N D).

    Args:
        rows: (N, D) of any floating-point dtype. On a device without float64 (MPS) float32 is used.
    """
    distances: Tensor = _SquaredDistances.apply(rows)
    return distances


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        centered = _centered(rows)
        ctx.save_for_backward(rows, centered)
        gram = centered @ centered.T
        norms = gram.diagonal().clone()
        sums = norms + norms[:, None]
        squares = gram.mul_(-2).add_(sums)
        close = (squares < sums.mul_(_CLOSE)).triu_(1).nonzero()
        step = max(1, _CHUNK // rows.shape[1])
        for start in range(0, len(close), step):
            i, k = close[start : start + step].unbind(dim=1)
            squares[i, k] = squares[k, i] = (centered[i] - centered[k]).square_().sum(dim=1)
        squares.diagonal().copy_(norms * 0)  # 0, or NaN for a row that is not finite
        return squares

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows, centered = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient's own gradient reaches the rows
            centered = _centered(rows)
        # The gradient of row i is 2 sum_k (g_ik + g_ki) (e_i - e_k): one product with a Laplacian.
        laplacian = torch.add(gradient, gradient.T).mul_(-2)
        laplacian.diagonal().sub_(laplacian.sum(dim=1))
        slopes: Tensor = laplacian @ centered
        return slopes.to(rows.dtype)


def gram(rows: Tensor) -> Tensor:
    """Inner products of all rows (N, N); its backward takes one matrix product where autograd would take two."""
    products: Tensor = _Gram.apply(rows)
    return products


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows @ rows.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        slopes: Tensor = (gradient + gradient.T) @ rows
        return slopes


def with_slopes(compute: Slopes, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss that ``compute`` gives together with its gradients, which backward then only scales.

    Nothing but the gradients is kept between forward and backward, and only those that are needed are computed. They
    can not be differentiated again: backward through them is a RuntimeError.
    """
    loss: Tensor = _WithSlopes.apply(compute, student, teacher)
    return loss


class _WithSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Slopes, student: Tensor, teacher: Tensor) -> Tensor:
        loss, slopes = compute(student, teacher, ctx.needs_input_grad[1:])
        ctx.save_for_backward(student, teacher, *slopes)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: a second derivative taken of these constants would be wrong
            slopes = [None if slope is None else _OnceOnly.apply(slope, student, teacher) for slope in slopes]
        return None, *(None if slope is None else slope * gradient for slope in slopes)


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        return slope.view_as(slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise RuntimeError("the gradient of an RKD loss can not be differentiated again: it comes with the value")


def _centered(rows: Tensor) -> Tensor:
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    return rows - rows.mean(dim=0, dtype=wide)  # promotes: the only copy of the rows
