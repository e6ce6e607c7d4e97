"""Which rows of a batch count: padding and void pixels do not, and a row may count for more than another.

A loss that can leave rows out has an argument ``mask``, by keyword: True or 1 for the rows that count, any weight of at
least 0 besides. It has the leading dimensions of the signal, all or the first of them: (B,) or (B, N) for tokens
(B, N, C), (B, H, W) for maps (B, C, H, W). Nothing is indexed by it, so that shapes do not depend on values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_distill.losses._numerics import can_look


def mask_of_rows(name: str, mask: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask as weights (N,) of the rows of a signal, of the leading dimensions ``shape``.

    Raises:
        ValueError: the mask has other dimensions, or a weight below 0.
    """
    if mask.ndim < 1 or tuple(mask.shape) != tuple(shape[: mask.ndim]):
        raise ValueError(
            f"{name} expects a mask of the signal's leading dimensions {tuple(shape)}, or of the first of them, "
            f"got {tuple(mask.shape)}"
        )
    if can_look(mask) and mask.dtype != torch.bool and mask.numel() and not bool((mask >= 0).all()):
        raise ValueError(f"{name} expects a mask of weights of at least 0, got {mask.min().item()}")
    return mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)).expand(*shape).flatten()


def without_masked(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (N, ...) with zeros in place of those that do not count, whatever those held, NaN included."""
    if mask is None:
        return rows
    return rows.masked_fill((mask == 0).reshape(-1, *[1] * (rows.ndim - 1)), 0)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of values (N,) over the rows that count, Σ m v / Σ m; 0 where none does."""
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    total = weights.sum()
    return (values * weights).sum() / total.masked_fill(total == 0, 1)


def column_means(rows: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of rows (N, D) over those that count, (D,); 0 where none does."""
    if mask is None:
        return rows.mean(dim=0)
    weights = mask.to(rows.dtype)
    total = weights.sum()
    return (rows * weights[:, None]).sum(dim=0) / total.masked_fill(total == 0, 1)
