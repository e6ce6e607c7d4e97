"""The global batch under data parallelism: an all-gather through which gradients return."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_with_gradients(tensor: Tensor) -> Tensor:
    r"""Concatenate ``tensor`` of every rank along the first dimension, in the order of the ranks.

    The gradient of a rank's rows is the sum, over all ranks, of the gradients that arrive there. With W ranks that all
    compute the same loss L of the whole batch this is W ∂L/∂rows, and the average over ranks that
    DistributedDataParallel takes of the parameters' gradients makes it exactly the gradient of L in one process.

    Every rank must call it, and its backward, the same number of times and in the same order. The ranks' numbers of
    rows may differ, 0 included. Half-precision gradients are summed in float32. Integer tensors are gathered as well.

    Args:
        tensor: (B, ...), of any dtype; everything but B must be the same on all ranks.

    Returns:
        (sum of B, ...): ``tensor`` itself when torch.distributed is not initialized or has one rank.

    Raises:
        ValueError: the ranks' tensors differ in more than the number of rows; raised on every rank, so none hangs.

    Example:
        >>> import torch
        >>> rows = torch.eye(2)
        >>> gather_with_gradients(rows) is rows
        True
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    if tensor.ndim == 0:
        raise ValueError("gather_with_gradients expects a tensor (B, ...), got a scalar: give it one row a sample")
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        sizes = _rows_of_ranks(tensor)
        rank, largest = dist.get_rank(), max(sizes)
        ctx.first, ctx.rows = sum(sizes[:rank]), sizes[rank]
        # Collectives want equal shapes: short ranks are padded, and the padding is cut off again.
        padded = tensor.new_zeros((largest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        total = (gradient.float() if half else gradient).contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.rows].to(gradient.dtype)


def _rows_of_ranks(tensor: Tensor) -> list[int]:
    """The number of rows on every rank, after a look that the ranks agree on everything else."""
    shape = [-1] * 8
    shape[: tensor.ndim] = tensor.shape
    mine = torch.tensor([*shape, tensor.element_size()], device=tensor.device)
    all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, mine)
    described = torch.stack(all_ranks).tolist()
    if len({tuple(row[1:]) for row in described}) > 1:
        shapes = "; ".join(f"rank {r}: {tuple(n for n in row[:8] if n >= 0)}" for r, row in enumerate(described))
        raise ValueError(
            f"gather_with_gradients expects tensors that differ in the number of rows alone, got {shapes} "
            "(or another dtype)"
        )
    return [row[0] for row in described]
