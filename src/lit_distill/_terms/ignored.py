"""Positions of a target that are no label (padding, void), which terms on other signals count all the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_distill._terms.evaluated import EvaluatedTerms
from lit_distill.losses.base import LabelRule, tensors_of
from lit_distill.signals import SignalCapture

VOID = (255, 254)
"""Labels that masks of bytes use for no class."""

_MASKS = re.compile(r"(?!global_)(\w+_)?(attention|padding|pad|pixel|input|token|valid|loss)_mask|mask")


def ignored_positions(
    composers: Iterable[EvaluatedTerms], signals: SignalCapture, target: Any, inputs: Any = None, batch: Any = None
) -> str | None:
    """What to warn of where a term averages over positions that do not count; None where none does.

    The target marks them as no label, or a mask among what models are given does.

    Looking at the target waits for the device, so it is for an example batch and the first batch of an epoch.

    Args:
        composers: whose terms are looked at.
        signals: of the batch; a term that was not computed may have none.
        target: of the batch, any form; class indices of tokens (B, T) or pixels (B, H, W) are looked at.
        inputs: of the models; where a mapping, masks in it are looked at.
        batch: the whole batch, as terms name its entries.
    """
    composers = list(composers)
    return _by_target(composers, signals, target) or _by_masks(composers, signals, target, inputs, batch)


def _by_target(composers: Sequence[EvaluatedTerms], signals: SignalCapture, target: Any) -> str | None:
    if not isinstance(target, Tensor) or target.ndim < 2 or target.is_floating_point() or not target.numel():
        return None
    if target.dtype == torch.bool or target.shape[1:].numel() == 1:
        return None
    counting = {
        name: text
        for composer in composers
        for name, term in composer.terms.items()
        if not term.needs_labels and not term.selects
        for text in [
            next((r.text for r in term.first if r.text in signals and _has_positions(signals, r.text, target)), "")
        ]
        if text
    }
    if not counting or not _holds_classes(composers, signals, target):
        return None
    values = ignored_labels(composers)
    if not any(value >= 0 for value in values):
        values |= set(VOID) & _no_classes(composers, signals, target)
    ignored = target < 0
    for value in values:
        ignored |= target == value
    share = float(ignored.float().mean())
    classes = _classes(composers, signals, target)
    if not share or (classes and bool((target.where(~ignored, 0) >= max(classes)).any())):  # of depths, of an image
        return None
    found = sorted({int(value) for value in torch.unique(target[ignored])[:4].tolist()})
    return (
        f"{100 * share:.2g} % of the target's positions are {', '.join(map(str, found))}, no class, but "
        f"{_terms(counting)} over all positions, padding and void ones too: give such a term ignore_index={found[0]}, "
        "or a mask"
    )


def ignored_labels(composers: Iterable[EvaluatedTerms]) -> set[int]:
    """Labels that some term leaves out, by itself or by its loss."""
    composers = list(composers)
    terms = [term for composer in composers for term in composer.terms.values()]
    rules = [LabelRule.of(term.loss) for term in terms if term.needs_labels]
    means = {mean.ignored for composer in composers for mean in composer.means.values()}
    return means | {r.ignored for r in rules if r.ignored is not None} | {i for t in terms for i in t.ignore_index}


def _terms(counting: dict[str, str]) -> str:
    said = ", ".join(f"{name!r} (on {text})" for name, text in counting.items())
    return f"the term {said} averages" if len(counting) == 1 else f"the terms {said} average"


def _has_positions(signals: SignalCapture, text: str, target: Tensor) -> bool:
    """Whether a signal has an entry for each position, or for patches of them, not one for each sample."""
    signal = signals.captured()[text]
    return signal.ndim >= 3 or (signal.ndim == 2 and len(signal) == target.numel())


def _holds_classes(composers: Sequence[EvaluatedTerms], signals: SignalCapture, target: Tensor) -> bool:
    """Whether the target is a class for each position of an output, not an image, a depth or one label of many."""
    terms = [term for composer in composers for term in composer.terms.values()]
    named = [term for term in terms if term.needs_labels] or terms
    captured = signals.captured()
    found = [captured[ref.text] for term in named for ref in term.first if ref.text in captured]
    return any(
        (len(signal) == target.numel() and signal.ndim == 2)
        or (
            signal.ndim == target.ndim + 1
            and 1 not in (signal.shape[1], signal.shape[-1])
            and (target.ndim > 2 or target.shape[1] in signal.shape[1:])
        )
        for signal in found
    )


def _no_classes(composers: Sequence[EvaluatedTerms], signals: SignalCapture, target: Tensor) -> set[int]:
    """Values that are no class of the outputs that the target is compared with: their classes are fewer."""
    classes = _classes(composers, signals, target)
    return {value for value in VOID if classes and value >= max(classes)}


def _classes(composers: Sequence[EvaluatedTerms], signals: SignalCapture, target: Tensor) -> list[int]:
    """The numbers of classes of the outputs that the target is compared with."""
    labelled = any(term.needs_labels for composer in composers for term in composer.terms.values())
    return [
        tensor.shape[-1] if tensor.ndim == 2 or tensor.shape[1:-1] == target.shape[1:] else tensor.shape[1]
        for composer in composers
        for term in composer.terms.values()
        if term.needs_labels or not labelled
        for ref in term.first
        if ref.text in signals
        for tensor in tensors_of(signals.captured()[ref.text])
        if tensor.ndim >= 2
    ]


def _by_masks(
    composers: Sequence[EvaluatedTerms], signals: SignalCapture, target: Any, inputs: Any, batch: Any
) -> str | None:
    found = {f"Batch.{key}": value for key, value in _masks(batch)}
    for place in ("0.", "") if isinstance(batch, (tuple, list)) else ("",):
        known = {id(value) for value in found.values()}
        found |= {f"Batch.{place}{key}": value for key, value in _masks(inputs) if id(value) not in known}
    captured = signals.captured()
    for text, mask in found.items():
        kept = mask == 0 if "pad" in text else mask != 0
        if not bool(((mask == 0) | (mask == 1)).all()) or bool(kept.all()):
            continue
        counting = {
            name: ref.text
            for composer in composers
            for name, term in composer.terms.items()
            if not term.selects and not (term.needs_labels and _leaves_out(composers, target, kept))
            for ref in term.first
            if ref.text in captured and _is_map_of(captured[ref.text], mask)
        }
        if counting:
            share = float((~kept).float().mean())
            counts = f"the opposite of {text}" if "pad" in text else text
            return (
                f"{100 * share:.2g} % of the positions of {text} do not count, but {_terms(counting)} over all "
                f"positions, padding too: give such a term mask={counts!r}"
            )
    return None


def _masks(given: Any) -> list[tuple[str, Tensor]]:
    """The entries of a mapping that say of positions whether they count, by their names."""
    entries = given.items() if isinstance(given, Mapping) else ()
    return [
        (str(key), value)
        for key, value in entries
        if isinstance(value, Tensor)
        and _MASKS.fullmatch(str(key))
        and value.ndim in ((2,) if key == "mask" else (2, 3))
    ]


def _leaves_out(composers: Sequence[EvaluatedTerms], target: Any, kept: Tensor) -> bool:
    """Whether a target has no label where a mask leaves positions out, or none for positions."""
    if not isinstance(target, Tensor) or target.shape != kept.shape or target.is_floating_point():
        return True
    ignored = target < 0
    for value in ignored_labels(composers):
        ignored |= target == value
    return bool((ignored | kept).all())


def _is_map_of(signal: Tensor, mask: Tensor) -> bool:
    """Whether a signal has a vector for each position of a mask."""
    last = signal.ndim > mask.ndim and signal.shape[: mask.ndim] == mask.shape
    return last or (signal.ndim == mask.ndim + 1 > 3 and (signal.shape[0], *signal.shape[2:]) == tuple(mask.shape))
