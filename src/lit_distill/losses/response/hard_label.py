"""Hard distillation: the teacher's most likely class as the label (Touvron et al., DeiT, ICML 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._numerics import full_precision, nan_unless_finite
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import logit_rows

__all__ = ["HardLabelLoss", "hard_label_loss"]


@full_precision
def hard_label_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, class_dim: int | None = None
) -> Tensor:
    """Cross-entropy with the teacher's decision; see :class:`HardLabelLoss`."""
    rows = logit_rows("hard_label_loss", student, teacher, class_dim, mask)
    per_row = F.cross_entropy(rows.student, rows.teacher.argmax(dim=-1), reduction="none")
    # An argmax would make a class of NaN.
    return rows.mean(per_row) + nan_unless_finite(rows.teacher)


@hyperparameters
class HardLabelLoss(Loss):
    r"""The teacher's most likely class is the label.

    .. math:: L = \frac{1}{N} \sum_i \mathrm{CE}\left(s_i, \arg\max_c t_{ic}\right)

    Averaged over samples (and over time steps or pixels); no gradient to the teacher. DeiT takes the mean of it and
    the cross-entropy with the true labels: two terms of weight 0.5.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``;
    segmentation maps (B, C, H, W) take ``class_dim=1``.

    Paper: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021.

    Use when: no temperature should be tuned, or teacher and student are of different kinds, such as a convolutional
    teacher and a transformer student.

    Args:
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(HardLabelLoss()(student, teacher).item(), 4)
        0.4076
    """

    expects_logits = True

    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against the teacher's decisions: a scalar."""
        return hard_label_loss(student, teacher, mask=mask, **self.hyperparameters)
