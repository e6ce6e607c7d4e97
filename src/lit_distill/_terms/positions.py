"""Which positions count in a term, tokens and pixels: its mask, its ignored labels, and the shift of causal models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._grids import mask_on_grid
from lit_distill.losses._numerics import can_look, first_of
from lit_distill.losses.base import Loss, Signal, takes, tensors_of
from lit_distill.signals import GROUND_TRUTH, SAMPLE_INDEX, Reference, SignalCapture
from lit_distill.terms import LossTerm


def at_positions(
    term: LossTerm, given: tuple[Signal, ...], signals: SignalCapture, rows: Tensor | None
) -> tuple[tuple[Signal, ...], Tensor | None]:
    """What a term's loss is given, where it names a mask, ignored labels or a shift.

    A loss with an argument ``mask`` gets one of the signals' positions. Any other gets the rows that count alone.

    Args:
        term: it.
        given: its two signals, and the third.
        signals: of the step.
        rows: the labelled samples, which ``given`` holds alone; None for all.

    Returns:
        The signals, and the mask for a loss that takes one.

    Raises:
        ValueError: a mask does not fit the signals, or the loss takes none.
    """
    of_labels = [_are_labels(refs, signal, given[0]) for refs, signal in zip(_references(term), given, strict=False)]
    if term.shift:
        given = tuple(_shifted(each, later=labels) for each, labels in zip(given, of_labels, strict=True))
    mask = _mask(term, signals)
    if mask is not None and term.tokens is not None:
        mask = mask_on_grid(mask, term.sides)
    if mask is not None:
        mask = mask if rows is None else mask[rows]
        mask = _later(mask) if term.shift else mask
    first = tensors_of(given[0])[0]
    if takes_mask(term.loss):
        return given, None if mask is None else _fitted(mask, first)
    if isinstance(term.loss, Loss):
        if mask is None:
            return given, None
        if mask.ndim > 1:
            raise ValueError(
                f"{type(term.loss).__name__} has no argument mask and cannot leave positions {tuple(mask.shape)} out: "
                "take a loss that can (all between logits; RegressionLoss, CWDLoss, PKDLoss, …), or give a mask of "
                "samples (B,)"
            )
    if mask is None:
        mask = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
    mask = _fitted(mask, first)
    if can_look(mask) and mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("a mask of weights other than 0 and 1 needs a loss that has an argument mask")
    return tuple(_kept(each, mask != 0) for each in given), None


def are_tokens_of_classes(loss: Callable[..., Any], given: tuple[Signal, ...]) -> bool:
    """Whether torch's own cross-entropy is given tokens (B, T, C) and labels (B, T), where it wants (B, C, T)."""
    first, second = given[:2]
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.ndim != 3 or second.ndim != 2:
        return False
    as_torch = first.shape[0] == second.shape[0] and first.shape[2] == second.shape[1]
    return first.shape[:2] == second.shape and not as_torch and type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss)


def _references(term: LossTerm) -> tuple[tuple[Reference, ...], ...]:
    return term.first, term.second, term.target


def takes_mask(loss: Callable[..., Any]) -> bool:
    """Whether a loss has an argument mask."""
    try:
        return takes(loss, "mask")
    except ValueError:  # a builtin that tells no signature
        return False


def _are_labels(references: tuple[Reference, ...], signal: Signal, first: Signal) -> bool:
    """Whether a signal is what the batch says of each position: it has no dimension of classes or channels."""
    return all(ref.is_data for ref in references) and tensors_of(signal)[0].ndim < tensors_of(first)[0].ndim


def _shifted(signal: Signal, *, later: bool) -> Signal:
    if not isinstance(signal, Tensor):
        return [_later(each) if later else _earlier(each) for each in signal]
    return _later(signal) if later else _earlier(signal)


def _later(signal: Tensor) -> Tensor:
    """All positions of (B, T, ...) but the first."""
    return _checked(signal)[:, 1:]


def _earlier(signal: Tensor) -> Tensor:
    """All positions of (B, T, ...) but the last."""
    return _checked(signal)[:, :-1]


def _checked(signal: Tensor) -> Tensor:
    if signal.ndim < 2 or signal.shape[1] < 2:
        raise ValueError(f"shift compares position t of (B, T, ...) with t + 1, got {tuple(signal.shape)}")
    return signal


def _mask(term: LossTerm, signals: SignalCapture) -> Tensor | None:
    """The weights of all positions, by the mask and the labels that are ignored."""
    mask = None if term.mask is None else signals[term.mask.text]
    if not term.ignore_index:
        return mask
    texts = [ref.text for ref in (*term.target, *term.second) if ref.is_data and ref.model != SAMPLE_INDEX]
    labels = first_of(x for text in (*texts, GROUND_TRUTH) if not (x := signals[text]).is_floating_point())
    if labels is None:
        raise ValueError(f"ignore_index={list(term.ignore_index)} is of labels of whole numbers, got probabilities")
    known = torch.ones_like(labels, dtype=torch.bool)
    for index in term.ignore_index:
        known &= labels != index
    if mask is None:
        return known
    if mask.shape != known.shape:
        raise ValueError(f"the mask {tuple(mask.shape)} has not the positions of the labels {tuple(labels.shape)}")
    return known & mask if mask.dtype == torch.bool else torch.where(known, mask, 0)


def _fitted(mask: Tensor, signal: Tensor) -> Tensor:
    """A mask of the positions of a signal: a map's is brought to its size, a place counts where half of it does."""
    size = signal.shape[2:]
    if mask.ndim < 3 or signal.ndim != mask.ndim + 1 or signal.shape[:-1] == mask.shape or mask.shape[1:] == size:
        return mask
    pool = getattr(F, f"adaptive_avg_pool{len(size)}d")
    shares: Tensor = pool(mask.float()[:, None], tuple(size))[:, 0]
    return shares >= 0.5 if mask.dtype == torch.bool else shares


def _kept(signal: Signal, mask: Tensor) -> Signal:
    """The rows of a signal that count: (N, C) of tokens, maps and vectors, (N,) of labels."""
    if not isinstance(signal, Tensor):
        return [one for each in signal if isinstance(one := _kept(each, mask), Tensor)]
    shape, front = tuple(signal.shape), tuple(mask.shape)
    channels_first = (shape[0], *shape[2:]) == front if signal.ndim > 2 else False
    if channels_first and (signal.ndim > 3 or shape[:-1] != front):
        return signal.movedim(1, -1)[mask]
    if shape[: mask.ndim] == front:
        return signal[mask]
    if mask.ndim > 1 and shape[0] == mask.numel():
        return signal[mask.flatten()]
    raise ValueError(
        f"the mask {front} does not fit a signal {shape}: expected one number a position, (B, T) of tokens (B, T, C), "
        "(B, H, W) of maps (B, C, H, W), or (B,); logits and labels of one size, too"
    )
