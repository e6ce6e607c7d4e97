"""Transformed teacher matching (Zheng and Yang, ICLR 2024), with and without weights of samples."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision, kl_from_log_probabilities
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import logit_rows

__all__ = ["TTMLoss", "ttm_loss"]


@full_precision
def ttm_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    gamma: Positive = 0.1,
    weighted: bool = False,
    class_dim: int | None = None,
) -> Tensor:
    """KL divergence of the student's probabilities from a power of the teacher's; see :class:`TTMLoss`."""
    rows = logit_rows("ttm_loss", student, teacher, class_dim, mask)
    powers = gamma * F.log_softmax(rows.teacher, dim=-1)
    per_row = kl_from_log_probabilities(F.log_softmax(powers, dim=-1), F.log_softmax(rows.student, dim=-1))
    if weighted:
        per_row = per_row * powers.exp().sum(dim=-1)
    return rows.mean(per_row)


@hyperparameters
class TTMLoss(Loss):
    r"""The student, without a temperature, matches a power of the teacher's probabilities.

    With q the student's and p the teacher's probabilities, both at T = 1:

    .. math:: L = \frac{1}{N} \sum_i w_i \, \mathrm{KL}\left(\tilde p_i \,\|\, q_i\right), \quad
        \tilde p_{ic} = \frac{p_{ic}^γ}{\sum_k p_{ik}^γ}, \quad
        w_i = 1 \text{ (TTM)} \quad\text{or}\quad w_i = \sum_k p_{ik}^γ \text{ (WTTM)}

    Summed over classes, averaged over samples (and over time steps or pixels), without T². The power γ is Hinton's 1/T,
    of the teacher alone: what the student's temperature would add is a Rényi entropy that the paper drops, as it
    keeps the student from matching. ``weighted`` is WTTM: samples of a smooth teacher count for more; for γ up to 1
    the weights are from 1 to C^(1 - γ), so that the loss grows with the number of classes.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``;
    segmentation maps (B, C, H, W) take ``class_dim=1``.

    Paper: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv:2402.11148.
    Matches the authors' program, which weighs TTM 45 at γ = 0.1 and WTTM 4 at γ = 0.2 beside CRD, both beside the
    cross-entropy with the labels at weight 1.

    Use when: a trained teacher exists, as for KDLoss: the student fits its labels more tightly, as it is not smoothed.
    Take the weights when the teacher is sure of most samples, so that the few that it is not sure of should count.

    Args:
        gamma: γ, above 0; below 1 it smooths the teacher.
        weighted: weigh samples by the sum of the powers.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a γ that is not positive, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(TTMLoss(gamma=0.5)(student, teacher).item(), 4)
        0.0395
        >>> round(TTMLoss(gamma=0.5, weighted=True)(student, teacher).item(), 4)
        0.0491
    """

    expects_logits = True

    gamma: Positive = 0.1
    weighted: bool = False
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return ttm_loss(student, teacher, mask=mask, **self.hyperparameters)
