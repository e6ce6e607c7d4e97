"""The few metrics of validation, as torchmetrics that sum over batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class TopKAccuracy(Metric):
    """Share of samples whose class is among the k highest logits; k above the number of classes counts all.

    Example:
        >>> metric = TopKAccuracy(k=1)
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: logits (B, C), class indices (B,)."""
        top = logits.topk(min(self.k, logits.shape[1]), dim=1).indices
        self.correct += (top == target.reshape(-1, 1)).any(dim=1).sum()
        self.total += target.numel()

    def compute(self) -> Tensor:
        """The share over everything seen."""
        return self.correct.float() / self.total


class TermMeans(Metric):
    """Means of a stage's total and terms over all samples and ranks.

    Example:
        >>> means = TermMeans(1)
        >>> means.update(torch.tensor([1.0, 2.0]), 1)
        >>> means.update(torch.tensor([4.0, 5.0]), 2)
        >>> means.compute()
        tensor([3., 4.])
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(terms + 1), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor, samples: int) -> None:
        """Add one batch's means (terms + 1,), weighed by its number of samples."""
        self.sums += values * samples
        self.count += samples

    def compute(self) -> Tensor:
        """The means over everything seen."""
        return self.sums / self.count
