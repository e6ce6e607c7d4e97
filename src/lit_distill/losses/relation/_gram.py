"""What the relational losses share: the rows of a batch, and their squared distances from one Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._numerics import can_look

Convention = Literal["paper", "paddleclas"]
"""Whose form of RKD: that of the paper's authors, or PaddleClas'."""

Slopes: TypeAlias = Callable[[Tensor, Tensor, Sequence[bool]], tuple[Tensor, list[Tensor | None]]]
"""A loss of student and teacher with its gradients, None for one that is not wanted."""

_CLOSE = 1e-4
"""Pairs whose squared distance is below this part of their squared norms get it from the difference itself."""

_NARROW_CLOSE = 1 / 256
"""The same for a Gram matrix in float32."""

_LARGEST = 1e30
"""Squared norms below it have float32 distances."""

_CHUNK = 1 << 20
"""Elements of the differences that are formed at once."""

_DEVICE_CHUNK = 1 << 24
"""The same on an accelerator, where a kernel wants more to do."""


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


def both_rows(
    name: str, student: Tensor, teacher: Tensor, *, convention: Convention, target_size: int | None, gather: bool
) -> tuple[Tensor, Tensor]:
    """:func:`sample_rows` of student and teacher, as all parts of RKD take them.

    Raises:
        ValueError: as :func:`sample_rows`.
    """
    if convention == "paper":
        teacher = teacher.detach()
    if target_size is not None:
        student, teacher = (F.adaptive_avg_pool2d(x, target_size) if x.ndim == 4 else x for x in (student, teacher))
    return sample_rows(name, student, teacher, gather=gather)


def both_squared_distances(
    name: str, student: Tensor, teacher: Tensor, *, convention: Convention, target_size: int | None, gather: bool
) -> tuple[Tensor, Tensor]:
    """:func:`squared_distances` of the same rows.

    Raises:
        ValueError: as :func:`sample_rows`.
    """
    student, teacher = both_rows(name, student, teacher, convention=convention, target_size=target_size, gather=gather)
    return squared_distances(student), squared_distances(teacher)


class NarrowDistances(NamedTuple):
    """Squared distances (N, N) of float32 rows in float32, with the rows (N, D) centered."""

    squares: Tensor
    centered: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> NarrowDistances | None:
        """Right to about 1e-5 for any pair, or None where float32 is not enough: see :func:`squared_distances`.

        The Gram matrix costs half of that in float64. Pairs that it would cancel are formed from their difference; None
        where these are many, or where a norm would overflow.
        """
        centered = rows - rows.mean(dim=0)
        norms = centered.square().sum(dim=1)  # vector_norm loses a digit
        largest = norms.max()
        if not bool(largest < _LARGEST):
            return None
        squares = (norms + norms[:, None]).addmm_(centered, centered.T, alpha=-2)
        squares.fill_diagonal_(math.inf)
        if not bool(squares.min() >= 2 * _NARROW_CLOSE * largest):
            norms.mul_(_NARROW_CLOSE)
            close = (squares < norms + norms[:, None]).triu_(1).nonzero()
            if len(close) > len(rows) ** 2 // 16:
                return None
            _set_differences(squares, rows, close)
        squares.fill_diagonal_(0)
        return cls(squares, centered)

    def slopes_of_rows(self, slopes: Tensor) -> Tensor:
        """The gradient of the rows, from that of the squares, which is overwritten and must be symmetric."""
        laplacian = slopes.mul_(-4)
        laplacian.diagonal().sub_(laplacian.sum(dim=1))
        return laplacian @ self.centered


def squared_distances(rows: Tensor) -> Tensor:
    """|e_i - e_j|² of all pairs (N, N), in float64, from the Gram matrix of the centered rows.

    The relative error stays below about 1e-11 for any pair: where two rows are so close that the Gram matrix would
    cancel, their difference is formed. Equal rows are exactly 0 apart. Extra memory is O(N² + N D).

    On an accelerator and under torch.compile, where nothing may depend on values, the Gram matrix alone is used. Its
    absolute error is about 1e-15 of the squared norms: for float32 rows less than their own rounding makes, as 1e-7 of
    their norm is the least by which they differ. Pairs within that error are 0 apart. A device without float64 (MPS)
    forms all differences in float32, slab by slab: a relative error of about 1e-6 for any pair.

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
        if centered.dtype == torch.float32:
            return _by_differences(centered)
        gram = centered @ centered.T
        norms = gram.diagonal().clone()
        sums = norms + norms[:, None]
        squares = gram.mul_(-2).add_(sums)
        if can_look(rows):
            _correct_close(squares, sums, centered)
        else:
            squares.masked_fill_(squares <= sums.mul_(_noise(centered)), 0)
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


def _correct_close(squares: Tensor, sums: Tensor, centered: Tensor) -> None:
    """Put the squared differences of close pairs in place of what the Gram matrix left of them."""
    _set_differences(squares, centered, (squares < sums.mul_(_CLOSE)).triu_(1).nonzero())


def _set_differences(squares: Tensor, rows: Tensor, pairs: Tensor) -> None:
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, len(pairs), step):
        i, k = pairs[start : start + step].unbind(dim=1)
        squares[i, k] = squares[k, i] = (rows[i] - rows[k]).square_().sum(dim=1)


def _noise(centered: Tensor) -> float:
    """The part of two squared norms that rounding may leave of the squared distance of equal rows."""
    return 4 * float(centered.shape[1] ** 0.5) * torch.finfo(centered.dtype).eps


def _by_differences(centered: Tensor) -> Tensor:
    step = max(1, _DEVICE_CHUNK // centered.numel())
    slabs = [centered[start : start + step, None] - centered for start in range(0, len(centered), step)]
    return torch.cat([slab.square_().sum(dim=2) for slab in slabs])


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
    return rows - rows.mean(dim=0, dtype=_wide(rows.device))  # promotes: the only copy of the rows


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
