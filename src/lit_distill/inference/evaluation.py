"""What a trained classifier is judged by: accuracy, loss, confusions and calibration, summed over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from lit_distill._views import InputView, ViewsBatch
from lit_distill.inference.classifiers import log_probabilities

CALIBRATION_BINS = 15
TOP = 5
MAX_CLASSES = 10_000


class ClassificationReport(Metric):
    r"""All that a test reports of a classifier, as sums that add up exactly over batches and processes.

    **Calibration** is the expected calibration error with M = 15 bins of equal width,

    .. math:: ECE = \sum_{m=1}^{M} \frac{|B_m|}{n} \, \bigl| acc(B_m) - conf(B_m) \bigr|

    where :math:`B_m` are the samples whose confidence, the probability of the predicted class, is in
    :math:`((m-1)/M, m/M]`, acc the share of them that is right, and conf their mean confidence (Naeini et al., AAAI
    2015; with 15 bins: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). The **loss** is the mean
    cross-entropy :math:`-\log p_y`, which is the negative log-likelihood.

    A tie goes to the class that :func:`torch.topk` puts first.

    Args:
        num_classes: C.
        bins: M.

    Example:
        >>> report = ClassificationReport(num_classes=2)
        >>> report.update(torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log(), torch.tensor([0, 1]))
        >>> report.confusion.tolist(), round(report.compute()["ece"], 3), round(report.compute()["top1"], 3)
        ([[1, 0], [1, 0]], 0.35, 0.5)
    """

    full_state_update = False
    confusion: Tensor
    in_top: Tensor
    negative_log_likelihood: Tensor
    binned: Tensor

    def __init__(self, *, num_classes: int, bins: int = CALIBRATION_BINS) -> None:
        super().__init__()
        if num_classes < 1 or bins < 1:
            raise ValueError(f"num_classes and bins must be at least 1, got {num_classes} and {bins}")
        if num_classes > MAX_CLASSES:
            raise ValueError(
                f"expected at most {MAX_CLASSES:,} classes for a confusion matrix, which has 800 MB then, got "
                f"{num_classes:,}: classify by predict"
            )
        self.num_classes, self.bins = num_classes, bins
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("in_top", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("negative_log_likelihood", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        # rows: samples, sum of their confidences, how many are right
        self.add_state("binned", torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_probabilities: Tensor, target: Tensor) -> None:
        """Count one batch: log-probabilities (B, C), class indices (B,).

        Raises:
            ValueError: another number of classes, or targets that are no class indices.
        """
        if log_probabilities.ndim != 2 or log_probabilities.shape[1] != self.num_classes:
            raise ValueError(
                f"expected log-probabilities (B, {self.num_classes}), got {tuple(log_probabilities.shape)}: "
                "the network was built for other classes than the data's"
            )
        if target.shape != log_probabilities.shape[:1] or target.is_floating_point():
            raise ValueError(f"expected class indices (B,), got {target.dtype} {tuple(target.shape)}")
        top = log_probabilities.topk(min(TOP, self.num_classes), dim=1)
        predicted = top.indices[:, 0]
        cells = target * self.num_classes + predicted
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        self.in_top += (top.indices == target[:, None]).any(dim=1).sum()
        self.negative_log_likelihood -= log_probabilities.gather(1, target[:, None]).double().sum()
        confidence = top.values[:, 0].double().exp().clamp(max=1.0)
        place = (torch.ceil(confidence * self.bins).long() - 1).clamp(0, self.bins - 1)
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == target).double()])
        self.binned.index_add_(1, place, rows)

    def compute(self) -> dict[str, Any]:
        """``samples``, ``top1``, ``top5``, ``loss``, ``ece``, ``bins`` (those with samples), ``confusion``."""
        samples = int(self.confusion.sum())
        if not samples:
            raise ValueError("nothing was evaluated: there are no samples")
        count, confidence, right = self.binned
        gaps = (right - confidence).abs()
        return {
            "samples": samples,
            "top1": int(self.confusion.diagonal().sum()) / samples,
            "top5": int(self.in_top) / samples,
            "loss": float(self.negative_log_likelihood) / samples,
            "ece": float(gaps.sum()) / samples,
            "bins": [
                {
                    "above": m / self.bins,
                    "up_to": (m + 1) / self.bins,
                    "samples": int(count[m]),
                    "confidence": float(confidence[m] / count[m]),
                    "accuracy": float(right[m] / count[m]),
                }
                for m in range(self.bins)
                if count[m] > 0
            ],
            "confusion": self.confusion.tolist(),
        }


def class_rows(confusion: Sequence[Sequence[int]], class_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row a class: how many samples, the share that is right, and what the others were most often taken for.

    Args:
        confusion: (C, C) counts; rows are the true classes, columns the predicted ones.
        class_names: by class index; none for their numbers.

    Returns:
        rows with ``class``, ``name``, ``samples``, ``top1`` (None without samples), ``confused_with`` (None where all
        are right) and ``confused`` (how often).

    Example:
        >>> class_rows([[3, 1], [0, 0]], ["run", "jump"])[0]
        {'class': 0, 'name': 'run', 'samples': 4, 'top1': 0.75, 'confused_with': 'jump', 'confused': 1}
    """
    names = list(class_names) or [str(number) for number in range(len(confusion))]
    rows = []
    for number, row in enumerate(confusion):
        samples, right = sum(row), row[number]
        most, other = max(((count, -at) for at, count in enumerate(row) if at != number), default=(0, 0))
        rows.append(
            {
                "class": number,
                "name": names[number],
                "samples": samples,
                "top1": right / samples if samples else None,
                "confused_with": names[-other] if most else None,
                "confused": most,
            }
        )
    return rows


class Evaluation(LightningModule):
    """Runs one network over a data module's validation or test batches; ``figures`` are then those of all processes."""

    def __init__(self, network: nn.Module, *, num_classes: int, view: InputView | None = None) -> None:
        super().__init__()
        self.network = network
        self.view = view
        self.report = ClassificationReport(num_classes=num_classes)
        self.figures: dict[str, Any] = {}
        """What :meth:`ClassificationReport.compute` gave at the end."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Count one batch (inputs, target, ...)."""
        inputs, target, *_ = batch
        seen = inputs if self.view is None else self.view(inputs)
        self.report.update(log_probabilities(self.network, seen, views=isinstance(batch, ViewsBatch)), target)

    def on_test_epoch_end(self) -> None:
        """Bring the sums of all processes together."""
        self.figures = self.report.compute()

    validation_step, on_validation_epoch_end = test_step, on_test_epoch_end
