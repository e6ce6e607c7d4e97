"""What validation and test evaluate and log, and how the best of several peers is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric, MetricCollection

from lit_distill._module.checkpointed import CheckpointedModule
from lit_distill._module.hyperparameters import Composers
from lit_distill._module.metrics import TermMeans, TopKAccuracy, at_chance, why_no_classes
from lit_distill._module.preflight import BEST, TOP1, check_judges_best
from lit_distill._views import ViewsBatch
from lit_distill.composer import LossComposer

_ENOUGH = 64  # samples of a validation to judge a frozen model by


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
        """Set what evaluation needs: the terms of training, those of validation where they are others, the metrics."""
        self.composer = composer
        # Registered only if it is another one: a loss with parameters would stand in the checkpoint twice.
        self._own_val_composer = val_composer
        self.val_metrics = nn.ModuleDict({} if metrics is None else {name: metrics() for name in self.models})
        self._metrics_are_default = metrics is default_metrics
        self._left_out: set[str] = set()
        self._classes: dict[str, int] = {}
        self._trusted: set[str] = set()
        self.non_finite: frozenset[str] = frozenset()
        """Names of the terms and metrics that were NaN or infinite in the last evaluation, which was warned of."""
        self._chooses_student = chooses_student
        if chooses_student:
            check_judges_best(dict(self.val_metrics.items()), self.candidates)
        self.val_terms = TermMeans(len(self.val_composer.terms))

    @property
    def val_composer(self) -> LossComposer:
        """The composer of validation and test."""
        return self._own_val_composer or self.composer

    def _composers(self) -> Composers:
        own = {} if self._own_val_composer is None else {"val_losses": ("_own_val_composer.", self._own_val_composer)}
        return {"losses": ("composer.", self.composer), **own}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Evaluate every model and the validation terms on one batch; returns what each model gives, for callbacks."""
        inputs, target, index = self.unpack(batch)
        with self.val_composer.capture(self.named) as signals:
            outputs = self.run_models(inputs, signals, evaluate=True, views=isinstance(batch, ViewsBatch), cached=True)
        result = self.val_composer(signals, target, index=index, epoch=float(self.current_epoch))
        size = target.shape[0] if target is not None and target.ndim else 1
        self.val_terms.update(torch.cat([result.total.detach().reshape(1), result.values]).float(), size)
        for name, metric in self._named_metrics():
            if self._is_judged(name, outputs[name], target):
                metric.update(outputs[name], target)
        return outputs

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The same as validation, on the test data."""
        return self.validation_step(batch, batch_idx)

    def _named_metrics(self) -> list[tuple[str, Metric | MetricCollection]]:
        return [(name, cast("Metric | MetricCollection", metric)) for name, metric in self.val_metrics.items()]

    def _is_judged(self, name: str, output: Any, target: Any) -> bool:
        if target is None or not self._metrics_are_default:
            return target is not None
        if (why := why_no_classes(output, target)) is not None:
            self._leave_out(name, why)
            return False
        self._classes[name] = output.shape[1]
        return True

    def _warn_of_guesses(self, metrics: Mapping[str, Metric | MetricCollection]) -> None:
        """Once, on the first evaluation of enough samples: name frozen models that are no better than chance."""
        for name in self.frozen:
            metric = metrics.get(name)
            if not self._metrics_are_default or name in (*self._trusted, *self.moving) or name not in self._classes:
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

    def _warn_of_non_finite(self, stage: str, values: Mapping[str, float], composer: LossComposer) -> frozenset[str]:
        """Name the terms and metrics that are NaN or infinite, and return their names."""
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not bad:
            return frozenset()
        terms = {f"{stage}/{name}": repr(term)[9:-1] for name, term in composer.terms.items()}
        parts = [f"{name} is {value} ({terms[name]})" for name, value in bad.items() if name in terms]
        rank_zero_warn(
            f"values that are not finite: {', '.join(sorted(bad))} in epoch {self.current_epoch}: {'; '.join(parts)}. "
            "Does the loss take logits or (log-)probabilities, and are the outputs finite? Whatever monitors such a "
            "value compares nothing; lit_distill.callbacks.NonFinite names the samples of a training step"
        )
        return frozenset(bad)

    def on_validation_start(self) -> None:
        """Begin the figures anew; let DDP ranks evaluate different numbers of batches, all on rank 0's buffers."""
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
        means = self.val_terms.compute().tolist()
        values = {f"{stage}/loss": means[0]}
        values |= {f"{stage}/{name}": value for name, value in zip(self.val_composer.terms, means[1:], strict=True)}
        for model, metric in self._named_metrics():
            if metric_was_updated(metric):
                computed = metric.compute()
                results = computed if isinstance(computed, dict) else {type(metric).__name__: computed}
                found = {f"{stage}/{model}/{name}": float(value) for name, value in results.items()}
                if self._metrics_are_default and any(map(math.isnan, found.values())):
                    self._leave_out(model, "no sample has a label of one class (targets are multi-hot, or below 0)")
                else:
                    values |= found
        if stage == "val":
            self._warn_of_guesses(dict(self._named_metrics()))
        self._reset_figures()
        self.non_finite = self._warn_of_non_finite(stage, values, self.val_composer)
        values |= self._judge_candidates(stage, values)
        # Metrics are already reduced over ranks; Lightning would average the equal values once more.
        self.log_dict(values, on_epoch=True, sync_dist=False)

    def _reset_figures(self) -> None:
        """Forget what was evaluated. Lightning evaluates in inference mode, whose tensors no later step may add to."""
        with torch.inference_mode(False):
            self.val_terms.reset()
            for _, metric in self._named_metrics():
                metric.reset()

    def _judge_candidates(self, stage: str, values: Mapping[str, float]) -> dict[str, float]:
        """Make the candidate of the highest validation top-1 the student; its figures once more, under ``best``."""
        if not self._chooses_student:
            return {}
        if stage == "val" and not self.trainer.sanity_checking:
            scores = {name: values.get(f"val/{name}/{TOP1}") for name in self.candidates}
            if unknown := [name for name, score in scores.items() if score is None]:
                raise ValueError(
                    f"student=best is chosen by validation top-1, and {unknown} have none: it needs labelled batches "
                    "and logits (B, C); or name one student"
                )
            self.student = max(self.candidates, key=lambda name: scores[name] or 0.0)  # the first of equal ones
        chosen = f"{stage}/{self.student}/"
        return {f"{stage}/{BEST}/{k.removeprefix(chosen)}": v for k, v in values.items() if k.startswith(chosen)}


def metric_was_updated(metric: Metric | MetricCollection) -> bool:
    """Whether a metric, or every one of a collection, has seen data since its reset."""
    parts = metric.values() if isinstance(metric, MetricCollection) else [metric]
    return all(getattr(part, "update_called", False) for part in parts)
