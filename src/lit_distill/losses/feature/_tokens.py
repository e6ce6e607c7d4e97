"""One form for what layers give: tokens (B, N, C), with the places that count."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._masks import mask_of_rows, without_masked


class Tokens(NamedTuple):
    """A signal as tokens; those that do not count are zeros."""

    values: Tensor
    """(B, N, C): N is 1 for vectors, and the number of positions for maps."""
    mask: Tensor | None
    """The weight of each token (B * N,), or None where all count alike."""
    size: tuple[int, ...] | None
    """The sides of a map, None for vectors and for tokens that came as tokens."""

    @property
    def rows(self) -> Tensor:
        """(B * N, C)."""
        return self.values.flatten(0, 1)


def as_tokens(name: str, signal: Tensor, mask: Tensor | None = None, *, skip: int = 0) -> Tokens:
    """A signal as tokens, without a copy where it holds tokens.

    Args:
        name: the function that asks, for messages.
        signal: vectors (B, C), tokens (B, N, C), maps (B, C, H, W) or (B, C, T, H, W).
        mask: which places count: (B,), or (B, N), (B, H, W), (B, T, H, W).
        skip: leading tokens to leave out (a class token, registers), of tokens alone.

    Raises:
        ValueError: other dimensions, or a signal that holds nothing.
    """
    if not 2 <= signal.ndim <= 5 or signal.numel() == 0:
        raise ValueError(
            f"{name} expects vectors (B, C), tokens (B, N, C) or maps (B, C, H, W) or (B, C, T, H, W), none empty, "
            f"got {tuple(signal.shape)}"
        )
    size = tuple(signal.shape[2:]) if signal.ndim > 3 else None
    places: tuple[int, ...] = (len(signal), *signal.shape[2:])
    if signal.ndim == 2:
        values = signal[:, None]
    elif size is None:
        values, places = signal, tuple(signal.shape[:2])
    else:
        values = signal.flatten(2).mT
    weights = None if mask is None else mask_of_rows(name, mask, places).reshape(values.shape[:2])
    if skip and signal.ndim == 3:
        if skip >= values.shape[1]:
            raise ValueError(f"{name} leaves out the first {skip} tokens, got {tuple(signal.shape)}: no token is left")
        values, weights = values[:, skip:], None if weights is None else weights[:, skip:]
    if weights is None:
        return Tokens(values, None, size)
    flat = weights.flatten()
    return Tokens(without_masked(values.flatten(0, 1), flat).reshape(values.shape), flat, size)


def pooled_tokens(tokens: Tokens) -> Tokens:
    """The mean of each sample's tokens that count, as one token; a sample without any does not count."""
    if tokens.mask is None:
        return Tokens(tokens.values.mean(dim=1, keepdim=True), None, None)
    weights = tokens.mask.to(tokens.values.dtype).reshape(tokens.values.shape[:2])
    total = weights.sum(dim=1, keepdim=True)
    mean = torch.einsum("bn,bnc->bc", weights, tokens.values) / total.masked_fill(total == 0, 1)
    return Tokens(mean[:, None], (total > 0).flatten(), None)


def as_map(name: str, tokens: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
    """Tokens (B, N, C) as a map (B, C, H, W) of the given size; by default a square.

    Raises:
        ValueError: N is no such number; a class token must be left out first.
    """
    n = tokens.shape[1]
    side = math.isqrt(n)
    size = (side, side) if size is None else size
    if math.prod(size) != n:
        raise ValueError(
            f"{name} expects tokens that fill a grid of {' x '.join(map(str, size))}, got {n} of "
            f"{tuple(tokens.shape)}: leave class tokens and registers out (skip=1)"
        )
    return tokens.mT.unflatten(2, size)  # type: ignore[no-untyped-call, no-any-return]


def resized_tokens(name: str, student: Tokens, teacher: Tokens) -> Tensor:
    """The student's tokens (B, N, C) on the teacher's grid, bilinearly where the numbers of tokens differ."""
    if student.values.shape[1] == teacher.values.shape[1]:
        return student.values
    grid = as_map(name, student.values, student.size)
    size = teacher.size or (math.isqrt(teacher.values.shape[1]),) * 2
    if grid.ndim != 4 or len(size) != 2 or math.prod(size) != teacher.values.shape[1]:
        raise ValueError(
            f"{name} brings tokens of a grid to another grid, got student {tuple(student.values.shape)} and teacher "
            f"{tuple(teacher.values.shape)}: leave class tokens and registers out, or tap layers of one size"
        )
    return F.interpolate(grid, size, mode="bilinear").flatten(2).mT
