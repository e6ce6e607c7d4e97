"""The few metrics of validation, as torchmetrics that sum over batches and ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


def why_no_classes(output: object, target: object) -> str | None:
    """Why an output cannot be judged by the class of each sample; None where its form allows it.

    Example:
        >>> why_no_classes(torch.zeros(4, 1), torch.zeros(4))
        'its output (4, 1) is one number a sample'
        >>> why_no_classes(torch.zeros(4, 3), torch.tensor([0, 2, 1, 1])) is None
        True
    """
    if not isinstance(output, Tensor):
        return f"its output is a {type(output).__name__}, not a tensor, and answer=… names no part of it"
    if not isinstance(target, Tensor):
        return f"the target is a {type(target).__name__}, not a tensor"
    shape, labels = tuple(output.shape), f"target {tuple(target.shape)} of {target.dtype}"
    if len(shape) != 2:
        return f"its output is {shape}"
    if shape[1] == 1:
        return f"its output {shape} is one number a sample"
    indices = target.ndim == 1 or tuple(target.shape) == (shape[0], 1)
    if (indices and target.is_floating_point()) or not (indices or tuple(target.shape) == shape):
        return f"the {labels} is neither class indices nor probabilities like the output {shape}"
    return None


def at_chance(name: str, top1: float, samples: int, classes: int) -> str | None:
    """What to say of a frozen model whose top-1 accuracy is no better than guessing; None where it is better."""
    chance = 1 / classes
    if lower_bound(top1, samples) > chance:
        return None
    return (
        f"the frozen {name} is no better than chance: top-1 {100 * top1:.1f} % on {samples} validation samples, chance "
        f"{100 * chance:.1f} %: are these its weights, classes and preprocessing?"
    )


def lower_bound(share: float, count: int, z: float = 1.96) -> float:
    """Lower end of Wilson's 95 % interval of a share."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count)


class TopKAccuracy(Metric):
    """Share of samples whose class is among the k highest logits; k above the number of classes counts all.

    Samples without a label, of a class index below 0, do not count. Rows of a target (B, C) that do not sum to 1, as
    multi-hot ones, name no single class, nor does an index that the output has no score for: the share is NaN where
    there was one.

    Example:
        >>> metric = TopKAccuracy(k=1)
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = False
    correct: Tensor
    total: Tensor
    several: Tensor

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.add_state("correct", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("several", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count one batch: logits (B, C), class indices (B,) or (B, 1), or probabilities (B, C)."""
        if target.ndim == 2 and target.shape[1] > 1:
            rows = target.float()
            target = rows
            self.several += (((rows.sum(dim=1) - 1).abs() > 1e-2) | (rows < 0).any(dim=1)).sum()
        labels = (target if target.ndim == 1 or target.shape[1] == 1 else target.argmax(dim=1)).reshape(-1, 1)
        known = labels >= 0
        self.several += (labels >= logits.shape[1]).sum()  # the output is no score of each class
        top = logits.topk(min(self.k, logits.shape[1]), dim=1).indices
        self.correct += ((top == labels) & known).any(dim=1).sum()
        self.total += known.sum()

    def compute(self) -> Tensor:
        """The share over everything seen; NaN where nothing has one class."""
        return torch.where(self.several > 0, torch.nan, self.correct.float() / self.total)


class TermMeans(Metric):
    """Means of a stage's total and terms over all samples and ranks; NaN where there is none.

    Example:
        >>> means = TermMeans(1)
        >>> means.update(torch.tensor([1.0, 2.0]), 1)
        >>> means.update(torch.tensor([4.0, 5.0]), 2)
        >>> means.compute()
        tensor([[3., 4.],
                [3., 3.]])
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.add_state("sums", default=torch.zeros(terms + 1), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(terms + 1), dist_reduce_fx="sum")

    def update(self, values: Tensor, samples: int | Tensor) -> None:
        """Add one batch's means (terms + 1,), weighed by the number of samples, or by that of each, (terms + 1,)."""
        if isinstance(samples, Tensor):
            samples = samples.to(self.sums, non_blocking=True)
            self.sums += torch.where(samples > 0, values * samples, 0)
        else:
            self.sums += values * samples
        self.count += samples

    def compute(self) -> Tensor:
        """The means over everything seen, and of how many samples each is, (2, terms + 1)."""
        return torch.stack([self.sums / self.count, self.count])
