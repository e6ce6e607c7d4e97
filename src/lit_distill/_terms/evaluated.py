"""The terms of a composer, and the value of each on the signals of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_distill._inputs import left_as_given
from lit_distill._terms.checks import expected_of, found_nothing, require_classes
from lit_distill._terms.graph import Mean, mean_of, teaches
from lit_distill._terms.positions import are_tokens_of_classes, at_positions
from lit_distill.losses._grids import on_grid, require_tokens
from lit_distill.losses._numerics import first_of
from lit_distill.losses.base import LabelRule, Signal, labelled_rows, tensors_of
from lit_distill.signals import GROUND_TRUTH, Reference, SignalCapture
from lit_distill.structures import Answer
from lit_distill.terms import LossTerm, aligned_in_time, describe, term_from_mapping


class EvaluatedTerms(nn.Module):
    """Named terms before their weights; :class:`lit_distill.LossComposer` has the arguments and errors."""

    def __init__(
        self,
        terms: Mapping[str, LossTerm | Mapping[str, Any]],
        *,
        unlabelled: bool | Callable[[Tensor], Tensor] = False,
        answers: Mapping[str, Answer] | None = None,
    ) -> None:
        super().__init__()
        self.unlabelled = unlabelled
        self.answers = dict(answers or {})
        if not terms:
            raise ValueError("a LossComposer needs at least one term, such as {'ce': LossTerm(…)}")
        self.terms: dict[str, LossTerm] = {}
        self.losses = nn.ModuleDict()
        self._clone: frozenset[str] = frozenset()
        self._checked: set[str] = set()
        self.means: dict[str, Mean] = {}
        """By term: what its loss is the mean of, where it is one over class indices, as a trial or first step saw."""
        for name, given in terms.items():
            term = given if isinstance(given, LossTerm) else term_from_mapping(name, given)
            self.terms[name] = term
            if isinstance(term.loss, nn.Module):
                if "." in name or hasattr(nn.ModuleDict, name):
                    raise ValueError(
                        f"{name!r} cannot name a term: choose a name without dots, not a ModuleDict method"
                    )
                self.losses[name] = term.loss
        unique = {ref.text: ref for term in self.terms.values() for ref in term.references}
        self.references: tuple[Reference, ...] = tuple(unique.values())
        self.model_names = frozenset(ref.model for ref in self.references if not ref.is_data)
        """The names of the models that some term refers to."""
        taught = [term for term in self.terms.values() if not term.monitor]
        self.taught_names = frozenset(ref.model for term in taught for ref in term.references if not ref.is_data)
        """The same without terms that only watch."""

    def check(self, models: Mapping[str, nn.Module]) -> None:
        """Raise ValueError, naming the term, if a reference names no module of ``models``."""
        for name, term in self.terms.items():
            for ref in term.references:
                if not ref.is_data:
                    try:
                        ref.module(models)
                    except ValueError as error:
                        raise ValueError(f"term {name!r}: {error}") from None

    def values(
        self,
        signals: SignalCapture,
        target: Tensor | None = None,
        *,
        index: Tensor | None = None,
        batch: Any = None,
        epoch: float = 0.0,
    ) -> dict[str, Tensor]:
        """Every term before its weight, each with its own graph; arguments and errors are those of a call."""
        self.put_data(signals, target, index, batch)
        return {name: self._evaluate(name, term, signals, epoch) for name, term in self.terms.items()}

    @property
    def cloned(self) -> frozenset[str]:
        """Texts of the references that are cloned at their tap, as something later changes them in place."""
        return self._clone

    def evaluate(self, name: str, signals: SignalCapture, epoch: float = 0.0) -> Tensor:
        """The value of one term before its weight, on signals that hold what the batch gives."""
        return self._evaluate(name, self.terms[name], signals, epoch)

    def set_epoch(self, name: str, epoch: float) -> None:
        """Give the fractional epoch to the loss of a term that depends on it."""
        set_epoch = getattr(self.terms[name].loss, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def shapes(self, name: str, signals: SignalCapture) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that a term really gets, by reference; :meth:`values` put the batch's own ones."""
        term = self.terms[name]
        signal = self._arguments(name, term, signals)
        return {
            ref.text: tuple(tensor.shape)
            for references, given in zip((term.first, term.second, term.target), signal, strict=False)
            for ref, tensor in zip(references, tensors_of(given), strict=True)
        }

    def labelled(self, loss: Callable[..., Any] | None, signals: SignalCapture) -> Tensor | None:
        """Positions of the samples that have a label as a loss reads the target; None where all have."""
        if not self.unlabelled or GROUND_TRUTH not in signals or not signals[GROUND_TRUTH].ndim:
            return None
        rule = self.unlabelled if callable(self.unlabelled) else LabelRule("classes") if loss is None else None
        rule = LabelRule.of(loss) if rule is None and loss is not None else rule
        if rule not in signals.labelled:
            signals.labelled[rule] = labelled_rows(signals[GROUND_TRUTH], rule)
        return signals.labelled[rule]

    def takes_for_classes(self, name: str) -> bool:
        """Whether a loss of a known kind takes an output, by its reference or its model, for one logit a class."""
        return any(
            name in (ref.text, None if ref.path else ref.model)
            and (expects := expected_of(term.loss)) is not None
            and expects != "alike"
            for term in self.terms.values()
            for ref in (*term.first, *term.second)
        )

    def put_data(self, signals: SignalCapture, target: Any, index: Tensor | None, batch: Any) -> None:
        """Give what comes with the batch to the signals of a step."""
        signals.put_batch(target, index, batch, self.references)
        signals.labelled.clear()
        signals.counted.clear()

    def _rows_of(self, term: LossTerm, signals: SignalCapture) -> Tensor | None:
        return self.labelled(term.loss, signals) if term.needs_labels else None

    def _samples_of(self, name: str, signals: SignalCapture, *, computed: bool) -> int | Tensor | None:
        if computed and name in signals.counted:
            return signals.counted[name]
        rows = self._rows_of(self.terms[name], signals) if computed else None
        return 0 if not computed else None if rows is None else len(rows)

    def _teaches(self, name: str, value: Tensor, signals: SignalCapture) -> bool:
        """Whether the gradient of a term reaches what its first signals depend on, or nobody expects that it does."""
        term = self.terms[name]
        if term.monitor or (term.has_fixed_weight and not term.weight) or found_nothing(value):
            return True
        first, others = self._of_models(term, signals)
        return teaches(value, first, [others])

    def _of_models(self, term: LossTerm, signals: SignalCapture) -> tuple[list[Tensor], list[Tensor]]:
        """The first signals of a term, and the others, that models give."""
        sides = (term.first, (*term.second, *term.target))
        first, others = ([signals[ref.text] for ref in side if not ref.is_data] for side in sides)
        return first, others

    def _labels_of(self, term: LossTerm, signals: SignalCapture) -> Tensor | None:
        """The class indices that a term is given, of the samples that have one."""
        given = [signals[ref.text] for ref in (*term.second, *term.target) if ref.text in signals and ref.is_data]
        labels = first_of([each for each in given if not each.is_floating_point() and each.ndim])
        rows = None if labels is None else self._rows_of(term, signals)
        return labels if labels is None or rows is None else labels[rows]

    def _count(self, name: str, signals: SignalCapture) -> None:
        """Note how many labels a term is the mean of, where they may be others than the samples."""
        mean = self.means.get(name)
        labels = None if mean is None or name in signals.counted else self._labels_of(self.terms[name], signals)
        if mean is not None and labels is not None and (labels.ndim > 1 or not self.training or mean.is_selective):
            signals.counted[name] = mean.of_labels(labels)

    def _mean_of(self, name: str, value: Tensor, signals: SignalCapture) -> Mean | None:
        labels = self._labels_of(self.terms[name], signals)
        return None if labels is None else mean_of(value, labels, self._of_models(self.terms[name], signals))

    def _evaluate(self, name: str, term: LossTerm, signals: SignalCapture, epoch: float) -> Tensor:
        arguments, mask = self._given(name, term, signals)
        if not torch.compiler.is_compiling():
            self.set_epoch(name, epoch)
        rows = self._rows_of(term, signals)
        if rows is not None and not len(rows):
            return _zero(term, arguments)
        masks = {} if mask is None else {"mask": mask}
        if term.selects and (mask is None or getattr(term.loss, "expects_logits", False)):
            signals.counted[name] = len(tensors_of(arguments[0])[0]) if mask is None else mask.detach().sum()
            if not signals.counted[name] and mask is None:
                return _zero(term, arguments)
        if torch.compiler.is_compiling():  # what was checked in a step before, and tried on an example batch
            value = term.loss(*arguments, **masks).reshape(())
            self._count(name, signals)
            return value
        try:
            with left_as_given("the loss", arguments, "other terms and callbacks see the same tensors; make a new one"):
                if name not in self._checked:
                    require_classes(term.loss, arguments)
                value = term.loss(*arguments, **masks)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, IndexError, RuntimeError, TypeError, AttributeError) as error:
            hint = _of_other_classes(term, arguments)
            raise ValueError(f"{describe(name, term, arguments)}: {reason(error, arguments)}{hint}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{describe(name, term, arguments)}: the loss must give one number, got {got}")
        self._count(name, signals)
        return value.reshape(())

    def _arguments(self, name: str, term: LossTerm, signals: SignalCapture) -> tuple[Signal, ...]:
        return self._given(name, term, signals)[0]

    def _given(self, name: str, term: LossTerm, signals: SignalCapture) -> tuple[tuple[Signal, ...], Tensor | None]:
        """What the loss of a term takes, and the mask where it takes one."""
        try:
            first = signals.resolve(term.first, as_list=term.first_is_list)
            second = signals.resolve(term.second, as_list=term.second_is_list)
            if term.monitor:
                first = _detach(first)
            if term.detach or term.monitor:
                second = _detach(second)
            if term.align_time:
                first, second = aligned_in_time(first, second, clips=_clips_of(signals))
            if term.tokens is not None:
                require_tokens(first, second)
                first, second = (on_grid(signal, term.sides) for signal in (first, second))
            given: tuple[Signal, ...] = (first, second)
            if term.target:
                given = (first, second, signals.resolve(term.target, as_list=term.target_is_list))
            if (rows := self._rows_of(term, signals)) is not None:
                samples = len(signals[GROUND_TRUTH])
                given = tuple(_rows(signal, rows, samples) for signal in given)
            if not (term.selects or term.shift or are_tokens_of_classes(term.loss, given)):
                return given, None
            return at_positions(term, given, signals, rows)
        except ValueError as error:
            raise ValueError(f"term {name!r}: {error}") from None


def _clips_of(signals: SignalCapture) -> int | None:
    return len(signals[GROUND_TRUTH]) if GROUND_TRUTH in signals.captured() else None


def _rows(signal: Signal, rows: Tensor, samples: int) -> Signal:
    """The rows of the labelled samples."""
    if not isinstance(signal, Tensor):
        return [tensor for part in signal if isinstance(tensor := _rows(part, rows, samples), Tensor)]
    if not signal.ndim or len(signal) != samples:
        raise ValueError(
            f"a term that names {GROUND_TRUTH} is evaluated on the labelled samples of a batch, so its signals must "
            f"have a row for each of the {samples} samples, got {tuple(signal.shape)}: tap a signal that has (the "
            "logits, the embedding before the classifier), or train this term without samples that have no label"
        )
    return signal[rows]


def reason(error: Exception, arguments: tuple[Signal, ...]) -> str:
    """Why a loss refuses its signals; what Python says of a list in the place of a tensor names no remedy."""
    if isinstance(error, (AttributeError, TypeError)) and not all(isinstance(one, Tensor) for one in arguments):
        return (
            "the loss takes one tensor for each reference, and got a list: name one reference, give each of the list a "
            f"term of its own, or average several teachers as one model, lit_distill.models.Ensemble ({error})"
        )
    if isinstance(error, AttributeError):
        raise error
    return str(error)


def _of_other_classes(term: LossTerm, arguments: tuple[Signal, ...]) -> str:
    """What to do where a loss on logits refuses a teacher of other classes than the learner has."""
    first, second = arguments[:2]
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or expected_of(term.loss) is None:
        return ""
    if first.ndim != second.ndim or first.shape == second.shape or term.second[0].is_data:
        return ""
    teacher = term.second[0].model
    return (
        f"; a trained {teacher} of other classes teaches by those that the data has, in its order, "
        f"classes={{{teacher!r}: [<index>, …]}}"
    )


def _zero(term: LossTerm, arguments: tuple[Signal, ...]) -> Tensor:
    """0, with gradients of 0 to all that the loss would teach: DDP waits for each of them."""
    own = list(term.loss.parameters()) if isinstance(term.loss, nn.Module) else []
    taught = [*tensors_of(arguments[0]), *tensors_of(arguments[1]), *own]
    return torch.stack([x.flatten()[:0].sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in taught]).sum()


def _detach(signal: Signal) -> Signal:
    return signal.detach() if isinstance(signal, Tensor) else [tensor.detach() for tensor in signal]
