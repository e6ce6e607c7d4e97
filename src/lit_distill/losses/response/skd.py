"""Spherical knowledge distillation (Guo et al., 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive, Share
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import label_cross_entropy, label_rows, logit_rows, soft_cross_entropy

__all__ = ["SKDLoss", "skd_loss"]

_NORM_EPS = 1e-7  # published, added to the variance


@full_precision
def skd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 1.0,
    multiplier: Positive = 2.0,
    alpha: Share = 0.9,
    teacher_labels: bool = False,
    class_dim: int | None = None,
) -> Tensor:
    """Distillation between logits of one length; see :class:`SKDLoss`."""
    rows = logit_rows("skd_loss", student, teacher, class_dim, mask)
    student, teacher = rows.student, rows.teacher
    labels = teacher.argmax(dim=1) if teacher_labels else label_rows("skd_loss", rows, target, class_dim)
    student, teacher = (
        F.layer_norm(logits, logits.shape[1:], eps=_NORM_EPS) * multiplier for logits in (student, teacher)
    )
    soft = soft_cross_entropy(F.log_softmax(teacher / temperature, dim=1), F.log_softmax(student / temperature, dim=1))
    hard = label_cross_entropy(F.log_softmax(student, dim=1), labels)
    return rows.mean(alpha * temperature**2 * soft + (1 - alpha) * hard)


@hyperparameters
class SKDLoss(Loss):
    r"""Compare teacher and student on a sphere: their logits are centered and scaled to one length first.

    With ẑ = m (z - mean) / √(var + 1e-7), the biased variance over the classes, m = ``multiplier``:

    .. math::
        L = α \frac{T^2}{N} \sum_i \mathrm{CE}\left(\mathrm{softmax}(\hat t_i/T), \mathrm{softmax}(\hat s_i/T)\right)
            + (1 - α) \frac{1}{N} \sum_i \mathrm{CE}(y_i, \hat s_i)

    A soft and a hard cross-entropy averaged over samples, the soft one times T²: the loss holds its own part of the
    labels, on the normalized logits, so a separate cross-entropy term is not needed. Neither part is 0 for equal
    logits. Scaling or shifting a sample's logits (of either network) leaves it as it is.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``; as
    target class indices (B,) or (B, T), or class probabilities of the logits' shape.

    Paper: Guo et al., "Reducing the Teacher-Student Gap via Spherical Knowledge Distillation", 2020. This is the form
    with a fixed length that PaddleClas publishes as SKDLoss; the authors' latest program scales the student to the
    teacher's standard deviation instead.

    Use when: teacher and student differ much in size, and so in the length of their logits: only their direction is
    compared, and the temperature hardly needs tuning.

    Args:
        temperature: T, above 0.
        multiplier: m, the common standard deviation of the logits, above 0.
        alpha: α, the share of the soft part, from 0 to 1.
        teacher_labels: take the teacher's most likely class instead of the target, PaddleClas' ``use_target_as_gt``.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, bad labels, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> loss = SKDLoss()
        >>> round(loss(student, teacher, torch.tensor([0])).item(), 4)
        0.2937
        >>> round(loss(10 * student, teacher, torch.tensor([0])).item(), 4)
        0.2937
    """

    expects_logits = True

    temperature: Positive = 1.0
    multiplier: Positive = 2.0
    alpha: Share = 0.9
    teacher_labels: bool = False
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits, given the labels: a scalar."""
        return skd_loss(student, teacher, target, mask=mask, **self.hyperparameters)
