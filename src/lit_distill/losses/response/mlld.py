"""Multi-level logit distillation (Jin et al., CVPR 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative, Rule, Share
from lit_distill.losses._numerics import full_precision, kl_from_log_probabilities
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import LogitRows, logit_rows

__all__ = ["MLLDLoss", "mlld_loss"]

Temperatures: TypeAlias = Annotated[
    Sequence[float],
    Rule(lambda given: len(given) > 0 and all(0 < t < math.inf for t in given), "one or more finite numbers above 0"),
]


@full_precision
def mlld_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: NonNegative = 1.0,
    batch: NonNegative = 1.0,
    classes: NonNegative = 1.0,
    confidence_quantile: Share | None = None,
    class_dim: int | None = None,
    gather: bool = False,
) -> Tensor:
    """Distillation at instance, batch and class level over several temperatures; see :class:`MLLDLoss`."""
    rows = logit_rows("mlld_loss", student, teacher, class_dim, mask)
    rows = rows.gathered() if gather else rows
    of_samples, of_classes = _masks(rows, confidence_quantile)
    weights = rows.weights
    parts = []
    for temperature in temperatures:
        log_s, log_t = (F.log_softmax(logits / temperature, dim=1) for logits in (rows.student, rows.teacher))
        p_s, p_t = log_s.exp(), log_t.exp()
        by_sample = kl_from_log_probabilities(log_t, log_s) * temperature**2
        by_batch = (p_t @ p_t.T - p_s @ p_s.T).square() @ weights
        by_class = ((weights * p_t.T) @ p_t - (weights * p_s.T) @ p_s).square().sum(dim=1)
        parts.append(
            instance * rows.mean(of_samples * by_sample)
            + batch * rows.mean(of_samples * by_batch)
            + classes * (of_classes * by_class).mean()
        )
    return torch.stack(parts).sum()


def _masks(rows: LogitRows, quantile: float | None) -> tuple[Tensor, Tensor]:
    """1 for the samples, and for the classes, of which the teacher is least confident; at no quantile for all."""
    teacher = rows.teacher.detach()
    if quantile is None:
        return teacher.new_ones(len(teacher)), teacher.new_ones(teacher.shape[1])
    p = F.softmax(teacher, dim=1)
    sample, label = p.amax(dim=1).masked_fill(rows.weights == 0, math.nan), rows.weights @ p
    return (sample <= sample.nanquantile(quantile)).to(p.dtype), (label <= label.quantile(quantile)).to(p.dtype)


@hyperparameters
class MLLDLoss(Loss):
    r"""Match class probabilities per sample, and Gram matrices of samples and of classes, at several temperatures.

    With P, Q the N × C matrices of probabilities of student and teacher at temperature T:

    .. math:: L = \sum_T a \frac{T^2}{N} \sum_i \mathrm{KL}(Q_i \| P_i)
            + b \frac{1}{N} \left\| QQ^\top - PP^\top \right\|_F^2
            + c \frac{1}{C} \left\| Q^\top Q - P^\top P \right\|_F^2

    a, b, c are ``instance``, ``batch`` and ``classes``. Summed over temperatures; only the first part is times T².
    Grams are batch-wise: under DDP, ``gather`` makes them those of the global batch. It stands beside a
    cross-entropy with the labels.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``; every
    row counts as a sample, so that tokens or pixels take memory of their squared number.

    Paper: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, with its authors' temperatures. The default
    is the three levels as they are. The authors' program, on weakly augmented views, also multiplies each level's
    average by the mean of a mask of the samples (classes) that the teacher is least confident of, a constant near 1/2;
    with ``confidence_quantile=0.5`` those samples and classes are in fact selected.

    Use when: only logits are available, there is compute to spare, batches hold dozens of samples or more, and the
    teacher is trained: the relations of samples and of classes add to what each sample says.

    Args:
        temperatures: the temperatures T, each above 0.
        instance: a, the weight of the samples' level.
        batch: b, the weight of the batch's level.
        classes: c, the weight of the classes' level.
        confidence_quantile: keep only the samples whose highest teacher probability, and the classes whose summed
            teacher probability (both at T = 1) are at most this quantile of the batch; the divisors stay N and C.
        class_dim: where the classes stand, needed for four and more dimensions.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])
        >>> teacher = torch.tensor([[3.0, 0.0, -3.0], [0.0, 5.0, 1.0]])
        >>> round(MLLDLoss(temperatures=(2.0, 4.0))(student, teacher).item(), 4)
        1.8087
        >>> MLLDLoss()(teacher, teacher).item()
        0.0
    """

    expects_logits = True

    temperatures: Temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    instance: NonNegative = 1.0
    batch: NonNegative = 1.0
    classes: NonNegative = 1.0
    confidence_quantile: Share | None = None
    class_dim: int | None = None
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.temperatures = tuple(self.temperatures)

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return mlld_loss(student, teacher, mask=mask, **self.hyperparameters)
