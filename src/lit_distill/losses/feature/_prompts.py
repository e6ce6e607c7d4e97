"""Masks of a map by learned prompts: where the teacher's features agree with a token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make_prompts(*shape: int) -> nn.Parameter:
    """Tokens as published: normal, with a standard deviation of 0.01."""
    return nn.Parameter(torch.randn(shape) * 0.01)


def prompted_masks(prompts: Tensor, features: Tensor) -> Tensor:
    """σ(prompt · feature) at each position, (N, T, H, W), of prompts (T, C) and a map (N, C, H, W)."""
    return torch.einsum("tc,nchw->nthw", prompts, features).sigmoid()


def overlap(masks: Tensor) -> Tensor:
    """The mean Dice coefficient between two masks of a sample (N,), of masks (N, T, H, W); 0 with one mask."""
    flat = masks.flatten(2)
    products = flat @ flat.mT
    squares = products.diagonal(dim1=1, dim2=2)
    total = squares[:, :, None] + squares[:, None]
    dice = 2 * products / (total + 2e-12)  # published, and what keeps slopes finite for masks of almost nothing
    count = masks.shape[1]
    return (dice.sum(dim=(1, 2)) - dice.diagonal(dim1=1, dim2=2).sum(dim=1)) / max(1, count * (count - 1))


def without_gradient(parameter: Tensor) -> Tensor:
    """A parameter that gets a gradient of 0: data parallelism wants one for each."""
    return parameter.detach() + 0 * parameter
