"""One form for what layers give: tokens (B, N, C), with the places that count."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._masks import mask_of_rows, without_masked
from lit_distill.losses.base import Signal, tensors_of
from lit_distill.losses.feature._maps import shapes_of


class Tokens(NamedTuple):
    """A signal as tokens; those that do not count are zeros."""

    values: Tensor
    """(B, N, C): N is 1 for vectors, and the number of positions for maps."""
    mask: Tensor | None
    """The weight of each token (B * N,), or None where all count alike."""
    size: tuple[int, ...] | None
    """The sides of a map, None for vectors and for tokens that were given as tokens."""

    @property
    def rows(self) -> Tensor:
        """(B * N, C)."""
        return self.values.flatten(0, 1)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Those of samples (B,), and of places within a sample (B, N): at most 1, and 1 in a sample that has none.

        A sample counts as much as that of its places which counts most.
        """
        batch, places = self.values.shape[:2]
        ones = self.values.new_ones(batch, places)
        if self.mask is None:
            return ones[:, 0], ones
        given = self.mask.to(ones.dtype).reshape(batch, places)
        samples = given.amax(dim=1)
        none = (samples == 0)[:, None]
        return samples, torch.where(none, ones, given / samples[:, None].masked_fill(none, 1))

    @property
    def places(self) -> Tensor | None:
        """The mask as (B, N)."""
        return None if self.mask is None else self.mask.reshape(self.values.shape[:2])


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


def token_pairs(
    name: str, student: Signal, teacher: Signal, mask: Tensor | None = None, *, skip: int = 0, alike: bool = False
) -> list[tuple[Tokens, Tokens]]:
    """Student and teacher as tokens, layer by layer.

    Args:
        name: the function that asks, for messages.
        student: one layer, or a list.
        teacher: as many.
        mask: which places count, of every layer.
        skip: leading tokens to leave out.
        alike: whether both must have one shape.

    Raises:
        ValueError: the numbers of layers or the batch sizes differ, or the shapes where they must not.
    """
    ours, theirs = tensors_of(student), tensors_of(teacher)
    if len(ours) != len(theirs) or not ours or any(len(s) != len(t) for s, t in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"{name} expects as many student layers as teacher layers, of one batch: {shapes_of(student, teacher)}"
        )
    pairs = [tuple(as_tokens(name, x, mask, skip=skip) for x in pair) for pair in zip(ours, theirs, strict=True)]
    if alike and any(s.values.shape != t.values.shape for s, t in pairs):
        raise ValueError(
            f"{name} expects layers of the same channels and positions on both sides: {shapes_of(student, teacher)}"
        )
    return [(s, t) for s, t in pairs]


def pooled_tokens(tokens: Tokens) -> Tokens:
    """The mean of each sample's tokens that count, as one token; a sample without any does not count."""
    if tokens.mask is None:
        return Tokens(tokens.values.mean(dim=1, keepdim=True), None, None)
    weights = tokens.mask.to(tokens.values.dtype).reshape(tokens.values.shape[:2])
    total = weights.sum(dim=1, keepdim=True)
    mean = torch.einsum("bn,bnc->bc", weights, tokens.values) / total.masked_fill(total == 0, 1)
    return Tokens(mean[:, None], (total > 0).flatten(), None)


def sample_weights(tokens: Tokens, mask: Tensor | None) -> Tensor | None:
    """The weight of each sample (B,): that of a mask of samples, else 1 where any of its tokens counts."""
    if mask is None or tokens.places is None:
        return None
    return mask if mask.ndim == 1 else (tokens.places > 0).any(dim=1)


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
