"""Similarity-preserving distillation (Tung and Mori, ICCV 2019)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation._gram import gram, sample_rows

__all__ = ["SimilarityLoss", "similarity_loss"]

RowNorm = Literal["l2", "l1"]


@full_precision
def similarity_loss(student: Tensor, teacher: Tensor, *, row_norm: RowNorm = "l2", gather: bool = False) -> Tensor:
    """Mean squared difference of the normalized Gram matrices; see :class:`SimilarityLoss`."""
    student, teacher = sample_rows("similarity_loss", student, teacher.detach(), gather=gather)
    power = 2.0 if row_norm == "l2" else 1.0
    return F.mse_loss(F.normalize(gram(student), p=power, dim=1), F.normalize(gram(teacher), p=power, dim=1))


@hyperparameters
class SimilarityLoss(Loss):
    r"""Samples that look alike to the teacher look alike to the student.

    Signals: student and teacher activations of the same N samples, (N, D) or maps (N, C, H, W), flattened to one row a
    sample; their other dimensions may differ. Not centered: the similarity is the inner product. A mean over the N²
    pairs, which is the published squared Frobenius norm over N². Neither the scale nor the order of the samples
    matters. No gradient reaches the teacher.

    Formula:
        G = A Aᵀ, each row divided by its norm, for student and teacher
        L = 1/N² Σ_ik (G_ik(student) - G_ik(teacher))²

    Paper: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682. Matches
        RepDistiller and mdistiller with their L2 norm of a row, of one pair of layers; they weigh it with 3000.
        ``row_norm="l1"`` matches torchdistill, which divides by the sum of absolute values.

    Use when: feature maps of different channels and sizes are to be compared without any connector. Cheap; wants large
        batches, with several processes ``gather=True``.

    Args:
        row_norm: "l2" or "l1".
        gather: relate the samples of all processes; each must then take the same number of steps.

    Raises:
        ValueError: another ``row_norm``, signals of different N, NaN or infinite activations.

    Example:
        >>> import torch
        >>> loss = SimilarityLoss()
        >>> round(loss(torch.eye(2), torch.ones(2, 3)).item(), 4)
        0.2929
        >>> loss(torch.eye(2), 3 * torch.eye(2)).item()
        0.0
    """

    row_norm: RowNorm = "l2"
    gather: bool = False

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of student activations against teacher activations: a scalar."""
        return similarity_loss(student, teacher, **self.hyperparameters)
