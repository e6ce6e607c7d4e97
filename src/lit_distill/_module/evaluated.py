"""What validation and test evaluate and log, and how the best of several peers is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric, MetricCollection

from lit_distill._module.checkpointed import CheckpointedModule
from lit_distill._module.metrics import TermMeans, TopKAccuracy
from lit_distill._module.preflight import BEST, TOP1, check_judges_best
from lit_distill._views import ViewsBatch
from lit_distill.composer import LossComposer
from lit_distill.losses.base import class_indices


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
        self._chooses_student = chooses_student
        if chooses_student:
            check_judges_best(dict(self.val_metrics.items()), self.candidates)
        self.val_terms = TermMeans(len(self.val_composer.terms))

    @property
    def val_composer(self) -> LossComposer:
        """The composer of validation and test."""
        return self._own_val_composer or self.composer

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Evaluate every model and the validation terms on one batch; returns what each model gives, for callbacks."""
        inputs, target, index = self.unpack(batch)
        with self.val_composer.capture(self.named) as signals:
            outputs = self.run_models(inputs, signals, evaluate=True, views=isinstance(batch, ViewsBatch), cached=True)
        result = self.val_composer(signals, target, index=index, epoch=float(self.current_epoch))
        size = target.shape[0] if target is not None and target.ndim else 1
        self.val_terms.update(torch.cat([result.total.detach().reshape(1), result.values]).float(), size)
        for name, metric in self._named_metrics():
            if self._is_judged(outputs[name], target):
                assert target is not None
                metric.update(outputs[name], class_indices(target) if self._metrics_are_default else target)
        return outputs

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The same as validation, on the test data."""
        return self.validation_step(batch, batch_idx)

    def _named_metrics(self) -> list[tuple[str, Metric | MetricCollection]]:
        return [(name, cast("Metric | MetricCollection", metric)) for name, metric in self.val_metrics.items()]

    def _is_judged(self, output: Any, target: Tensor | None) -> bool:
        if target is None:
            return False
        return not self._metrics_are_default or (isinstance(output, Tensor) and output.ndim == 2 and target.ndim <= 2)

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
                values |= {f"{stage}/{model}/{name}": float(value) for name, value in results.items()}
        self._reset_figures()
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
