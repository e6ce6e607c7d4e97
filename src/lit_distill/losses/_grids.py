"""Tokens of a grid as maps: what ``LossTerm(tokens=…)`` does to the signals of a term."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lit_distill.losses.base import Signal, tensors_of

_MOST_EXTRAS = 16  # a class token, a distillation token, registers


def sides_of(tokens: str | Sequence[int]) -> tuple[int, int] | None:
    """The sides that a term names, checked; None for those of a square.

    Example:
        >>> sides_of("grid"), sides_of([7, 14])
        (None, (7, 14))
    """
    if tokens == "grid":
        return None
    sides = () if isinstance(tokens, str) else tuple(tokens)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"tokens is 'grid', for the largest square, or a height and a width, got {tokens!r}")
    return sides[0], sides[1]


def on_grid(signal: Signal, sides: tuple[int, int] | None) -> Signal:
    """Tokens (B, N, C) as maps (B, C, H, W), leading class tokens and registers left out; other tensors as they are.

    Raises:
        ValueError: so many tokens are no such grid.

    Example:
        >>> import torch
        >>> on_grid(torch.zeros(2, 197, 8), None).shape  # a class token, and 14 x 14
        torch.Size([2, 8, 14, 14])
    """
    if isinstance(signal, Tensor):
        return _map_of(signal, sides)
    return [_map_of(tensor, sides) for tensor in signal]


def mask_on_grid(mask: Tensor, sides: tuple[int, int] | None) -> Tensor:
    """A mask of tokens (B, N) as one of maps (B, H, W); another as it is."""
    if mask.ndim != 2:
        return mask
    height, width = _grid(mask.shape[1], sides, tuple(mask.shape))
    return mask[:, -height * width :].reshape(len(mask), height, width)


def require_tokens(*signals: Signal) -> None:
    """Raise where none of a term's signals holds tokens, so that ``tokens`` would do nothing."""
    shapes = [tuple(tensor.shape) for signal in signals for tensor in tensors_of(signal)]
    if all(len(shape) != 3 for shape in shapes):
        raise ValueError(f"tokens makes maps of tokens (B, N, C), and no signal holds any, got {shapes}")


def _map_of(tensor: Tensor, sides: tuple[int, int] | None) -> Tensor:
    if tensor.ndim != 3:
        return tensor
    height, width = _grid(tensor.shape[1], sides, tuple(tensor.shape))
    return tensor[:, -height * width :].mT.unflatten(2, (height, width))  # type: ignore[no-untyped-call, no-any-return]


def _grid(count: int, sides: tuple[int, int] | None, shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = (math.isqrt(count),) * 2 if sides is None else sides
    extras = count - height * width
    if not height or not 0 <= extras <= _MOST_EXTRAS:
        wanted = "a square" if sides is None else f"a grid of {height} x {width}"
        raise ValueError(
            f"tokens: {count} of {shape} are not {wanted} behind at most {_MOST_EXTRAS} class tokens and registers: "
            "give tokens=(height, width)"
        )
    return height, width
