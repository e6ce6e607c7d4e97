"""LossComposer: the weighted losses between named signals, summed to the total of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._terms.compiled import Compilation, CompiledStep
from lit_distill._terms.evaluated import EvaluatedTerms
from lit_distill._terms.ignored import ignored_positions
from lit_distill._terms.tryout import teaches_nobody, try_terms
from lit_distill.balance import Balancer
from lit_distill.losses._numerics import first_of
from lit_distill.signals import Reference, SignalCapture
from lit_distill.structures import Answer
from lit_distill.terms import LossTerm, weight_error

_ENOUGH_NOTHING = 20


@dataclass(frozen=True)
class ComposedLoss:
    """What one step's losses came to.

    Attributes:
        total: the weighted sum, and what a balance adds to it; call ``backward`` on it.
        names: the terms, in order.
        terms: every term before its weight, each with its own graph; 0 where it was not computed.
        values: the same, detached, shape (terms,).
        weights: the weight of every term at this epoch, shape (terms,).
        samples: of each term, how many samples it is the mean of where it is not all of the batch, or how many
            positions where it leaves some out; 0 where it was not computed, since its weight is 0, or no sample has a
            label.
        skipped: the terms that were not computed, since their weight is 0.
    """

    total: Tensor
    names: tuple[str, ...]
    terms: tuple[Tensor, ...]
    values: Tensor
    weights: Tensor
    samples: tuple[int | Tensor | None, ...] = ()
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


class LossComposer(EvaluatedTerms):
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
        answers: where the answers of models stand in the structures that they give, by name:
            ``{"Teacher": Answer(("out",))}``; see :class:`lit_distill.structures.Answer`.

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
        answers: Mapping[str, Answer] | None = None,
    ) -> None:
        super().__init__(terms, unlabelled=unlabelled, answers=answers)
        self._nothing: dict[str, int] = {}
        self._last_weights: tuple[tuple[object, ...], Tensor] | None = None
        self.balance = balance
        if balance is not None:
            balance.build(list(self.terms))

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
            needed = {ref.model for name in self.computed_at(epoch, watched) for ref in self.terms[name].references}
            references = [ref for ref in references if ref.model in needed]
        return SignalCapture(models, references, clone=self._clone, answers=self.answers)

    def compiled(
        self,
        models: Mapping[str, nn.Module],
        *,
        run: Callable[[str, Any], Any] | None = None,
        compile: str | Mapping[str, Any] = "step",
    ) -> Callable[..., SignalCapture]:
        """What runs the models of a step, and the terms with them, as one graph of ``torch.compile``.

        It takes the place of :meth:`capture`: called with what the models take, and then as the composer is, it gives
        the signals for the composer. The graph is made when two batches in a row have the same shapes; batches of other
        shapes, such as a smaller last one, run eagerly. Models that are not to learn run without gradients.

        Args:
            models: the named models.
            run: runs one of them, given its name and the inputs; by default ``models[name](inputs)``.
            compile: ``"step"``, or ``"models"`` for a graph without the terms; a mapping adds arguments of
                ``torch.compile``.

        Raises:
            ValueError: ``compile`` is something else, or there is no C++ compiler for it.

        Example:
            >>> student = nn.Linear(4, 3)
            >>> composer = LossComposer({"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))})
            >>> step = composer.compiled({"Student": student})
            >>> x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
            >>> signals = step(x, target=y)
            >>> composer(signals, target=y).total.backward()
        """
        how = Compilation.of(compile)
        if how is None:
            raise ValueError(f"compiled makes a step by compile=step or compile=models, got {compile!r}")
        how.require_compiler()

        def run_one(name: str, inputs: Any) -> None:
            learns = any(p.requires_grad for p in models[name].parameters())
            with nullcontext() if learns else torch.no_grad():
                models[name](inputs) if run is None else run(name, inputs)

        made = CompiledStep(self, models, run_one, how)

        def step(
            inputs: Any,
            target: Any = None,
            *,
            index: Tensor | None = None,
            batch: Any = None,
            epoch: float = 0.0,
            watched: Collection[str] = (),
        ) -> SignalCapture:
            signals = self.capture(models, epoch=epoch, watched=watched)
            self.put_data(signals, target, index, batch)
            names = [name for name in models if signals.texts_of(name)]
            computed = self.computed_at(epoch, watched) if how.scope == "step" else None
            graph = made.graph(inputs, signals, names, computed)
            if graph is not None:
                graph(epoch)
                return signals
            with signals:
                for name in names:
                    run_one(name, inputs)
            return signals

        return step

    def forward(
        self,
        signals: SignalCapture,
        target: Tensor | None = None,
        *,
        index: Tensor | None = None,
        batch: Any = None,
        epoch: float = 0.0,
        watched: Collection[str] = (),
    ) -> ComposedLoss:
        """The weighted sum of all terms.

        Args:
            signals: what :meth:`capture` captured in this step.
            target: the signal ``GroundTruth``: class indices (B,) or probabilities (B, C), or what the task has.
            index: the signal ``SampleIndex``: positions (B,) of the samples in their data set.
            batch: what ``Batch.<key>`` names: a mapping, tuple or object.
            epoch: the fractional epoch, for schedules.
            watched: names of terms whose values are wanted even where their weight is 0; they have no graph then.

        Raises:
            ValueError: a signal is missing or a loss refuses its signals; names the term, references and shapes.
        """
        self.put_data(signals, target, index, batch)
        set_to = self._weights(epoch)
        if signals.computed is not None:
            signals.counted.update(signals.computed.counted)
            return self._summed(signals.computed.values, set_to, signals)
        terms: dict[str, Tensor] = {}
        for name, taught in self.computed_at(epoch, watched).items():
            with nullcontext() if taught else torch.no_grad():
                terms[name] = self._evaluate(name, self.terms[name], signals, epoch)
        if self.training and torch.is_grad_enabled() and len(self._checked) < len(self.terms):
            self._check_first_step(terms, signals, epoch)
        return self._summed(terms, set_to, signals)

    def _summed(self, terms: Mapping[str, Tensor], set_to: Mapping[str, float], signals: SignalCapture) -> ComposedLoss:
        """The loss of the values of the terms that were computed."""
        value = first_of(terms.values())
        zero = None if value is None else value.new_zeros(())
        untaught = [] if len(terms) == len(self.terms) and all(set_to.values()) else self._untaught(set_to, signals)
        if zero is None:
            parameter = first_of(untaught)
            zero = torch.zeros((), device=None if parameter is None else parameter.device)
        stacked = torch.stack([terms.get(name, zero) if set_to[name] else zero for name in self.terms])
        weights, penalty = self._weights_at(set_to, stacked), None
        if self.balance is not None and self.training:
            weights, penalty = self.balance(weights)
        total = torch.dot(stacked, weights) if penalty is None else torch.dot(stacked, weights) + penalty
        if untaught and torch.is_grad_enabled():
            total = total + zero_gradients(zero, untaught)
        every = tuple(terms.get(name, zero) for name in self.terms)
        values = stacked.detach() if all(set_to.values()) else torch.stack([term.detach() for term in every])
        samples = tuple(self._samples_of(name, signals, computed=name in terms) for name in self.terms)
        skipped = frozenset(name for name in self.terms if name not in terms)
        return ComposedLoss(total, tuple(self.terms), every, values, weights.detach(), samples, skipped)

    def build(
        self,
        models: Mapping[str, nn.Module],
        inputs: Any,
        target: Tensor | None = None,
        *,
        index: Tensor | None = None,
        batch: Any = None,
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
            batch: the example's further entries.
            dataset_size: number of training samples, for memory banks.
            run: runs a model, given its name and the inputs; by default ``models[name](inputs)``.

        Returns:
            The captured signals of the example.
        """

        def run_each(signals: SignalCapture) -> None:
            for name in sorted(self.model_names):
                models[name](inputs) if run is None else run(name, inputs)

        signals = try_terms([self], models, target, index=index, batch=batch, dataset_size=dataset_size, run=run_each)
        if text := ignored_positions([self], signals, target, inputs, batch):
            rank_zero_warn(text)
        return signals

    def _check_first_step(self, values: Mapping[str, Tensor], signals: SignalCapture, epoch: float) -> None:
        """Once for each term, in the first training step in which it has a weight: raise where it teaches nobody."""
        for name, value in values.items():
            term = self.terms[name]
            if name in self._checked or not (term.monitor or term.weight_at(epoch)):
                continue
            if name not in self.means and (mean := self._mean_of(name, value, signals)) is not None:
                self.means[name] = mean
                self._count(name, signals)
            if self._teaches(name, value, signals):
                if value.requires_grad or not self._is_taught(term, epoch):
                    self._checked.add(name)
                else:
                    self._count_nothing(name, signals)
            elif not hasattr(term.loss, "set_epoch"):  # of which a trial has seen whether it ever teaches
                raise ValueError(teaches_nobody(self, name, signals))

    def _is_taught(self, term: LossTerm, epoch: float) -> bool:
        return not term.monitor and bool(term.weight_at(epoch))

    def _count_nothing(self, name: str, signals: SignalCapture) -> None:
        """Once a loss was a constant 0 in so many first steps, say so, and look no more."""
        self._nothing[name] = self._nothing.get(name, 0) + 1
        if self._nothing[name] == _ENOUGH_NOTHING:
            self._checked.add(name)
            rank_zero_warn(
                f"{teaches_nobody(self, name, signals)} (it was a constant 0 in each of its first {_ENOUGH_NOTHING} "
                "training steps, as a loss is that finds nothing to compare)"
            )

    def computed_at(self, epoch: float, watched: Collection[str] = ()) -> dict[str, bool]:
        """The terms that are computed at a fractional epoch, and whether each teaches or is only looked at."""
        weights = self._weights(epoch).items()
        return {name: bool(weight) for name, weight in weights if weight or self._watches(name, watched)}

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
