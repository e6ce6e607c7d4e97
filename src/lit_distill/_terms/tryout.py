"""One example batch before training: losses are sized, taps to clone are found, and mistakes are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._terms.checks import wrong_values
from lit_distill._terms.evaluated import EvaluatedTerms, reason
from lit_distill._terms.graph import Mean
from lit_distill._terms.trial import on_trial
from lit_distill.losses._numerics import ONE_CLASS
from lit_distill.losses.base import Example, SizedLoss, tensors_of
from lit_distill.signals import SignalCapture
from lit_distill.structures import MissingPart
from lit_distill.terms import LossTerm, describe


@torch.no_grad()
def try_terms(
    composers: Sequence[EvaluatedTerms],
    models: Mapping[str, nn.Module],
    target: Any,
    *,
    index: Tensor | None,
    batch: Any,
    dataset_size: int | None,
    run: Callable[[SignalCapture], object],
    check: Callable[[SignalCapture], None] | None = None,
) -> SignalCapture:
    """As :meth:`LossComposer.build`, for several composers on one capture, so that every model runs once.

    Models run a second time only where a tap turns out to be changed in place, a loss gives a model new parts, or the
    terms of training name a part of an output that is there in training mode alone.
    ``run`` runs them, given the open capture; ``check`` looks at the captured signals before any loss is sized.
    """
    used = [models[name] for name in frozenset().union(*(composer.model_names for composer in composers))]
    modes = [(part, part.training) for module in (*used, *composers) for part in module.modules()]
    try:
        for module in (*used, *composers):
            module.eval()
        captured = _each_captured(composers, models, run, modes)
        if in_place := frozenset().union(*(each.changed_in_place() - each.cloned for each in captured)):
            for composer in composers:
                composer._clone |= in_place & {ref.text for ref in composer.references}
            captured = _each_captured(composers, models, run, modes)
        signals = captured[0]
        if check is not None:
            check(signals)
        for composer, each in zip(composers, captured, strict=True):
            composer.put_data(each, target, index, batch)
            for name, term in composer.terms.items():
                if isinstance(term.loss, SizedLoss):
                    _build_term(composer, name, term, each, models, dataset_size)
            composer.losses.eval()  # the parts that were just made
        if new := {part for module in used for part in module.modules()} - {part for part, _ in modes}:
            modes += [(part, part.training) for part in new]  # a loss has put them into a model: its signals differ now
            for module in used:
                module.eval()
            captured = _each_captured(composers, models, run, modes)
        signals, taught, never = captured[0], composers[0], list[str]()
        means, wrong = list[dict[str, Mean]](), list[dict[tuple[str, str], str]]()
        with on_trial(composers):
            for composer, each in zip(composers, captured, strict=True):
                given = each if composer is taught else each.detached()
                composer.put_data(given, target, index, batch)
                with torch.set_grad_enabled(composer is taught):
                    values = {name: composer._evaluate(name, term, given, 0.0) for name, term in composer.terms.items()}
                composer.put_data(each, target, index, batch)
                means.append(_means(composer, each, values if composer is taught else {}))
                if composer is taught:
                    idle = [name for name, value in values.items() if not composer._teaches(name, value, given)]
                wrong.append(_wrong(composer, given))
        for composer, found in zip(composers, means, strict=True):
            composer.means.update(found)
        kept: Mapping[tuple[str, str], str] | None = None
        if (idle or wrong[0]) and not torch.is_inference_mode_enabled():  # in training mode all may be well
            _set_modes(modes)
            with suppress(RuntimeError, ValueError), on_trial(composers), torch.enable_grad():
                trained = _captured([taught], models, run)
                taught.put_data(trained, target, index, batch)
                never = [name for name in idle if not _ever_teaches(taught, name, trained)]
                kept = _wrong(taught, trained)
        _warn(wrong, kept)
        _refuse(taught, never, signals)
    finally:
        _set_modes(modes)
        for composer in composers:
            composer.losses.train(composer.training)
    return signals


def teaches_nobody(terms: EvaluatedTerms, name: str, signals: SignalCapture) -> str:
    """What to say of a term whose gradient reaches no parameter of its first models."""
    term = terms.terms[name]
    learners = list(dict.fromkeys(ref.model for ref in term.first if not ref.is_data))
    texts = [ref.text for ref in term.first if not ref.is_data]
    if not any(p.requires_grad for model in learners for p in signals.models[model].parameters()):
        why = f"no parameter of {', '.join(learners)} learns, as it is frozen by name or by hand"
    elif not any(signals[text].requires_grad for text in texts):
        why = f"{', '.join(texts)} comes without a graph: it is detached, or nothing before it learns"
    else:
        one = [text for text in texts if 1 in (signals[text].shape[1:2] + signals[text].shape[-1:])]
        why = "the loss detaches it, or does not depend on it" + (f" as it has one class ({ONE_CLASS})" if one else "")
    own = isinstance(term.loss, nn.Module) and any(p.requires_grad for p in term.loss.parameters())
    return (
        f"term {name!r} ({repr(term)[9:-1]}) teaches nobody: expected a gradient for a parameter of "
        f"{', '.join(learners)}, got none, since {why}; tap a signal that learns, give a term that begins later, as "
        "where a callback unfreezes what it taps, a weight that is 0 until then, or say monitor=True for one that is "
        f"only watched{', whose own parameters learn all the same, as those of a probe' if own else ''}"
    )


def _means(terms: EvaluatedTerms, signals: SignalCapture, values: Mapping[str, Tensor]) -> dict[str, Mean]:
    """What terms on class indices are means of; those of validation, which may be no losses, are tried again."""
    found = {}
    for name, term in terms.terms.items():
        with suppress(Exception), torch.enable_grad():
            if name in values or terms._labels_of(term, signals) is not None:
                value = values[name] if name in values else terms._evaluate(name, term, signals, 0.0)
                found[name] = terms._mean_of(name, value, signals)
    return {name: mean for name, mean in found.items() if mean is not None}


def _ever_teaches(terms: EvaluatedTerms, name: str, signals: SignalCapture) -> bool:
    """The same, at any epoch of a loss that depends on it."""
    term = terms.terms[name]
    epochs = (0, *range(1, 100), 200, 500, 1000) if hasattr(term.loss, "set_epoch") else (0,)
    return any(terms._teaches(name, terms._evaluate(name, term, signals, epoch), signals) for epoch in epochs)


def _refuse(terms: EvaluatedTerms, idle: Sequence[str], signals: SignalCapture) -> None:
    """Raise for terms that teach nobody; warn of one whose weight begins at 0, as something may learn by then."""
    for name in idle:
        message = teaches_nobody(terms, name, signals)
        if terms.terms[name].weight_at(0.0):
            raise ValueError(message)
        rank_zero_warn(f"{message} (its weight is 0 at the start, and something may learn by then)")


def _wrong(terms: EvaluatedTerms, signals: SignalCapture) -> dict[tuple[str, str], str]:
    """Probabilities where a loss expects logits, and the other way round: what to say, by term and reference."""
    found = {}
    for name, term in terms.terms.items():
        arguments = terms._arguments(name, term, signals)
        sides = (term.first, term.second)
        modules = [[ref.module(signals.models) for ref in side if not ref.is_data] for side in sides]
        for side, place, fault in wrong_values(term.loss, arguments, modules):
            text, shape = sides[side][place].text, tuple(tensors_of(arguments[side])[place].shape)
            message = f"term {name!r} ({repr(term)[9:-1]}): {text!r} {shape} does not fit: {fault}"
            found[name, text] = f"{message}; leave the last activation of a network to its loss"
    return found


def _warn(wrong: Sequence[Mapping[tuple[str, str], str]], trained: Mapping[tuple[str, str], str] | None) -> None:
    """Warn of what is wrong, and say where the terms of training are right in training mode."""
    for number, found in enumerate(wrong):
        for place, message in found.items():
            alone = trained is not None and not number and place not in trained
            said = " (so it is in eval mode alone, which validation and deployment see; training does not)"
            rank_zero_warn(message + said * alone)


def _build_term(
    terms: EvaluatedTerms,
    name: str,
    term: LossTerm,
    signals: SignalCapture,
    models: Mapping[str, nn.Module],
    dataset_size: int | None,
) -> None:
    assert isinstance(term.loss, SizedLoss)
    arguments = terms._arguments(name, term, signals)
    example = Example(
        student=arguments[0],
        teacher=arguments[1],
        target=arguments[2] if len(arguments) > 2 else None,
        student_modules=tuple(ref.module(models) for ref in term.first if not ref.is_data),
        teacher_modules=tuple(ref.module(models) for ref in term.second if not ref.is_data),
        models=models,
        dataset_size=dataset_size,
    )
    try:
        term.loss.build(example)
    except (ValueError, IndexError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{describe(name, term, arguments)}: {reason(error, arguments)}") from error
    device = next((t.device for t in tensors_of(arguments[0])), None)
    term.loss.to(device)


def _each_captured(
    composers: Sequence[EvaluatedTerms],
    models: Mapping[str, nn.Module],
    run: Callable[[SignalCapture], object],
    modes: Sequence[tuple[nn.Module, bool]],
) -> list[SignalCapture]:
    """The signals of each composer: of one run in eval mode, or of the first, training's, of one in training mode."""
    try:
        return [_captured(composers, models, run)] * len(composers)
    except MissingPart as missing:
        others = [_captured(composers[1:], models, run)] * (len(composers) - 1) if composers[1:] else []
        now = [(part, part.training) for part, _ in modes]
        _set_modes(modes)
        try:
            trained = _captured(composers[:1], models, run)
        except RuntimeError:
            raise missing from None
        finally:
            _set_modes(now)
        return [trained, *others]


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for part, mode in modes:
        part.training = mode


def _captured(
    composers: Sequence[EvaluatedTerms], models: Mapping[str, nn.Module], run: Callable[[SignalCapture], object]
) -> SignalCapture:
    references = {ref.text: ref for composer in composers for ref in composer.references}
    clone = frozenset().union(*(composer._clone for composer in composers))

    def captured() -> SignalCapture:
        signals = SignalCapture(models, references.values(), clone=clone, answers=composers[0].answers)
        with on_trial(models.values()), signals:
            run(signals)
        return signals

    try:
        with torch.enable_grad():
            return captured()
    except RuntimeError:  # networks whose eval mode is written for no_grad, such as a detector's post-processing
        return captured()
