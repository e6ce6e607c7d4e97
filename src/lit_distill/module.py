"""DistillModule: named models and the losses between them as one LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lit_distill._lightning import (
    ends_step,
    leave_out_of_ddp,
    trainer_of,
)
from lit_distill._module.averaging import leave_frozen_alone
from lit_distill._module.compiling import StepCompiler
from lit_distill._module.evaluated import default_metrics
from lit_distill._module.optimized import OptimizedModule, OptimizerFactory, SchedulerFactory, unique_parameters
from lit_distill._module.preflight import BEST, Classes, Part, check_classes, explained_batch_norm, try_example
from lit_distill._module.step import RunningTerms, StepRecord, batch_size, fractional_epoch
from lit_distill._terms.ignored import ignored_labels, ignored_positions
from lit_distill._terms.tryout import try_terms
from lit_distill._views import InputView
from lit_distill.balance import Balancer
from lit_distill.composer import ComposedLoss, LossComposer
from lit_distill.gradients import loss_scale
from lit_distill.signals import SignalCapture
from lit_distill.terms import LossTerm

Terms: TypeAlias = Mapping[str, LossTerm | Mapping[str, Any]]


class DistillModule(OptimizedModule):
    """Trains named models on weighted losses between their signals.

    A step runs every model that a term names once, hands the captured signals to the :class:`LossComposer`, and
    descends its total; all trainable models share one backward pass and one optimizer.

    Args:
        models: the networks by name; names have no dots; ``GroundTruth``, ``SampleIndex`` and ``Batch`` are reserved.
            A frozen one may be a function, a program of ``torch.export`` or a session of ONNX Runtime.
            Models that learn may share modules. A frozen model may share with one that learns what ``train_only``
            leaves untrained there, such as a base with adapters.
        losses: the terms of training by name, as :class:`LossTerm` or a mapping of its arguments.
        val_losses: the terms of validation and test; those of training where not given.
        frozen: names of models that only teach: eval mode for good, no gradients, in no optimizer and no checkpoint,
            not broadcast by DDP.
        optimizer: makes the optimizer from the trainable parameters, such as ``partial(torch.optim.SGD, lr=0.05)``.
            A factory with a truthy attribute ``takes_models`` is called with the trainable models by name and the
            list of the losses' own parameters.
        scheduler: a :class:`lit_distill.schedules.Schedule` that multiplies the learning rate as a function of the
            fractional epoch, stepped every optimizer step; or a factory from optimizer to a torch scheduler, stepped
            every epoch (``OneCycleLR``, ``CyclicLR`` and what holds them: every step), or to Lightning's dict of one:
            ``{"scheduler": …, "interval": "step", "monitor": …}``. ``ReduceLROnPlateau`` watches ``val/loss``, or with
            ``mode="max"`` the student's top-1, of the first where there are several validation loaders.
        student: the model that ``forward`` runs and that is deployed; by default ``Student``, or the only model.
            ``"best"`` for the best of several peers by validation top-1: each validation logs ``val/best/top1``, which
            a checkpoint may monitor, and sets the attribute ``student``, which checkpoints hold.
        candidates: for ``student="best"``, those that it is chosen among; by default all that are not frozen. The
            first is the student before a validation, and a tie goes to the earlier one.
        metrics: makes the validation metrics of one model, called ``metric(logits, class indices)``; by default top-1
            and top-5 where the outputs are logits (B, C). ``None`` for none. ``student="best"`` needs a collection with
            ``top1``.
        inputs: what a model sees of the batch's clips or images, by its name, where it is not what they are: a
            :class:`lit_distill.data.InputView`, or its ``num_frames``, ``size``, ``mean`` and ``std``.
        answer: where the answer of a model, its logits, stands in a structure that it gives: ``"out"`` of a dict,
            ``"0"`` of a tuple, ``"heads.main"``; of all models, or of each by its name. By default it is the one tensor
            that is named ``logits``. ``forward``, metrics, callbacks and terms that name a model alone take the answer;
            terms name other parts as ``Student:hidden_states.-1``.
        classes: of a frozen model those of its classes that the data has, in the data's order, by its name:
            ``{"Teacher": [3, 7]}``, or a text file of an index a line. Its answer is the logits of these.
        batch: which entries of a mapping batch are what: ``{"inputs": "image", "target": "mask"}`` for
            ``model(batch["image"])``, ``{"inputs": ["ids", "mask"]}`` for ``model(ids=…, mask=…)``; and
            ``index``. By default the target is the one of ``labels``, ``label`` and ``target`` that there is. Models of
            Hugging Face need none of it: each takes by keyword what its ``forward`` names, without the target.
        preflight: try one example batch before training, so that a wrong reference, shape or class count shows at once;
            losses with parameters need it.
        train_only: the parts that are trained, where not all are: ``Student.fc``, ``Student:norms``
            (its normalisation layers). All else takes no gradient, and is in eval mode where nothing in it is trained.
        replaced_frozen: frozen models that may be others than those that a loaded checkpoint was trained with; any
            other must hash to what the checkpoint recorded.
        balance: makes the weights of training steps from those that the terms are set to: see
            :mod:`lit_distill.balance`.
        unlabelled: whether samples may have no label, or how to see which have one: see :class:`LossComposer`. A data
            module says of its training samples itself that some have none, by a true ``has_unlabelled``.
        compile: ``"step"`` compiles the training step's models, taps and losses as one graph, ``"models"`` the models
            alone, by ``torch.compile``: see ``docs/scaling.md``. A mapping adds its arguments:
            ``{"scope": "step", "backend": "aot_eager"}``. Validation runs eagerly.

    Batches are ``(inputs, target)``, ``(inputs, target, index)`` or mappings; terms name their other entries as
    ``Batch.<key>``, or ``Batch.2`` by number. In validation and test, inputs of six dimensions
    are views of videos (B, V, T, C, H, W): each model's probabilities are averaged over the views of a video. Several
    loaders are logged apart, as ``val/<key or number>/…``; ``student="best"`` goes by the first. Override
    :meth:`unpack` for batches of another form and :meth:`run_model` for models that take something else.

    Raises:
        ValueError: an unknown model or submodule, a reserved name, a model that no term reaches, a frozen model that
            shares with one that learns what is to learn.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from torch import nn
        >>> from lit_distill.losses import KDLoss
        >>> module = DistillModule(
        ...     models={"Student": nn.Linear(8, 3), "Teacher": nn.Linear(8, 3)},
        ...     frozen=["Teacher"],
        ...     losses={
        ...         "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        ...         "kd": LossTerm(KDLoss(temperature=4.0), pair=("Student", "Teacher"), weight=0.9),
        ...     },
        ...     optimizer=partial(torch.optim.SGD, lr=0.05),
        ... )
        >>> module(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module | Callable[..., Any]],
        losses: Terms,
        *,
        val_losses: Terms | None = None,
        frozen: Collection[str] = (),
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        student: str | None = None,
        candidates: Collection[str] | None = None,
        metrics: Callable[[], Metric | MetricCollection] | None = default_metrics,
        inputs: Mapping[str, InputView | Mapping[str, Any]] | None = None,
        answer: Part | Mapping[str, Part] | None = None,
        classes: Mapping[str, Classes] | None = None,
        batch: Mapping[str, str | Sequence[str]] | None = None,
        preflight: bool = True,
        replaced_frozen: Collection[str] = (),
        train_only: Collection[str] = (),
        balance: Balancer | None = None,
        unlabelled: bool | Callable[[Tensor], Tensor] = False,
        compile: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            models, frozen=frozen, student=student, candidates=candidates, inputs=inputs, train_only=train_only,
            answer=answer, classes=classes, batch=batch,
        )  # fmt: skip
        self._keep(replaced_frozen)
        self._judge_by(
            LossComposer(losses, balance=balance, unlabelled=unlabelled, answers=self.answers),
            None if val_losses is None else LossComposer(val_losses, unlabelled=unlabelled, answers=self.answers),
            metrics,
            chooses_student=student == BEST and BEST not in models,
        )
        self.composer.check(self.named)
        self.val_composer.check(self.named)
        unused = set(models) - self.composer.taught_names - set(self.frozen)
        if unused:
            raise ValueError(f"no training term names {sorted(unused)}: add a term for it, freeze it or leave it out")
        self._optimize_by(optimizer, scheduler)
        self._preflight = preflight
        self._compiler = StepCompiler(compile)
        self._record: StepRecord | None = None
        self._warned = self._stepped = False
        self._warned_of_ignored = False
        self.composed: ComposedLoss | None = None
        """The losses of the current training step, until its backward pass has ended."""
        tensors = (*dict(self.named_parameters()), *dict(self.named_buffers()))
        leave_out_of_ddp(self, filter(self._is_frozen_key, tensors))
        self.train()

    # ---------------------------------------------------------------- before training

    def setup(self, stage: str) -> None:
        """Try one example batch: errors show before training, and losses get their shapes before the optimizer."""
        self._record_frozen()  # before a precision or a device changes them
        self._record_settings()
        self.expect_labels_of(getattr(self.trainer, "datamodule", None))
        self.expect_normalisation_of(getattr(self.trainer, "datamodule", None))
        if stage == "fit" and self.composer.balance is not None:
            self.composer.balance.check(self.trainer)
        if stage == "fit":
            self._compiler.require_compiler()
        if stage == "fit" and self._preflight:
            try_example(self, lambda batch, size: self.build(batch, dataset_size=size))
        if stage == "fit":
            leave_frozen_alone(self.trainer, self, self.frozen)

    def expect_labels_of(self, data: Any) -> None:
        """Look for samples without labels in training batches if a data module says that it has some."""
        self.composer.unlabelled = self.composer.unlabelled or bool(getattr(data, "has_unlabelled", False))

    def expect_normalisation_of(self, data: Any) -> None:
        """Take the mean and standard deviation of the batches from the data, for models that have others."""
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
        if mean is not None and std is not None:
            self.inputs = {name: view.of_data(mean, std) for name, view in self.inputs.items()}

    def build(self, batch: Any, *, dataset_size: int | None = None, num_classes: int | None = None) -> None:
        """Size the losses from an example batch and check that classes and shapes fit; every model runs once.

        Lightning's ``fit`` calls it through :meth:`setup`; call it yourself before you load weights by hand.

        Args:
            batch: as training has it.
            dataset_size: number of training samples, for memory banks.
            num_classes: of the data; by default what the trainer's data module says.
        """
        inputs, target, index, entries = self.unpacked(batch)
        if num_classes is None:
            num_classes = getattr(getattr(trainer_of(self), "datamodule", None), "num_classes", None)
        composers = list({id(c): c for c in (self.composer, self.val_composer)}.values())

        def check(signals: SignalCapture) -> None:
            answers = [(ref.model, ref.text) for ref in self.composer.references if signals.is_answer(ref)]
            for name, text in dict(answers).items():
                if not any(composer.takes_for_classes(text) for composer in composers):
                    continue
                check_classes(
                    name, signals[text], target, num_classes, frozen=name in self.frozen,
                    ignored=ignored_labels(composers),
                )  # fmt: skip

        signals = try_terms(
            composers, self.named, target, index=index, batch=entries, dataset_size=dataset_size,
            run=lambda signals: self.run_models(inputs, signals, thorough=True), check=check,
        )  # fmt: skip
        self._warn_of_ignored(composers, signals, target, inputs, entries)
        self._compiler.require_traceable(self.composer, signals)

    def _warn_of_ignored(self, composers: Iterable[LossComposer], signals: SignalCapture, *given: Any) -> None:
        if not self._warned_of_ignored and (text := ignored_positions(composers, signals, *given)):
            self._warned_of_ignored = True
            rank_zero_warn(text)

    # ---------------------------------------------------------------- steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on the training terms; returns the total."""
        inputs, target, index, entries = self.unpacked(batch)
        composer, sums = self._terms_of_step()
        epoch, watched = self.epoch_at(batch_idx), self._watched("train")
        with explained_batch_norm():
            signals = composer.capture(self.named, epoch=epoch, watched=watched)
            if self._compiler:
                composer.put_data(signals, target, index, entries)
            if not self._ran_compiled(composer, signals, inputs, epoch, watched):
                with signals:
                    self.run_models(inputs, signals, cached=True, thorough=not self._stepped)
            self._stepped = True
            result: ComposedLoss = composer(signals, target, index=index, batch=entries, epoch=epoch, watched=watched)
        sums.add(result, batch_size(target, inputs))
        if not batch_idx:
            self._warn_of_ignored([composer], signals, target, inputs, entries)
        self.composed = result
        captured = signals if signals.computed is None else None
        self._record = StepRecord(composer, result.values, index, inputs, captured, self.frozen)
        return result.total

    @property
    def turn(self) -> int:
        """Optimizer steps after which what :meth:`phase` gives repeats."""
        return 1

    @contextmanager
    def phase(self, step: int) -> Iterator[tuple[LossComposer, list[str]]]:
        """To look at an optimizer step outside of training: what it descends, and the names of the models it moves."""
        yield self.composer, [name for name in self.models if name not in self.frozen]

    def _ran_compiled(
        self, composer: LossComposer, signals: SignalCapture, inputs: Any, epoch: float, watched: Collection[str]
    ) -> bool:
        """Run the models, and the terms with them, by what is compiled for such a batch; False where there is none."""
        if self._compiler.step(composer, self.named, self._run_one) is None:
            return False
        names = [name for name in self.models if signals.texts_of(name)]
        cached = set(self.frozen if self.signal_cache is not None else ()).intersection(names)
        names = [name for name in names if name not in cached]
        run = self._compiler.graph(composer, inputs, signals, names, epoch=epoch, watched=watched)
        if run is None:
            return False
        if cached:
            with signals:
                self.run_models(inputs, signals, cached=True, leave_out=set(self.models) - cached)
        run()
        return True

    @property
    def compile_seconds(self) -> float:
        """What compiling took so far."""
        return self._compiler.seconds

    @property
    def compiled_graphs(self) -> int:
        """The number of graphs that were compiled so far."""
        return self._compiler.graphs

    def _terms_of_step(self) -> tuple[LossComposer, RunningTerms]:
        """What this training step descends, and where it is counted."""
        return self.composer, self._train_terms

    def on_before_backward(self, loss: Tensor) -> None:
        """Let the balance look at the terms' gradients, where it wants to."""
        balance, trainer = self.composer.balance, self.trainer
        if self.composed is None or balance is None or not balance.is_due(self.global_step) or not ends_step(trainer):
            return
        balance.observe(
            self.composed.terms,
            [p for p in unique_parameters(self.models[name] for name in self.candidates) if p.requires_grad],
            weights=self.composed.weights,
            scale=loss_scale(trainer),
            mean_over_ranks=lambda tensor: trainer.strategy.reduce(tensor, reduce_op="mean"),
        )

    def on_after_backward(self) -> None:
        """Let go of the step's graph."""
        self.composed = None

    def take_step_record(self) -> StepRecord | None:
        """What the last training step was made of, once; :class:`lit_distill.callbacks.NonFinite` tells of it."""
        record, self._record = self._record, None
        return record

    def drop_step(self, where: Tensor | None = None) -> None:
        """Leave the batches since the last optimizer step out of the log: they were not trained on.

        Args:
            where: a boolean on the device, so that they are left out if it is true, without a look at it.
        """
        self._train_terms.drop(where)

    def teardown(self, stage: str) -> None:
        """Take the hooks of a compiled step off the models."""
        self._compiler.close()

    def epoch_at(self, batch_idx: int) -> float:
        """The fractional epoch at the start of a batch, for schedules."""
        return fractional_epoch(self.trainer, batch_idx)

    # ---------------------------------------------------------------- logging

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means of all terms since the last logged step, every ``log_every_n_steps`` optimizer steps."""
        self._record = None  # it would keep the step's activations
        self._look_at_frozen_once()
        if not ends_step(self.trainer):
            return
        self._train_terms.commit()
        step = self.trainer.global_step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step and step % every == 0:
            self._flush(on_epoch=False)

    def on_train_epoch_end(self) -> None:
        """Log what is left of the epoch."""
        self._flush(on_epoch=True)

    def _flush(self, *, on_epoch: bool) -> None:
        if not (values := self._means_since_last()):
            return
        self.last_terms = values = {f"train/{name}": value for name, value in values.items()}
        optimizers = self.trainer.optimizers
        rates = {"train/lr": optimizers[0].param_groups[0]["lr"]} if optimizers else {}
        self.log_dict({**values, **rates}, on_step=not on_epoch, on_epoch=on_epoch, rank_zero_only=False)

    def _means_since_last(self) -> dict[str, float]:
        """The means to log since they were asked for last, without "train/"; nothing where there was no step."""
        return self._means(self.composer, self._train_terms, "loss")

    def _means(self, composer: LossComposer, running: RunningTerms, total: str) -> dict[str, float]:
        local = running.take()
        if local is None:
            return {}
        sums = self.trainer.strategy.reduce(local, reduce_op="mean")
        *means, seen = torch.cat([sums[:1] / sums[1:2], sums[1:2], sums[2:4] / sums[4:], sums[4:]]).tolist()
        if not seen[0]:  # the device left out all steps since
            return {}
        values = {total: sum(means[2])}
        for (name, term), unweighted, samples, weighted, weight in zip(composer.terms.items(), *means, strict=True):
            if samples:  # not of a term that was not computed, or found no label
                values[name] = unweighted
            moves = not term.has_fixed_weight or composer.balance is not None
            if moves or term.weight != 1.0:
                values[f"{name}_weighted"] = weighted
            if moves:
                values[f"{name}_weight"] = weight
        if not self._warned:
            self._warned = bool(self._warn_of_non_finite("train/", values, composer))
        return values
