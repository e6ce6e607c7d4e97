"""Quality focal distillation (Wang et al., CVPR 2024): classes of a detector, most where both networks disagree."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision, nan_unless_finite
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import logit_rows

__all__ = ["QualityFocalLoss", "quality_focal_loss"]


@full_precision
def quality_focal_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, beta: Positive = 1.0, class_dim: int | None = None
) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities, times the difference; see :class:`QualityFocalLoss`."""
    rows = logit_rows("quality_focal_loss", student, teacher, class_dim, mask, one_class=True)
    target = rows.teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(rows.student, target, reduction="none")
    gap = (rows.student.sigmoid() - target).abs()
    loss = rows.mean((entropy * (gap if beta == 1 else gap**beta)).sum(dim=1))
    return loss + nan_unless_finite(rows.teacher)  # a probability hides infinity


@hyperparameters
class QualityFocalLoss(Loss):
    r"""Cross-entropy of each class as a yes or no, weighed by how far the student's probability is from the teacher's.

    .. math:: L = \frac1N \sum_i \sum_c \mathrm{BCE}\left(σ(s_{ic}), σ(t_{ic})\right)
        \left| σ(s_{ic}) - σ(t_{ic}) \right|^β

    Summed over classes, averaged over rows. The weight has a gradient, too, as published. Detectors divide the sum by
    the number of boxes instead: times N over that number is the published value.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``, of
    classes that are a yes or no each; one class will do.

    Paper: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024, arXiv:2306.11369,
    at weight 1, of the form of Li et al., "Generalized Focal Loss", NeurIPS 2020. See CrossKDLoss.

    Use when: dense detectors, in which nearly every place is background to both networks.

    Args:
        beta: β, above 0.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> round(QualityFocalLoss()(torch.zeros(1, 1), torch.full((1, 1), 50.0)).item(), 4)  # log 2 times 1/2
        0.3466
    """

    expects_logits = True

    beta: Positive = 1.0
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return quality_focal_loss(student, teacher, mask=mask, **self.hyperparameters)
