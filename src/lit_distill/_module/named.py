"""Named models: which of them learn, what each sees of a batch, and the one place that runs them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._inputs import counted, left_as_given
from lit_distill._module.batches import BatchKeys, Unpacked, is_hugging_face, keywords_of, unpack_batch
from lit_distill._module.frozen import shared_tensors, warned_of_calls
from lit_distill._module.preflight import (
    Classes,
    Part,
    answers_of,
    as_modules,
    check_names,
    input_views,
    student_candidates,
)
from lit_distill._module.train_only import TrainOnly
from lit_distill._screen import few
from lit_distill._views import InputView, average_over_views
from lit_distill.signals import SignalCache, SignalCapture
from lit_distill.structures import WHOLE

_CLONE = (
    "the models after it and the callbacks would see another batch; let its forward make a new tensor (x = x.sub(…)), "
    "or override run_model and give {} a clone()"
)


class NamedModels(LightningModule):
    """The part of :class:`lit_distill.DistillModule` that holds the models and runs them; see there for arguments."""

    def __init__(
        self,
        models: Mapping[str, nn.Module | Callable[..., Any]],
        *,
        frozen: Collection[str],
        student: str | None,
        candidates: Collection[str] | None,
        inputs: Mapping[str, InputView | Mapping[str, Any]] | None,
        train_only: Collection[str],
        answer: Part | Mapping[str, Part] | None,
        classes: Mapping[str, Classes] | None,
        batch: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        modules = as_modules(models)
        check_names(modules, frozen)
        self.models = nn.ModuleDict(modules)
        self.frozen = tuple(sorted(frozen))
        self.moving: set[str] = set()
        """Frozen models that a callback updates, such as an EMA teacher: checkpoints hold them."""
        self.candidates = student_candidates(modules, frozen, student, candidates)
        """Names of the models that may be the student: one, or several for ``student="best"``."""
        self.student = self.candidates[0]
        """Name of the deployed model; of the best candidate in the last validation, where there are several."""
        self.inputs = input_views(modules, inputs)
        """What a model sees of a batch, by the names of those that see less than all."""
        self.answers = answers_of(models, answer, classes, frozen)
        """Where a model's answer stands in what it gives, by the names of those of which it is said."""
        self.batch_keys = BatchKeys.of(batch)
        """Which entries of a mapping batch are what."""
        self.signal_cache: SignalCache | None = None
        """Asked before a frozen model is run, such as a :class:`lit_distill.callbacks.TeacherCache`."""
        self._calls_said: set[str] = set()
        learners = {name: model for name, model in self.models.items() if name not in self.frozen}
        self._train_only = TrainOnly(learners, train_only)
        for name in self.frozen:
            for learner, model in learners.items():
                _check_sharing(name, self.models[name], learner, model, said=bool(train_only))
        for name in self.frozen:
            self.models[name].requires_grad_(False)

    @property
    def named(self) -> dict[str, nn.Module]:
        """The models by name."""
        return dict(self.models.items())

    def train(self, mode: bool = True) -> NamedModels:
        """Set the training mode of everything that is trained; frozen models and parts stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.models[name].eval()
        self._train_only.hold()
        return self

    def forward(self, inputs: Any) -> Any:
        """The student's answer: what it gives, or the logits in that."""
        return self._answer(self.student, inputs)

    # ---------------------------------------------------------------- to override

    def unpack(self, batch: Any) -> tuple[Any, ...]:
        """Split a batch into inputs, target, sample index and further entries; override it for batches of another form.

        A tuple of the first two or three will do; terms then name entries of the batch itself.
        """
        return unpack_batch(batch, keys=self.batch_keys, models=self.models.values())

    def run_model(self, name: str, inputs: Any) -> Any:
        """Run one named model; override it for models that take something else than the batch's inputs.

        A mapping is given by keyword where ``batch`` says so, and beside models of Hugging Face: to each the entries
        that its ``forward`` names.
        """
        model = self.models[name]
        if isinstance(inputs, Mapping) and self._takes_keywords(model):
            return model(**keywords_of(name, model, inputs))
        return model(inputs)

    def _takes_keywords(self, model: nn.Module) -> bool:
        by_default = type(self).unpack is NamedModels.unpack and any(map(is_hugging_face, self.models.values()))
        return self.batch_keys.by_keyword or by_default or is_hugging_face(model)

    def unpacked(self, batch: Any) -> Unpacked:
        """What :meth:`unpack` gives, all four items by name."""
        return Unpacked.of(self.unpack(batch), batch)

    # ---------------------------------------------------------------- the forward pass

    def run_models(
        self,
        inputs: Any,
        signals: SignalCapture | None = None,
        *,
        evaluate: bool | Collection[str] = False,
        views: bool = False,
        cached: bool = False,
        thorough: bool = False,
        leave_out: Collection[str] = (),
        around: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, Any]:
        """Run models on the inputs of a batch, in the order in which they are named.

        Training, evaluation, the preflight, ``doctor`` and its costs all run them here, so that all see the same: each
        model its own view of the inputs, frozen ones in eval mode and without a graph. None may change them in place.

        Args:
            inputs: what :meth:`unpack` gives.
            signals: the open capture of the step.
            evaluate: run every model, or these too, not those alone that ``signals`` taps.
            views: whether the inputs are views (B, V, ...), whose class probabilities are averaged.
            cached: whether :attr:`signal_cache` may answer for a frozen model, whose signals go to ``signals``.
            thorough: hold that each model leaves the inputs' values as they are, beyond PyTorch's count of changes.
            leave_out: models that are not run, whoever wants them.
            around: gives a context to run each model in, by its name, such as a timer.

        Returns:
            Answers by name. In training, a model that the cache answers for has None.

        Raises:
            ValueError: a model changes its input in place.

        Example:
            >>> from lit_distill import DistillModule, LossTerm
            >>> module = DistillModule(
            ...     {"Student": nn.Linear(4, 2), "Teacher": nn.Linear(4, 2)},
            ...     {"mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))},
            ...     frozen=["Teacher"],
            ... )
            >>> with module.composer.capture(module.named) as signals:
            ...     outputs = module.run_models(torch.zeros(3, 4), signals)
            >>> outputs["Student"].requires_grad, outputs["Teacher"].requires_grad
            (True, False)
        """
        outputs: dict[str, Any] = {}
        inputs = counted(inputs)
        run = self._run_and_average if views else self._run_one
        for name in self.models:
            evaluated = evaluate if isinstance(evaluate, bool) else name in evaluate
            if name in leave_out:
                continue
            if signals is not None and not evaluated and not signals.texts_of(name):
                continue
            calls = self._warned_of_calls(name) if thorough and name in self.frozen else nullcontext()
            with around(name), calls, left_as_given(name, inputs, _CLONE.format(name), by_value=thorough):
                if cached and signals is not None and self.signal_cache is not None and name in self.frozen:
                    compute = partial(run, name)
                    outputs[name] = self.signal_cache.run(name, inputs, signals, compute, output=evaluated)
                else:
                    outputs[name] = run(name, inputs)
            if views and signals is not None:
                signals.replace(name, outputs[name])
        return outputs

    def _warned_of_calls(self, name: str) -> AbstractContextManager[None]:
        learners = {other: model for other, model in self.models.items() if other not in self.frozen}
        return warned_of_calls(name, self.models[name], learners, self._calls_said)

    def _run_one(self, name: str, inputs: Any) -> Any:
        if name in self.frozen and self.models[name].training:  # someone called .train() on the model itself
            self.models[name].eval()
        with nullcontext() if self._has_graph(name) else torch.no_grad():
            return self._answer(name, inputs)

    def _answer(self, name: str, inputs: Any) -> Any:
        return self.answers.get(name, WHOLE).of(self.run_model(name, self._seen_by(name, inputs)), text=name)

    def _has_graph(self, name: str) -> bool:
        """Whether gradients may pass a model; no gradient of a frozen one is wanted, its inputs have none."""
        return name not in self.frozen

    def _run_and_average(self, name: str, inputs: Tensor) -> Tensor:
        return average_over_views(lambda clips: self._run_one(name, clips), inputs)

    def _seen_by(self, name: str, inputs: Any) -> Any:
        view = self.inputs.get(name)
        return inputs if view is None else view.of_batch(inputs)


def _check_sharing(frozen: str, still: nn.Module, learner: str, model: nn.Module, *, said: bool) -> None:
    """Refuse a frozen model and one that learns that share what is to learn; warn where neither trains it."""
    shared = shared_tensors(model, still)
    if not shared:
        return
    what = f"{frozen} is frozen and shares {len(shared)} tensors or dropouts with {learner}: {few(shared)}"
    if shared_tensors(model, still, learning=True):
        raise ValueError(
            f"{what}; they would be in eval mode and in no optimizer in {learner} too: give {frozen} a copy "
            f"(copy.deepcopy), or name what of {learner} is trained besides: train_only=[{learner}.<part>]"
        )
    if not said:
        rank_zero_warn(f"{what}; they are in eval mode in both. To say that it is meant: train_only=[{learner}.<part>]")
