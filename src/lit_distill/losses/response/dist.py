"""Distillation from a stronger teacher by correlation (Huang et al., NeurIPS 2022)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._normalized import EpsForm, correlation, mean_correlations
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import logit_rows

__all__ = ["DISTLoss", "dist_loss"]


@full_precision
def dist_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    beta: NonNegative = 1.0,
    gamma: NonNegative = 1.0,
    temperature: Positive = 1.0,
    eps: Positive = 1e-8,
    eps_form: EpsForm = "added",
    class_dim: int | None = None,
    gather: bool = False,
) -> Tensor:
    """One minus the correlation of rows and of columns of the class probabilities; see :class:`DISTLoss`."""
    rows = logit_rows("dist_loss", student, teacher, class_dim, mask)
    rows = rows.gathered() if gather else rows
    logits = (rows.student, rows.teacher)
    p_s, p_t = (F.softmax(x if temperature == 1 else x / temperature, dim=1) for x in logits)
    if rows.mask is None:
        both = mean_correlations(p_s, p_t, of_rows=beta, of_columns=gamma, eps=eps, eps_form=eps_form)
        return (beta + gamma - both) * temperature**2
    weights = rows.weights[:, None]
    between = rows.mean(1 - correlation(p_s, p_t, dim=1, eps=eps, eps_form=eps_form))
    within = (1 - correlation(p_s, p_t, dim=0, eps=eps, eps_form=eps_form, weights=weights)).mean()
    within = within * (weights.sum() > 0)  # where no row counts, no column correlates
    return (beta * between + gamma * within) * temperature**2


@hyperparameters
class DISTLoss(Loss):
    r"""The student keeps the teacher's relations between classes and between samples, not its exact probabilities.

    With P, Q the N × C matrices of probabilities softmax(·/T) of student and teacher, and ρ Pearson's correlation:

    .. math:: L = T^2 \left[ β \left(1 - \frac{1}{N} \sum_i ρ(P_{i\cdot}, Q_{i\cdot})\right)
            + γ \left(1 - \frac{1}{C} \sum_c ρ(P_{\cdot c}, Q_{\cdot c})\right) \right]

    The first part (inter-class) compares each sample's row, the second (intra-class) each class's column over the
    batch. Averaged, times T²; between 0 and 2 T² (β + γ). Scaling a row of probabilities about its mean changes
    nothing. Columns are batch-wise: under DDP, ``gather`` makes them those of the global batch.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``;
    segmentation maps (B, C, H, W) take ``class_dim=1`` and every pixel is a row.

    Paper: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022. The default is the authors' own
    (hunto/DIST_KD), as in PaddleClas; ``eps_form="floor"`` is torchdistill's, through a cosine similarity.

    Use when: the teacher is much stronger than the student, so that its exact probabilities are out of reach; batches
    should not be tiny, as columns are compared over the batch.

    Args:
        beta: β, the weight of rows; the authors use 1 on ImageNet, 2 on CIFAR-100.
        gamma: γ, the weight of columns; the same.
        temperature: T, above 0; the authors use 1 on ImageNet, 4 on CIFAR-100.
        eps: a small number against division by zero.
        eps_form: ``added`` to the product of the two lengths, or a ``floor`` under each of them. Where the spread of a
            row or column is no more than rounding, its correlation counts as 0 and gets no gradient.
        class_dim: where the classes stand, needed for four and more dimensions.
        gather: take the rows of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])
        >>> teacher = torch.tensor([[3.0, 0.0, -3.0], [0.0, 5.0, 1.0]])
        >>> round(DISTLoss()(student, teacher).item(), 4)
        0.0122
        >>> abs(round(DISTLoss()(teacher, teacher).item(), 4))
        0.0
    """

    expects_logits = True

    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    temperature: Positive = 1.0
    eps: Positive = 1e-8
    eps_form: EpsForm = "added"
    class_dim: int | None = None
    gather: bool = False

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return dist_loss(student, teacher, mask=mask, **self.hyperparameters)
