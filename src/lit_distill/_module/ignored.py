"""Positions of a target that are no label (padding, void), which terms on other signals count all the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_distill._module.preflight import VOID
from lit_distill.composer import LossComposer
from lit_distill.losses.base import LabelRule, tensors_of
from lit_distill.signals import SignalCapture


def ignored_positions(composers: Iterable[LossComposer], signals: SignalCapture, target: Any) -> str | None:
    """What to warn of where a term averages over positions that the target marks as none; None where none does.

    Looking at the target waits for the device, so it is for an example batch and the first batch of an epoch.

    Args:
        composers: whose terms are looked at.
        signals: of the batch; a term that was not computed may have none.
        target: of the batch, any form; class indices of tokens (B, T) or pixels (B, H, W) are looked at.
    """
    if not isinstance(target, Tensor) or target.ndim < 2 or target.is_floating_point() or not target.numel():
        return None
    if target.dtype == torch.bool or target.shape[1:].numel() == 1:
        return None
    composers = list(composers)
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
    if not share:
        return None
    found = sorted({int(value) for value in torch.unique(target[ignored])[:4].tolist()})
    return (
        f"{100 * share:.2g} % of the target's positions are {', '.join(map(str, found))}, no class, but "
        f"{_terms(counting)} over all positions, padding and void ones too: give such a term ignore_index={found[0]}, "
        "or a mask"
    )


def ignored_labels(composers: Iterable[LossComposer]) -> set[int]:
    """Labels that some term leaves out, by itself or by its loss."""
    terms = [term for composer in composers for term in composer.terms.values()]
    rules = [LabelRule.of(term.loss) for term in terms if term.needs_labels]
    return {rule.ignored for rule in rules if rule.ignored is not None} | {i for t in terms for i in t.ignore_index}


def _terms(counting: dict[str, str]) -> str:
    said = ", ".join(f"{name!r} (on {text})" for name, text in counting.items())
    return f"the term {said} averages" if len(counting) == 1 else f"the terms {said} average"


def _has_positions(signals: SignalCapture, text: str, target: Tensor) -> bool:
    """Whether a signal has an entry for each position, or for patches of them, not one for each sample."""
    signal = signals.captured()[text]
    return signal.ndim >= 3 or (signal.ndim == 2 and len(signal) == target.numel())


def _holds_classes(composers: Sequence[LossComposer], signals: SignalCapture, target: Tensor) -> bool:
    """Whether the target is a class for each position of an output, not an image, a depth or one label of many."""
    terms = [term for composer in composers for term in composer.terms.values()]
    named = [term for term in terms if term.needs_labels] or terms
    captured = signals.captured()
    found = [captured[ref.text] for term in named for ref in term.first if ref.text in captured]
    return any(
        (len(signal) == target.numel() and signal.ndim == 2)
        or (signal.ndim == target.ndim + 1 and 1 not in (signal.shape[1], signal.shape[-1]))
        for signal in found
    )


def _no_classes(composers: Sequence[LossComposer], signals: SignalCapture, target: Tensor) -> set[int]:
    """Values that are no class of the outputs that the target is compared with: their classes are fewer."""
    labelled = any(term.needs_labels for composer in composers for term in composer.terms.values())
    classes = [
        tensor.shape[-1] if tensor.ndim == 2 or tensor.shape[1:-1] == target.shape[1:] else tensor.shape[1]
        for composer in composers
        for term in composer.terms.values()
        if term.needs_labels or not labelled
        for ref in term.first
        if ref.text in signals
        for tensor in tensors_of(signals.captured()[ref.text])
        if tensor.ndim >= 2
    ]
    return {value for value in VOID if classes and value >= max(classes)}
