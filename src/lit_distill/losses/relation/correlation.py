"""Correlation congruence (Peng et al., ICCV 2019)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Count, Positive
from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation._gram import gram, sample_rows

__all__ = ["CorrelationLoss", "correlation_loss"]

Kernel = Literal["gaussian", "bilinear", "consecutive"]


@full_precision
def correlation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    kernel: Kernel = "gaussian",
    gamma: Positive = 0.4,
    order: Count = 2,
    normalize: bool = True,
    squared: bool = True,
    gather: bool = False,
) -> Tensor:
    """Difference of the correlations between samples; see :class:`CorrelationLoss`."""
    student, teacher = sample_rows("correlation_loss", student, teacher.detach(), gather=gather)
    if normalize:
        student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    if kernel == "consecutive":
        require_same_shape("correlation_loss with kernel='consecutive'", student, teacher)
        apart = (student - teacher).abs()
        return (apart[:-1] * apart[1:]).sum() / max(1, len(apart) - 1)

    difference = _correlations(student, kernel, gamma, order) - _correlations(teacher, kernel, gamma, order)
    if squared:
        return difference.square().mean()
    norm: Tensor = torch.linalg.vector_norm(difference)
    return norm / difference.numel()


def _correlations(rows: Tensor, kernel: Kernel, gamma: float, order: int) -> Tensor:
    products = gram(rows)
    if kernel == "bilinear":
        return products
    series = 1 + 2 * gamma / order * products
    for p in range(order - 1, 0, -1):  # Horner's scheme: no powers to keep
        series = 1 + 2 * gamma / p * products * series
    return math.exp(-2 * gamma) * series


@hyperparameters
class CorrelationLoss(Loss):
    r"""The student's batch has the teacher's correlations between samples, measured by a kernel beyond the linear one.

    Signals: student embeddings (N, D_s) and teacher embeddings (N, D_t) of the same N samples; more dimensions are
    flattened, one row a sample. A mean over the N² pairs, which is the paper's squared norm over N². The order of the
    samples does not matter. No gradient reaches the teacher.

    The default is the paper's loss. Other published forms:

    - ``normalize=False, squared=False``, kernel "gaussian" or "bilinear": torchdistill, which leaves rows as they come
      and divides the norm itself by N².
    - ``kernel="consecutive", normalize=False``: RepDistiller, restructured from code that the authors shared; not
      the paper's loss. Mean over neighbors in the batch of Σ_d |s - t|_i |s - t|_{i+1}: it depends on the order of the
      samples, wants D_s = D_t, and gives 0 for a batch of one. Its weight there is 0.02.

    Formula:
        K_ik = exp(-2γ) Σ_{p=0..P} (2γ)^p / p! <e_i, e_k>^p  ≈  exp(-γ |e_i - e_k|²),   |e_i| = 1
        L = 1/N² Σ_ik (K_ik(student) - K_ik(teacher))²

    Paper: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv:1904.01802. γ and P
        default to what public configurations of the method use.

    Use when: as SimilarityLoss, with embeddings on the unit sphere. Cheap; wants large batches, with several processes
        ``gather=True``.

    Args:
        kernel: "gaussian", "bilinear" or "consecutive".
        gamma: γ of the gaussian kernel, above 0.
        order: P of the gaussian kernel's Taylor series, at least 1.
        normalize: scale each row to length 1 first, which the series is made for.
        squared: square the difference of the matrices; otherwise its Frobenius norm over N².
        gather: relate the samples of all processes; each must then take the same number of steps.

    Raises:
        ValueError: a bad hyperparameter, signals of different N (or D for "consecutive"), NaN or infinite embeddings.

    Example:
        >>> import torch
        >>> loss = CorrelationLoss()
        >>> round(loss(torch.eye(2), torch.ones(2, 3)).item(), 4)
        0.1266
        >>> loss(torch.eye(2), 3 * torch.eye(2)).item()
        0.0
    """

    kernel: Kernel = "gaussian"
    gamma: Positive = 0.4
    order: Count = 2
    normalize: bool = True
    squared: bool = True
    gather: bool = False

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of student embeddings against teacher embeddings: a scalar."""
        return correlation_loss(student, teacher, **self.hyperparameters)
