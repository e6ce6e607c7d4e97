"""What validation and test evaluate and log, and how the best of several peers is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric, MetricCollection

from lit_distill._lightning import loader_names, loader_under_way
from lit_distill._module.batches import is_hugging_face
from lit_distill._module.checkpointed import CheckpointedModule
from lit_distill._module.hyperparameters import Composers
from lit_distill._module.metrics import TermMeans, TopKAccuracy, at_chance, why_no_classes
from lit_distill._module.preflight import BEST, TOP1, check_judges_best
from lit_distill._module.step import batch_size, epoch_so_far, sample_counts
from lit_distill._views import ViewsBatch
from lit_distill.composer import LossComposer
from lit_distill.signals import SignalCapture

_ENOUGH = 64  # samples of a validation to judge a frozen model by
_FEW = 16  # numbers of one metric that are logged each, whatever the classes


def default_metrics() -> MetricCollection:
    """Top-1 and top-5 accuracy, what a classifier is judged by."""
    # Compute groups would be formed of metrics that are equal on the first batch, and then share its counts for good.
    return MetricCollection({"top1": TopKAccuracy(k=1), "top5": TopKAccuracy(k=5)}, compute_groups=False)


class EvaluatedModule(CheckpointedModule):
    """The part of :class:`lit_distill.DistillModule` that validates and tests."""

    def _judge_by(
        self,
        composer: LossComposer,
        val_composer: LossComposer | None,
        metrics: Callable[[], Metric | MetricCollection] | None,
        *,
        chooses_student: bool,
    ) -> None:
        """Set what evaluation needs: the terms of training, those of validation where they are others, the metrics.

        Raises:
            ValueError: metrics are no function, or none that can choose the best of the candidates.
        """
        if metrics is not None and not callable(metrics):
            raise ValueError(
                "metrics is a function that makes the metrics of a model, as in metrics=lambda: MetricCollection({…}), "
                f"or None for none, got a {type(metrics).__name__}"
            )
        self.composer = composer
        # Registered only if it is another one: a loss with parameters would stand in the checkpoint twice.
        self._own_val_composer = val_composer
        self.val_metrics = nn.ModuleDict({} if metrics is None else {name: metrics() for name in self.models})
        self._metrics_are_default = metrics is default_metrics
        self._left_out: set[str] = set()
        self._classes: dict[str, int] = {}
        self._widths: dict[str, int] = {}
        self._trusted: set[str] = set()
        self.non_finite: frozenset[str] = frozenset()
        """Names of the terms and metrics that were NaN or infinite in the last evaluation, which was warned of."""
        self._chooses_student = chooses_student
        if chooses_student:
            check_judges_best(dict(self.val_metrics.items()), self.candidates)
        self.val_terms = TermMeans(len(self.val_composer.terms))
        self._make_metrics = metrics
        self._more_figures: list[_Figures] = []
        """Of the second loader and later ones; no part of the module, so that checkpoints do not depend on them."""

    @property
    def val_composer(self) -> LossComposer:
        """The composer of validation and test."""
        return self._own_val_composer or self.composer

    def _composers(self) -> Composers:
        own = {} if self._own_val_composer is None else {"val_losses": ("_own_val_composer.", self._own_val_composer)}
        return {"losses": ("composer.", self.composer), **own}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Evaluate the models and the validation terms on one batch; returns what each model gives, for callbacks.

        Where there are several loaders, each has its own metrics: ``val/<loader>/…``, by the loader's key in a dict, or
        its number.
        """
        inputs, target, index, entries = self.unpacked(batch)
        epoch, watched = float(self.current_epoch), self._watched("test" if self.trainer.testing else "val")
        with self.val_composer.capture(self.named, epoch=epoch, watched=watched) as signals:
            outputs = self.run_models(
                inputs, signals, evaluate=self._evaluated_models(), views=isinstance(batch, ViewsBatch), cached=True
            )
        result = self.val_composer(signals, target, index=index, batch=entries, epoch=epoch, watched=watched)
        figures = self._figures_of(loader_under_way(self.trainer))
        size = batch_size(target, inputs, outputs)
        counts = sample_counts(result, size)
        if isinstance(counts, Tensor):
            counts = torch.cat([counts.new_full((1,), size), counts])
        figures.terms.update(torch.cat([result.total.detach().reshape(1), result.values]).float(), counts)
        for name, metric in figures.metrics:
            output, labels = self._labelled(outputs[name], target, signals)
            if self._is_judged(name, output, labels):
                metric.update(output, labels)
        return outputs

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """The student's output on a batch with or without labels; of views, the means of their probabilities."""
        inputs = batch
        known = type(self).unpack is not CheckpointedModule.unpack or isinstance(batch, (tuple, list))
        if isinstance(batch, Mapping):
            known |= self.batch_keys.said or is_hugging_face(self.models[self.student])
        if isinstance(batch, (tuple, list)) and len(batch) == 1:
            (inputs,) = batch  # of a data set of inputs alone
        elif known and not isinstance(batch, Tensor):
            inputs = self.unpack(batch)[0]
        return self._run_and_average(self.student, inputs) if isinstance(batch, ViewsBatch) else self(inputs)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The same as validation, on the test data."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def _labelled(self, output: Any, target: Any, signals: SignalCapture) -> tuple[Any, Any]:
        """Output and target of the samples that have a label; None for a target without any."""
        reading = (term.loss for term in self.val_composer.terms.values() if term.needs_labels)
        rows = self.val_composer.labelled(None if self._metrics_are_default else next(reading, None), signals)
        if rows is None or not isinstance(output, Tensor) or len(output) != len(target):
            return output, target
        return output[rows], target[rows] if len(rows) else None

    def _watched(self, stage: str) -> frozenset[str]:
        """Terms whose values somebody looks at, so that they are computed even where their weight is 0.

        That is where a callback or scheduler monitors one, where ``val_losses`` set it to 0, and in validation also
        where its schedule has begun within the epoch.
        """
        trainer, composer = self.trainer, self.composer if stage == "train" else self.val_composer
        idle = [(name, term) for name, term in composer.terms.items() if not term.has_fixed_weight or not term.weight]
        if not idle:
            return frozenset()
        monitors = {getattr(callback, "monitor", None) for callback in trainer.callbacks}  # type: ignore[attr-defined]
        monitors |= {config.monitor for config in trainer.lr_scheduler_configs}
        now = epoch_so_far(trainer) if stage == "val" else float(self.current_epoch)
        own = stage != "train" and self._own_val_composer is not None
        ends = {str(monitor).rpartition("/")[2] for monitor in monitors if str(monitor).startswith(f"{stage}/")}
        return frozenset(
            name
            for name, term in idle
            if name in ends or (own and term.has_fixed_weight) or (stage == "val" and term.weight_at(now))
        )

    def _evaluated_models(self) -> Collection[str] | bool:
        """Models whose outputs are wanted: all, unless only the terms and the student ask for them."""
        if len(self.val_metrics) or _reads_outputs(type(self), EvaluatedModule):
            return True
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(_reads_outputs(type(callback), Callback) for callback in callbacks) or self.candidates

    def _figures_of(self, loader: int) -> _Figures:
        if not loader:
            return _Figures(self.val_terms, self._named_metrics())
        while len(self._more_figures) < loader:
            make = self._make_metrics
            metrics = {} if make is None else {name: make().to(self.device) for name in self.val_metrics}
            terms = TermMeans(len(self.val_composer.terms)).to(self.device)
            self._more_figures.append(_Figures(terms, list(metrics.items())))
        return self._more_figures[loader - 1]

    def _named_metrics(self) -> list[tuple[str, Metric | MetricCollection]]:
        return [(name, cast("Metric | MetricCollection", metric)) for name, metric in self.val_metrics.items()]

    def _is_judged(self, name: str, output: Any, target: Any) -> bool:
        if isinstance(output, Tensor) and output.ndim > 1:
            self._widths[name] = output.shape[1]
        if target is None or not self._metrics_are_default:
            return target is not None
        if (why := why_no_classes(output, target)) is not None:
            self._leave_out(name, why)
            return False
        self._classes[name] = output.shape[1]
        return True

    def _warn_of_guesses(self, metrics: Mapping[str, Metric | MetricCollection]) -> None:
        """Once, on the first evaluation of enough samples: name frozen models that are no better than chance."""
        composers = (self.composer, self.val_composer)
        known = any(composer.takes_for_classes(name) for composer in composers for name in self.models)
        for name in self.frozen:
            metric = metrics.get(name)
            if (
                not self._metrics_are_default
                or not known
                or name in (*self._trusted, *self.moving)
                or name not in self._classes
            ):
                continue
            assert isinstance(metric, MetricCollection)
            top1 = cast("TopKAccuracy", metric[TOP1])
            samples = int(top1.total)  # of this rank: it is enough where this is
            if samples >= _ENOUGH and not int(top1.several):
                self._trusted.add(name)
                if guesses := at_chance(name, float(top1.correct) / samples, samples, self._classes[name]):
                    rank_zero_warn(guesses)

    def _leave_out(self, name: str, why: str) -> None:
        """Say once that a model has no default metrics."""
        if name not in self._left_out:
            self._left_out.add(name)
            rank_zero_warn(
                f"top1 and top5 of {name} are left out: {why}; give metrics=<a function that makes a torchmetrics "
                "Metric or MetricCollection of your task>, or metrics=None"
            )

    def _warn_of_non_finite(self, start: str, values: Mapping[str, float], composer: LossComposer) -> frozenset[str]:
        """Name the terms and metrics that are NaN or infinite, and return their names, with ``start`` before each."""
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not bad:
            return frozenset()
        terms = {name: repr(term)[9:-1] for name, term in composer.terms.items()}
        parts = [f"{start}{name} is {value} ({terms[name]})" for name, value in bad.items() if name in terms]
        names = frozenset(start + name for name in bad)
        rank_zero_warn(
            f"values that are not finite: {', '.join(sorted(names))} in epoch {self.current_epoch}: "
            f"{'; '.join(parts)}. "
            "Does the loss take logits or (log-)probabilities, and are the outputs finite? Whatever monitors such a "
            "value compares nothing; lit_distill.callbacks.NonFinite names the samples of a training step"
        )
        return names

    def on_validation_start(self) -> None:
        """Reset the metrics; let DDP ranks evaluate different numbers of batches, all on rank 0's buffers."""
        self._reset_figures()
        ddp = self.trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel):
            for name, buffer in self.named_buffers():
                if not self._is_frozen_key(name):
                    torch.distributed.broadcast(buffer, src=0)
            ddp.require_forward_param_sync = False

    def on_validation_end(self) -> None:
        """Give DDP its buffer broadcasts back."""
        ddp = self.trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel):
            ddp.require_forward_param_sync = True

    def on_test_start(self) -> None:
        """As for validation."""
        self.on_validation_start()

    def on_test_end(self) -> None:
        """As for validation."""
        self.on_validation_end()

    def on_validation_epoch_end(self) -> None:
        """Log the validation terms and every model's metrics."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the test terms and every model's metrics."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        loaders, found = loader_names(self.trainer), dict[str, dict[str, float]]()
        self.non_finite = frozenset()
        for number, name in enumerate(loaders):
            start, figures = f"{stage}/{name}/" if len(loaders) > 1 else f"{stage}/", self._figures_of(number)
            found[start] = self._computed(figures)
            if stage == "val":
                self._warn_of_guesses(dict(figures.metrics))
            self.non_finite |= self._warn_of_non_finite(start, found[start], self.val_composer)
        self._reset_figures()
        self._judge_candidates(stage, next(iter(found.values())))
        values = {start + name: value for start, of_one in found.items() for name, value in of_one.items()}
        if self._chooses_student:
            chosen = f"{self.student}/"
            for start, of_one in found.items():
                best = {name.removeprefix(chosen): v for name, v in of_one.items() if name.startswith(chosen)}
                values |= {f"{start}{BEST}/{name}": value for name, value in best.items()}
        # Metrics are already reduced over ranks; Lightning would average the equal values once more.
        self.log_dict(values, on_epoch=True, sync_dist=False)

    def _computed(self, figures: _Figures) -> dict[str, float]:
        """Means of the terms that were computed, and the metrics of the models, of one loader."""
        means, samples = figures.terms.compute().tolist()
        named = zip(("loss", *self.val_composer.terms), means, samples, strict=True)
        values = {name: mean for name, mean, count in named if count or name == "loss"}
        for model, metric in figures.metrics:
            # A rank may have met no label: what is computed is summed over ranks, so they must agree on it.
            if self.trainer.strategy.reduce_boolean_decision(metric_was_updated(metric), all=False):
                names = getattr(getattr(self.trainer, "datamodule", None), "class_names", None) or ()
                classes = self._widths.get(model)
                found = by_class(model, type(metric).__name__, metric.compute(), names, classes=classes)
                if self._metrics_are_default and any(map(math.isnan, found.values())):
                    self._leave_out(
                        model, "no sample has a label of one class (multi-hot, below 0, or beyond the outputs)"
                    )
                else:
                    values |= found
        return values

    def _reset_figures(self) -> None:
        """Forget what was evaluated. Lightning evaluates in inference mode, whose tensors no later step may add to."""
        with torch.inference_mode(False):
            for number in range(max(1, len(loader_names(self.trainer)))):
                figures = self._figures_of(number)
                figures.terms.reset()
                for _, metric in figures.metrics:
                    metric.reset()

    def _judge_candidates(self, stage: str, values: Mapping[str, float]) -> None:
        """Make the candidate of the highest top-1 on the first validation loader the student."""
        if self._chooses_student and stage == "val" and not self.trainer.sanity_checking:
            scores = {name: values.get(f"{name}/{TOP1}") for name in self.candidates}
            if unknown := [name for name, score in scores.items() if score is None]:
                raise ValueError(
                    f"student=best is chosen by validation top-1, and {unknown} have none: it needs labelled batches "
                    "and logits (B, C); or name one student"
                )
            self.student = max(self.candidates, key=lambda name: scores[name] or 0.0)  # the first of equal ones


class _Figures(NamedTuple):
    """What is summed up of one loader."""

    terms: TermMeans
    metrics: list[tuple[str, Metric | MetricCollection]]


def _reads_outputs(kind: type, base: type) -> bool:
    """Whether a class may look at what the evaluation step gives: it overrides the step, or the hook at its end."""
    if kind.__module__.startswith("lightning.") or getattr(kind, "ignores_outputs", False):
        return False
    hooks = ("validation_step", "test_step", "on_validation_batch_end", "on_test_batch_end")
    return any(getattr(kind, hook, None) is not getattr(base, hook, None) for hook in hooks)


def by_class(
    place: str, metric: str, computed: Any, class_names: Sequence[str] = (), *, classes: int | None = None
) -> dict[str, float]:
    """What a metric computed as numbers by name: of one number a class, ``<metric>/<class>``; of a dict, its keys.

    A matrix, such as confusions, is left out with a warning, and so is a curve of more points than classes.

    Args:
        place: before each name.
        metric: its name, where it computed one value.
        computed: a number, a tensor (), (1,) or (C,), a sequence of such, or a dict of them.
        class_names: the names of C classes; others go by their index.
        classes: how many there are, where it is known.

    Example:
        >>> by_class("Student", "Recall", torch.tensor([0.5, 1.0]), ["cat", "dog"])
        {'Student/Recall/cat': 0.5, 'Student/Recall/dog': 1.0}
    """
    if isinstance(computed, Mapping):
        parts = [by_class(place, str(name), value, class_names, classes=classes) for name, value in computed.items()]
        return {name: value for part in parts for name, value in part.items()}
    if isinstance(computed, (tuple, list)):
        named = {f"{metric}/{number}": value for number, value in enumerate(computed)}
        return by_class(place, metric, named, classes=classes)
    if not isinstance(computed, Tensor) or computed.numel() == 1:
        return {f"{place}/{metric}": float(computed)}
    if computed.ndim > 1 or (classes is not None and len(computed) > max(classes, _FEW)):
        rank_zero_warn(
            f"{place}/{metric} is not logged: expected a number or one a class, got a tensor {tuple(computed.shape)}"
        )
        return {}
    names = class_names if len(class_names) == len(computed) else range(len(computed))
    return {f"{place}/{metric}/{name}": value for name, value in zip(names, computed.tolist(), strict=True)}


def metric_was_updated(metric: Metric | MetricCollection) -> bool:
    """Whether a metric, or every one of a collection, has seen data since its reset."""
    parts = metric.values() if isinstance(metric, MetricCollection) else [metric]
    return all(getattr(part, "update_called", False) for part in parts)
