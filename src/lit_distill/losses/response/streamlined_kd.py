"""Streamlined knowledge distillation: each sample's answer, and the direction in which the relations differ."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision, kl_from_logits
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import LogitRows, logit_rows

__all__ = ["StreamlinedKDLoss", "streamlined_kd_loss"]


@full_precision
def streamlined_kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 4.0,
    instance: NonNegative = 1.0,
    direction: NonNegative = 1.0,
    tikhonov: Positive = 0.1,
    class_dim: int | None = None,
    gather: bool = False,
) -> Tensor:
    """Divergence of the answers, and a Mahalanobis length of the relations' differences; see the class."""
    rows = logit_rows("streamlined_kd_loss", student, teacher, class_dim, mask)
    rows = rows.gathered() if gather else rows
    value = instance * rows.mean(kl_from_logits(rows.teacher, rows.student, temperature=temperature))
    return value + direction * _direction(rows, tikhonov) if direction else value


def _direction(rows: LogitRows, tikhonov: float) -> Tensor:
    """The mean length of a row of relations' differences, in units of their own covariance."""
    student, teacher, weights = unit_vectors(rows.student), unit_vectors(rows.teacher), rows.weights
    differences = (student @ student.T - teacher @ teacher.T) * weights.sqrt()
    total = weights.sum()
    mean = weights @ differences / total.masked_fill(total == 0, 1)
    around = (differences - mean) * weights.sqrt()[:, None]
    covariance = around.T @ around / (total - 1).clamp_min(1)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    # Positive definite, so no look at the device whether it is.
    lower, _ = torch.linalg.cholesky_ex(covariance + tikhonov * identity)
    solved = torch.linalg.solve_triangular(lower, differences.T, upper=False)
    squares = solved.square().sum(dim=0)
    there = squares > 0
    # The root of 0 has no slope: a sample whose relations agree exactly gets none.
    lengths = torch.where(there, squares, 1.0).sqrt().where(there, squares)
    return rows.mean(lengths)


@hyperparameters
class StreamlinedKDLoss(Loss):
    r"""Match each sample's answer, and the relations between samples in the directions in which they differ.

    With S, R the logits of student and teacher, each row of length 1, D = S Sᵀ - R Rᵀ with rows d, N × N:

    .. math:: L = a \frac{1}{N} \sum_i \mathrm{KL}\left(\mathrm{softmax}(t_i/T) \,\|\, \mathrm{softmax}(s_i/T)\right)
        + b \frac{1}{N} \sum_i \sqrt{d_i^\top \left(\mathrm{Cov}(D) + λ I\right)^{-1} d_i}

    a, b are ``instance`` and ``direction``. The first part is summed over classes, averaged over samples, without T².
    The covariance of the rows of D is unbiased and gets gradients; the rows themselves are not centered, as published.
    Where a row of D is 0, as for equal logits, its root has no slope and gives none (the published gradient is NaN);
    one sample alone has no relations. D is batch-wise: under DDP, ``gather`` makes it that of the global batch.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``; every
    row counts as a sample, so that tokens or pixels take memory of their squared number.

    Paper: "Streamlined Knowledge Distillation", CVPR 2026, as torchdistill has it (SKDInstanceLoss, SKDDirectionLoss):
    both weights 1, T = 4 and no cross-entropy with the labels, at a batch of 512.

    Use when: a trained teacher exists and batches are large: its logits are the only signal that is needed.

    Args:
        temperature: T, above 0.
        instance: a, the weight of the samples' part.
        direction: b, the weight of the relations' part.
        tikhonov: λ, above 0, which keeps the covariance invertible.
        class_dim: where the classes stand, needed for four and more dimensions.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])
        >>> teacher = torch.tensor([[3.0, 0.0, -3.0], [0.0, 5.0, 1.0]])
        >>> round(StreamlinedKDLoss()(student, teacher).item(), 4)
        0.4806
        >>> StreamlinedKDLoss()(teacher, teacher).item()
        0.0
    """

    expects_logits = True

    temperature: Positive = 4.0
    instance: NonNegative = 1.0
    direction: NonNegative = 1.0
    tikhonov: Positive = 0.1
    class_dim: int | None = None
    gather: bool = False

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return streamlined_kd_loss(student, teacher, mask=mask, **self.hyperparameters)
