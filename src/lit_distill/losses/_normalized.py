"""Signals brought to one scale: vectors of length 1, values of mean 0 and spread 1."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses._numerics import centered


def unit_vectors(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; a zero vector stays zero and gets no amplified gradient.

    Dividing by the largest entry first lets neither the squares overflow nor a small vector vanish below an eps.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    scaled = x / torch.where(largest == 0, 1.0, largest)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    result: Tensor = scaled / torch.where(length == 0, 1.0, length)
    return result


def standardized(x: Tensor, dim: int | tuple[int, ...] = -1, *, eps: float, weights: Tensor | None = None) -> Tensor:
    """The z-score (x - mean) / (std + eps) along ``dim``, with the unbiased standard deviation.

    What is constant along ``dim`` but for rounding becomes 0, without a gradient.

    Args:
        x: of any shape.
        dim: one dimension or several.
        eps: of at least 0.
        weights: of the entries along ``dim``, which broadcast: mean and standard deviation are theirs.
    """
    result = centered(x, dim, weights)
    length: Tensor = torch.linalg.vector_norm(result, dim=dim, keepdim=True)
    if weights is None:
        freedom = max(1, x.numel() // length.numel() - 1)
        std = length / freedom**0.5
    else:
        std = length / (weights.sum(dim=dim, keepdim=True) - 1).clamp_min(1).sqrt()
        root = weights.sqrt()
        result = result / root.masked_fill(root == 0, 1)
    scaled: Tensor = result / (std + eps).masked_fill(std + eps == 0, 1)
    return scaled
