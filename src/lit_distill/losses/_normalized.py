"""Signals brought to one scale: vectors of length 1, values of mean 0 and spread 1."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lit_distill.losses._numerics import can_look, centered

EpsForm: TypeAlias = Literal["added", "floor"]


def unit_vectors(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; a zero vector stays zero and gets no amplified gradient.

    Dividing by the largest entry first lets neither the squares overflow nor a small vector vanish below an eps.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    scaled = x / torch.where(largest == 0, 1.0, largest)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    result: Tensor = scaled / torch.where(length == 0, 1.0, length)
    return result


def standardized(
    x: Tensor, dim: int | tuple[int, ...] = -1, *, eps: float, weights: Tensor | None = None, batch_norm: bool = False
) -> Tensor:
    """The z-score (x - mean) / (std + eps) along ``dim``, with the unbiased standard deviation.

    What is constant along ``dim`` but for rounding becomes 0, without a gradient.

    Args:
        x: of any shape.
        dim: one dimension or several.
        eps: of at least 0.
        weights: of the entries along ``dim``, which broadcast: mean and standard deviation are theirs.
        batch_norm: (x - mean) / sqrt(variance + eps) with the biased variance, as batch normalization has it.
    """
    result = centered(x, dim, weights)
    length: Tensor = torch.linalg.vector_norm(result, dim=dim, keepdim=True)
    if weights is None:
        count = x.numel() // length.numel()
        std = length / max(1, count - (not batch_norm)) ** 0.5
    else:
        total = weights.sum(dim=dim, keepdim=True)
        std = length / (total.masked_fill(total == 0, 1) if batch_norm else (total - 1).clamp_min(1)).sqrt()
        root = weights.sqrt()
        result = result / root.masked_fill(root == 0, 1)
    if batch_norm and eps:
        std = (std.square() + eps).sqrt()
    elif not batch_norm:
        std = std + eps
    scaled: Tensor = result / std.masked_fill(std == 0, 1)
    return scaled


def correlation(
    a: Tensor, b: Tensor, *, dim: int, eps: float, eps_form: EpsForm, weights: Tensor | None = None
) -> Tensor:
    """Pearson's correlation along ``dim``; what is constant there has none, hence 0 and no gradient.

    Args:
        a: of any shape.
        b: of the same shape.
        dim: one dimension.
        eps: a small number against division by zero.
        eps_form: ``added`` to the product of the two lengths, or a ``floor`` under each of them.
        weights: of the entries along ``dim``, which broadcast.
    """
    a, b = centered(a, dim, weights), centered(b, dim, weights)
    length_a: Tensor = torch.linalg.vector_norm(a, dim=dim)
    length_b: Tensor = torch.linalg.vector_norm(b, dim=dim)
    product = length_a * length_b + eps if eps_form == "added" else length_a.clamp_min(eps) * length_b.clamp_min(eps)
    return (a * b).sum(dim=dim) / product


def mean_correlations(
    a: Tensor, b: Tensor, *, of_rows: float, of_columns: float, eps: float, eps_form: EpsForm
) -> Tensor:
    """The mean :func:`correlation` of the rows of two matrices (N, C) and that of their columns, weighted and summed.

    On the CPU the gradients come with the value, in half of the passes over the matrices that autograd takes.

    Args:
        a: (N, C).
        b: (N, C).
        of_rows: the weight of the rows' mean.
        of_columns: the weight of the columns' mean.
        eps: as for :func:`correlation`.
        eps_form: as for :func:`correlation`.
    """
    if can_look(a) and a.dtype == b.dtype:
        result: Tensor = _MeanCorrelations.apply(a, b, of_rows, of_columns, eps, eps_form)
        return result
    return _mean_correlations(a, b, of_rows, of_columns, eps, eps_form)


def _mean_correlations(
    a: Tensor, b: Tensor, of_rows: float, of_columns: float, eps: float, eps_form: EpsForm
) -> Tensor:
    rows, columns = (correlation(a, b, dim=dim, eps=eps, eps_form=eps_form).mean() for dim in (1, 0))
    return of_rows * rows + of_columns * columns


class _MeanCorrelations(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, of_rows: float, of_columns: float, eps: float, form: EpsForm) -> Tensor:
        ctx.options = (of_rows, of_columns, eps, form)
        slopes: list[Tensor | None] = [None, None]
        centered, product, total = a.new_empty(2, *a.shape), torch.empty_like(a), a.new_zeros(())
        for dim, weight in ((-1, of_rows), (-2, of_columns)):
            means = [x.sum(dim=dim, keepdim=True).div_(x.shape[dim]) for x in (a, b)]
            for x, mean, result in zip((a, b), means, centered, strict=True):
                torch.sub(x, mean, out=result)
            # PyTorch's norm of columns is many times slower than this.
            squares = [torch.mul(x, x, out=product).sum(dim=dim, keepdim=True) for x in centered]
            lengths = torch.stack(squares).sqrt_()
            constant = _constant((a, b), centered, torch.stack(means), lengths, dim)
            if constant is not None:
                lengths = lengths.masked_fill(lengths == 0, 1)
            dot = torch.mul(centered[0], centered[1], out=product).sum(dim=dim, keepdim=True)
            floors = lengths if form == "added" else lengths.clamp_min(eps)
            whole = floors[0] * floors[1]
            whole = whole + eps if form == "added" else whole
            correlation = dot / whole
            across = (weight / correlation.numel()) / whole
            if constant is not None:
                correlation, across = correlation.masked_fill(constant, 0), across.masked_fill(constant, 0)
            total += weight * correlation.mean()
            for own, slope in enumerate(slopes):
                if not ctx.needs_input_grad[own]:
                    continue
                along = correlation * across * floors[1 - own] / lengths[own]
                if form == "floor":
                    along = along.masked_fill(lengths[own] < eps, 0)
                other = centered[1 - own]
                slope = other * across if slope is None else slope.addcmul_(other, across)
                slopes[own] = slope.addcmul_(centered[own], along, value=-1)
        ctx.save_for_backward(a, b, *slopes)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated again
            wanted = [x for x, want in zip((a, b), ctx.needs_input_grad, strict=False) if want]
            found = iter(torch.autograd.grad(_mean_correlations(a, b, *ctx.options), wanted, create_graph=True))
            slopes = [next(found) if want else None for want in ctx.needs_input_grad[:2]]
        return *(None if slope is None else slope * gradient for slope in slopes), None, None, None, None


def _constant(both: tuple[Tensor, Tensor], centered: Tensor, means: Tensor, lengths: Tensor, dim: int) -> Tensor | None:
    """Where :func:`centered` gives 0 for a slice of either; None: nowhere.

    Mostly that is known from means and lengths, which bound the largest values.
    """
    rounding = 4 * torch.finfo(centered.dtype).eps
    if bool((means.abs() + lengths).mul_(rounding * centered.shape[dim] ** 0.5).lt(lengths).all()):
        return None
    largest = torch.stack([x.abs().amax(dim=dim, keepdim=True) for x in both])
    return (centered.abs().amax(dim=dim, keepdim=True) <= rounding * largest).any(dim=0)


def batch_normalized(norm: _BatchNorm, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """``norm`` on (B, C, ...), with the statistics, in training, of the entries that count.

    Under a mask they are those of this process.

    Args:
        norm: a batch normalization, of any dimensions.
        x: its input.
        mask: weights that broadcast to ``x``, (B, 1, ...).
    """
    if mask is None or not (norm.training or norm.running_mean is None):
        normalized: Tensor = norm(x)
        return normalized
    dims = (0, *range(2, x.ndim))
    weights = mask.to(x.dtype)
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            total = weights.expand(len(x), 1, *x.shape[2:]).sum().clamp_min(1)
            mean = (x * weights).sum(dim=dims) / total
            squares = (x - mean.reshape(1, -1, *[1] * (x.ndim - 2))).square() * weights
            variance = squares.sum(dim=dims) / (total - 1).clamp_min(1)
            momentum = 0.1 if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum)
    result = standardized(x, dims, eps=norm.eps, weights=weights.expand(len(x), 1, *x.shape[2:]), batch_norm=True)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return result * norm.weight.reshape(shape) + norm.bias.reshape(shape) if norm.affine else result
