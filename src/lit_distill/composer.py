"""LossComposer: the weighted losses between named signals, summed to the total of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._inputs import left_as_given
from lit_distill._term_checks import require_classes, teaches, wrong_values
from lit_distill._trial import on_trial
from lit_distill.balance import Balancer
from lit_distill.losses.base import Example, LabelRule, Signal, SizedLoss, labelled_rows, tensors_of
from lit_distill.signals import GROUND_TRUTH, SAMPLE_INDEX, Reference, SignalCapture
from lit_distill.terms import LossTerm, aligned_in_time, describe, term_from_mapping, weight_error


@dataclass(frozen=True)
class ComposedLoss:
    """What one step's losses came to.

    Attributes:
        total: the weighted sum, and what a balance adds to it; call ``backward`` on it.
        names: the terms, in order.
        terms: every term before its weight, each with its own graph; 0 where it was not computed.
        values: the same, detached, shape (terms,).
        weights: the weight of every term at this epoch, shape (terms,).
        samples: of each term, how many samples it is the mean of where it is not all of the batch; 0 where it was not
            computed, since its weight is 0, or no sample has a label.
        skipped: the terms that were not computed, since their weight is 0.
    """

    total: Tensor
    names: tuple[str, ...]
    terms: tuple[Tensor, ...]
    values: Tensor
    weights: Tensor
    samples: tuple[int | None, ...] = ()
    skipped: frozenset[str] = frozenset()

    @property
    def unweighted(self) -> dict[str, Tensor]:
        """Every term that was computed, before its weight."""
        return self._computed(self.values)

    @property
    def weighted(self) -> dict[str, Tensor]:
        """Every term that was computed, times its weight; they sum to the total, but for what a balance adds."""
        return self._computed(torch.where(self.weights == 0, 0, self.values * self.weights))

    def _computed(self, values: Tensor) -> dict[str, Tensor]:
        named = zip(self.names, values, strict=True)
        return {name: value for name, value in named if name not in self.skipped}


class LossComposer(nn.Module):
    """Resolves the pairs of its terms and sums their weighted losses.

    It needs no DistillModule: in your own training step, open :meth:`capture`, run your models, call the composer.

    Args:
        terms: a :class:`LossTerm` a name, or a mapping of its arguments.
        balance: makes the weights of training steps from those that the terms are set to, such as
            :class:`lit_distill.balance.Uncertainty`; one that measures gradients (``GradientNorm``) is given them by
            DistillModule, or by you: ``balance.observe(result.terms, parameters, weights=result.weights)`` before
            ``backward``.
        unlabelled: whether samples of a batch may have no label. A sample of whole numbers (a class index, a mask) has
            none where all of them are below 0 or the loss's ``ignore_index``; one of floating point where all are -1 or
            NaN, for losses on class probabilities also where all are 0. A row of zeros is a label for multi-label
            losses, -1 for those whose labels are -1 and 1. For other data, a function from the target to booleans (B,),
            where a sample has a label. A term that names ``GroundTruth`` then is evaluated on the rows of the labelled
            ones alone, its mean is over them, and where there is none it is 0 with gradients of 0; the other terms see
            all rows.
            Not looked for otherwise, since that waits for the device once a step.

    A term whose weight is 0 at this epoch is not computed, so that it may be infinite, and models that no other term
    needs need not run; what it would teach gets gradients of 0.

    Raises:
        ValueError: no terms, a term's name that cannot be a submodule's, or a weight below 0 to be balanced.

    Example:
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> composer = LossComposer({
        ...     "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        ...     "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.1),
        ... })
        >>> x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
        >>> with composer.capture({"Student": student, "Teacher": teacher}) as signals:
        ...     _ = student(x), teacher(x)
        >>> result = composer(signals, target=y)
        >>> result.total.backward()
        >>> sorted(result.unweighted)
        ['ce', 'mse']
    """

    __call__: Callable[..., ComposedLoss]

    def __init__(
        self,
        terms: Mapping[str, LossTerm | Mapping[str, Any]],
        *,
        balance: Balancer | None = None,
        unlabelled: bool | Callable[[Tensor], Tensor] = False,
    ) -> None:
        super().__init__()
        self.unlabelled = unlabelled
        if not terms:
            raise ValueError("a LossComposer needs at least one term, such as {'ce': LossTerm(…)}")
        self.terms: dict[str, LossTerm] = {}
        self.losses = nn.ModuleDict()
        self._clone: frozenset[str] = frozenset()
        self._checked: set[str] = set()
        self._last_weights: tuple[tuple[object, ...], Tensor] | None = None
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
        self.balance = balance
        if balance is not None:
            balance.build(list(self.terms))

    def check(self, models: Mapping[str, nn.Module]) -> None:
        """Raise ValueError, naming the term, if a reference names no module of ``models``."""
        for name, term in self.terms.items():
            for ref in term.references:
                if not ref.is_data:
                    try:
                        ref.module(models)
                    except ValueError as error:
                        raise ValueError(f"term {name!r}: {error}") from None

    def capture(
        self, models: Mapping[str, nn.Module], *, epoch: float | None = None, watched: Collection[str] = ()
    ) -> SignalCapture:
        """A context in which running the models captures every signal that a term refers to.

        Args:
            models: the named models.
            epoch: the fractional epoch, to leave out the models that no term needs whose weight is not 0 then.
            watched: terms that are computed all the same.
        """
        references: Iterable[Reference] = self.references
        if epoch is not None:
            computed = {name for name, weight in self._weights(epoch).items() if weight or self._watches(name, watched)}
            needed = {ref.model for name in computed for ref in self.terms[name].references}
            references = [ref for ref in references if ref.model in needed]
        return SignalCapture(models, references, clone=self._clone)

    def forward(
        self,
        signals: SignalCapture,
        target: Tensor | None = None,
        *,
        index: Tensor | None = None,
        epoch: float = 0.0,
        watched: Collection[str] = (),
    ) -> ComposedLoss:
        """The weighted sum of all terms.

        Args:
            signals: what :meth:`capture` captured in this step.
            target: the signal ``GroundTruth``: class indices (B,) or probabilities (B, C), or what the task has.
            index: the signal ``SampleIndex``: positions (B,) of the samples in their data set.
            epoch: the fractional epoch, for schedules.
            watched: names of terms whose values are wanted even where their weight is 0; they have no graph then.

        Raises:
            ValueError: a signal is missing or a loss refuses its signals; names the term, references and shapes.
        """
        self._put_data(signals, target, index)
        set_to = self._weights(epoch)
        terms: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if set_to[name]:
                terms[name] = self._evaluate(name, term, signals, epoch)
            elif self._watches(name, watched):
                with torch.no_grad():
                    terms[name] = self._evaluate(name, term, signals, epoch)
        if self.training and torch.is_grad_enabled() and len(self._checked) < len(self.terms):
            self._check_first_step(terms, signals, epoch)
        zero = next((value.new_zeros(()) for value in terms.values()), None)
        untaught = [] if len(terms) == len(self.terms) and all(set_to.values()) else self._untaught(set_to, signals)
        if zero is None:
            zero = torch.zeros((), device=next((p.device for p in untaught), None))
        stacked = torch.stack([terms.get(name, zero) if set_to[name] else zero for name in self.terms])
        weights, penalty = self._weights_at(set_to, stacked), None
        if self.balance is not None and self.training:
            weights, penalty = self.balance(weights)
        total = torch.dot(stacked, weights) if penalty is None else torch.dot(stacked, weights) + penalty
        if untaught and torch.is_grad_enabled():
            total = total + zero_gradients(zero, untaught)
        every = tuple(terms.get(name, zero) for name in self.terms)
        values = stacked.detach() if all(set_to.values()) else torch.stack([term.detach() for term in every])
        samples = tuple(self._samples(name, term, signals, computed=name in terms) for name, term in self.terms.items())
        skipped = frozenset(name for name in self.terms if name not in terms)
        return ComposedLoss(total, tuple(self.terms), every, values, weights.detach(), samples, skipped)

    def values(
        self,
        signals: SignalCapture,
        target: Tensor | None = None,
        *,
        index: Tensor | None = None,
        epoch: float = 0.0,
    ) -> dict[str, Tensor]:
        """Every term before its weight, each with its own graph; arguments and errors are those of :meth:`forward`."""
        self._put_data(signals, target, index)
        return {name: self._evaluate(name, term, signals, epoch) for name, term in self.terms.items()}

    def _check_first_step(self, values: Mapping[str, Tensor], signals: SignalCapture, epoch: float) -> None:
        """Once for each term, in the first training step in which it has a weight: raise where it teaches nobody."""
        for name, value in values.items():
            term = self.terms[name]
            if name in self._checked or not (term.monitor or term.weight_at(epoch)):
                continue
            if self._teaches(name, value, signals):
                self._checked.add(name)
            elif not hasattr(term.loss, "set_epoch"):  # of which a trial has seen whether it ever teaches
                raise ValueError(self._teaches_nobody(name, signals))

    def _teaches(self, name: str, value: Tensor, signals: SignalCapture) -> bool:
        """Whether the gradient of a term reaches what its first signals depend on, or nobody expects that it does."""
        term = self.terms[name]
        if term.monitor or (term.has_fixed_weight and not term.weight):
            return True
        return teaches(value, [signals[ref.text] for ref in term.first if not ref.is_data])

    def _ever_teaches(self, name: str, signals: SignalCapture) -> bool:
        """The same, at any epoch of a loss that depends on it."""
        term = self.terms[name]
        epochs = (0, *range(1, 100), 200, 500, 1000) if hasattr(term.loss, "set_epoch") else (0,)
        return any(self._teaches(name, self._evaluate(name, term, signals, epoch), signals) for epoch in epochs)

    def _teaches_nobody(self, name: str, signals: SignalCapture) -> str:
        """What to say of a term whose gradient reaches no parameter of its first models."""
        term = self.terms[name]
        learners = list(dict.fromkeys(ref.model for ref in term.first if not ref.is_data))
        texts = [ref.text for ref in term.first if not ref.is_data]
        if not any(p.requires_grad for model in learners for p in signals.models[model].parameters()):
            why = f"no parameter of {', '.join(learners)} learns, as it is frozen by name or by hand"
        elif not any(signals[text].requires_grad for text in texts):
            why = f"{', '.join(texts)} comes without a graph: it is detached, or nothing before it learns"
        else:
            why = "the loss detaches it, or does not depend on it"
        return (
            f"term {name!r} ({repr(term)[9:-1]}) teaches nobody: expected a gradient for a parameter of "
            f"{', '.join(learners)}, got none, since {why}; tap a signal that learns, give a term that begins later a "
            "weight that is 0 until then, or say monitor=True for one that is only watched"
        )

    def _refuse(self, idle: Sequence[str], signals: SignalCapture) -> None:
        """Raise for terms that teach nobody; warn of one whose weight begins at 0, as something may learn by then."""
        for name in idle:
            message = self._teaches_nobody(name, signals)
            if self.terms[name].weight_at(0.0):
                raise ValueError(message)
            rank_zero_warn(f"{message} (its weight is 0 at the start, and something may learn by then)")

    def _warn_of_values(self, signals: SignalCapture) -> None:
        """Warn of probabilities where a loss expects logits, and the other way round."""
        for name, term in self.terms.items():
            arguments = self._arguments(name, term, signals)
            sides = (term.first, term.second)
            modules = [[ref.module(signals.models) for ref in side if not ref.is_data] for side in sides]
            for side, place, fault in wrong_values(term.loss, arguments, modules):
                text, shape = sides[side][place].text, tuple(tensors_of(arguments[side])[place].shape)
                message = f"term {name!r} ({repr(term)[9:-1]}): {text!r} {shape} does not fit: {fault}"
                rank_zero_warn(f"{message}; leave the last activation of a network to its loss")

    def shapes(self, name: str, signals: SignalCapture) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that a term really gets, by reference; :meth:`values` put the batch's own ones."""
        term = self.terms[name]
        signal = self._arguments(name, term, signals)
        return {
            ref.text: tuple(tensor.shape)
            for references, given in zip((term.first, term.second, term.target), signal, strict=False)
            for ref, tensor in zip(references, tensors_of(given), strict=True)
        }

    def _put_data(self, signals: SignalCapture, target: Tensor | None, index: Tensor | None) -> None:
        if target is not None:
            signals.put(GROUND_TRUTH, target)
        signals.labelled.clear()
        if index is not None:
            signals.put(SAMPLE_INDEX, index)

    def labelled(self, loss: Callable[..., Any] | None, signals: SignalCapture) -> Tensor | None:
        """Positions of the samples that have a label as a loss reads the target; None where all have."""
        if not self.unlabelled or GROUND_TRUTH not in signals or not signals[GROUND_TRUTH].ndim:
            return None
        rule = self.unlabelled if callable(self.unlabelled) else LabelRule("classes") if loss is None else None
        rule = LabelRule.of(loss) if rule is None and loss is not None else rule
        if rule not in signals.labelled:
            signals.labelled[rule] = labelled_rows(signals[GROUND_TRUTH], rule)
        return signals.labelled[rule]

    def _rows_of(self, term: LossTerm, signals: SignalCapture) -> Tensor | None:
        return self.labelled(term.loss, signals) if term.needs_labels else None

    def _samples(self, name: str, term: LossTerm, signals: SignalCapture, *, computed: bool) -> int | None:
        rows = self._rows_of(term, signals) if computed else None
        return 0 if not computed else None if rows is None else len(rows)

    def _watches(self, name: str, watched: Collection[str]) -> bool:
        return name in watched or self.terms[name].monitor

    def _untaught(self, weights: Mapping[str, float], signals: SignalCapture) -> list[Tensor]:
        """The parameters that terms of weight 0 would teach: DDP waits for a gradient of each."""
        found: dict[int, Tensor] = {}
        for name in (name for name, weight in weights.items() if not weight):
            term = self.terms[name]
            sides = () if term.monitor else (*term.first, *(() if term.detach else term.second))
            learners = {ref.model for ref in sides if not ref.is_data}
            modules = [signals.models[learner] for learner in sorted(learners)]
            for module in (*modules, *([term.loss] if isinstance(term.loss, nn.Module) else [])):
                found |= {id(p): p for p in module.parameters() if p.requires_grad}
        return list(found.values())

    def _weights(self, epoch: float) -> dict[str, float]:
        """What the terms' weights are set to at a fractional epoch."""
        weights = {name: term.weight_at(epoch) for name, term in self.terms.items()}
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise weight_error(f"term {name!r}", weight, epoch)
            if self.balance is not None and weight < 0:
                raise ValueError(f"term {name!r}: its weight is {weight}, but only weights from 0 can be balanced")
        return weights

    def _weights_at(self, given: Mapping[str, float], like: Tensor) -> Tensor:
        """The weights as a tensor, made again only when one has changed: constants are moved to the device once."""
        weights = tuple(given.values())
        if self._last_weights is None or self._last_weights[0] != (weights, like.device, like.dtype):
            with torch.inference_mode(False):  # a validation may make it for the training that follows
                tensor = torch.tensor(weights, device=like.device, dtype=like.dtype)
            self._last_weights = ((weights, like.device, like.dtype), tensor)
        return self._last_weights[1]

    def _evaluate(self, name: str, term: LossTerm, signals: SignalCapture, epoch: float) -> Tensor:
        arguments = self._arguments(name, term, signals)
        set_epoch = getattr(term.loss, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        rows = self._rows_of(term, signals)
        if rows is not None and not len(rows):
            return _zero(term, arguments)
        try:
            with left_as_given("the loss", arguments, "other terms and callbacks see the same tensors; make a new one"):
                if name not in self._checked:
                    require_classes(term.loss, arguments)
                value = term.loss(*arguments)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, IndexError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{describe(name, term, arguments)}: {_reason(error, arguments)}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{describe(name, term, arguments)}: the loss must give one number, got {came}")
        return value.reshape(())

    def _arguments(self, name: str, term: LossTerm, signals: SignalCapture) -> tuple[Signal, ...]:
        try:
            first = signals.resolve(term.first, as_list=term.first_is_list)
            second = signals.resolve(term.second, as_list=term.second_is_list)
            if term.monitor:
                first = _detach(first)
            if term.detach or term.monitor:
                second = _detach(second)
            if term.align_time:
                first, second = aligned_in_time(first, second, clips=_clips_of(signals))
            given: tuple[Signal, ...] = (first, second)
            if term.target:
                given = (first, second, signals.resolve(term.target, as_list=term.target_is_list))
            if (rows := self._rows_of(term, signals)) is not None:
                samples = len(signals[GROUND_TRUTH])
                given = tuple(_rows(signal, rows, samples) for signal in given)
            return given
        except ValueError as error:
            raise ValueError(f"term {name!r}: {error}") from None

    def build(
        self,
        models: Mapping[str, nn.Module],
        inputs: Any,
        target: Tensor | None = None,
        *,
        index: Tensor | None = None,
        dataset_size: int | None = None,
        run: Callable[[str, Any], Any] | None = None,
    ) -> SignalCapture:
        """Try the terms on one example batch: size the losses that have parameters, find taps to clone, check shapes.

        Models and losses run in eval mode without gradients. Their modes, buffers and attributes are restored, and so
        are random states. Call it before the optimizer is made. Calling it again changes nothing.

        Args:
            models: the named models.
            inputs: what every model takes.
            target: the example's ground truth.
            index: the example's sample indices.
            dataset_size: number of training samples, for memory banks.
            run: runs a model, given its name and the inputs; by default ``models[name](inputs)``.

        Returns:
            The captured signals of the example.
        """

        def run_each(signals: SignalCapture) -> None:
            for name in sorted(self.model_names):
                models[name](inputs) if run is None else run(name, inputs)

        return build_composers([self], models, target, index=index, dataset_size=dataset_size, run=run_each)

    def _build_term(
        self,
        name: str,
        term: LossTerm,
        signals: SignalCapture,
        models: Mapping[str, nn.Module],
        dataset_size: int | None,
    ) -> None:
        assert isinstance(term.loss, SizedLoss)
        arguments = self._arguments(name, term, signals)
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
            raise ValueError(f"{describe(name, term, arguments)}: {_reason(error, arguments)}") from error
        device = next((t.device for t in tensors_of(arguments[0])), None)
        term.loss.to(device)


@torch.no_grad()
def build_composers(
    composers: Sequence[LossComposer],
    models: Mapping[str, nn.Module],
    target: Tensor | None,
    *,
    index: Tensor | None,
    dataset_size: int | None,
    run: Callable[[SignalCapture], object],
    check: Callable[[SignalCapture], None] | None = None,
) -> SignalCapture:
    """As :meth:`LossComposer.build`, for several composers on one capture, so that every model runs once.

    Models run a second time only where a tap turns out to be changed in place, or a loss gives a model new parts.
    ``run`` runs them, given the open capture; ``check`` looks at the captured signals before any loss is sized.
    """
    used = [models[name] for name in frozenset().union(*(composer.model_names for composer in composers))]
    modes = [(part, part.training) for module in (*used, *composers) for part in module.modules()]
    try:
        for module in (*used, *composers):
            module.eval()
        signals = _captured(composers, models, run)
        if in_place := signals.changed_in_place() - signals.cloned:
            for composer in composers:
                composer._clone |= in_place & {ref.text for ref in composer.references}
            signals = _captured(composers, models, run)
        if check is not None:
            check(signals)
        for composer in composers:
            composer._put_data(signals, target, index)
            for name, term in composer.terms.items():
                if isinstance(term.loss, SizedLoss):
                    composer._build_term(name, term, signals, models, dataset_size)
            composer.losses.eval()  # the parts that were just made
        if new := {part for module in used for part in module.modules()} - {part for part, _ in modes}:
            modes += [(part, part.training) for part in new]  # a loss has put them into a model: its signals differ now
            for module in used:
                module.eval()
            signals = _captured(composers, models, run)
        taught, never = composers[0], list[str]()
        with on_trial(composers):
            for composer in composers:
                given = signals if composer is taught else signals.detached()
                composer._put_data(given, target, index)
                with torch.set_grad_enabled(composer is taught):
                    values = {name: composer._evaluate(name, term, given, 0.0) for name, term in composer.terms.items()}
                if composer is taught:
                    idle = [name for name, value in values.items() if not composer._teaches(name, value, given)]
                composer._warn_of_values(given)
        if idle and not torch.is_inference_mode_enabled():  # in training mode it may teach all the same
            for part, mode in modes:
                part.training = mode
            with suppress(RuntimeError, ValueError), on_trial(composers), torch.enable_grad():
                trained = _captured(composers, models, run)
                taught._put_data(trained, target, index)
                never = [name for name in idle if not taught._ever_teaches(name, trained)]
            taught._refuse(never, signals)
    finally:
        for part, mode in modes:
            part.training = mode
        for composer in composers:
            composer.losses.train(composer.training)
    return signals


def _captured(
    composers: Sequence[LossComposer], models: Mapping[str, nn.Module], run: Callable[[SignalCapture], object]
) -> SignalCapture:
    references = {ref.text: ref for composer in composers for ref in composer.references}
    clone = frozenset().union(*(composer._clone for composer in composers))

    def captured() -> SignalCapture:
        with on_trial(models.values()), SignalCapture(models, references.values(), clone=clone) as signals:
            run(signals)
        return signals

    try:
        with torch.enable_grad():
            return captured()
    except RuntimeError:  # networks whose eval mode is written for no_grad, such as a detector's post-processing
        return captured()


def _clips_of(signals: SignalCapture) -> int | None:
    return len(signals[GROUND_TRUTH]) if GROUND_TRUTH in signals.captured() else None


def _rows(signal: Signal, rows: Tensor, samples: int) -> Signal:
    """The rows of the labelled samples."""
    if not isinstance(signal, Tensor):
        return [tensor for part in signal if isinstance(tensor := _rows(part, rows, samples), Tensor)]
    if not signal.ndim or len(signal) != samples:
        raise ValueError(
            f"a term that names {GROUND_TRUTH} is evaluated on the labelled samples of a batch, so its signals must "
            f"have a row for each of the {samples} samples, came {tuple(signal.shape)}: tap a signal that has (the "
            "logits, the embedding before the classifier), or train this term without samples that have no label"
        )
    return signal[rows]


def _reason(error: Exception, arguments: tuple[Signal, ...]) -> str:
    """Why a loss refuses its signals; what Python says of a list in the place of a tensor names no remedy."""
    if isinstance(error, (AttributeError, TypeError)) and not all(isinstance(one, Tensor) for one in arguments):
        return (
            "the loss takes one tensor for each reference, and got a list: name one reference, give each of the list a "
            f"term of its own, or average several teachers as one model, lit_distill.models.Ensemble ({error})"
        )
    if isinstance(error, AttributeError):
        raise error
    return str(error)


def _zero(term: LossTerm, arguments: tuple[Signal, ...]) -> Tensor:
    """0, with gradients of 0 to all that the loss would teach: DDP waits for each of them."""
    own = list(term.loss.parameters()) if isinstance(term.loss, nn.Module) else []
    taught = [*tensors_of(arguments[0]), *tensors_of(arguments[1]), *own]
    return torch.stack([x.flatten()[:0].sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in taught]).sum()


def _detach(signal: Signal) -> Signal:
    return signal.detach() if isinstance(signal, Tensor) else [tensor.detach() for tensor in signal]


def zero_gradients(zero: Tensor, of: Iterable[Tensor]) -> Tensor:
    """0, with gradients of 0 to those of these tensors that require one, whatever their values."""
    tensor: Tensor = _ZeroGradients.apply(zero, *(each for each in of if each.requires_grad))
    return tensor


class _ZeroGradients(torch.autograd.Function):
    """0, whose gradients are zeros whatever the values of the tensors."""

    @staticmethod
    def forward(ctx: Any, zero: Tensor, *tensors: Tensor) -> Tensor:
        ctx.tensors = tensors
        return zero.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *map(torch.zeros_like, ctx.tensors))
