"""Spherical knowledge distillation (Guo et al., 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive, Share
from lit_distill.losses._numerics import full_precision, require_logits
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import check_labels, label_cross_entropy, soft_cross_entropy

__all__ = ["SKDLoss", "skd_loss"]

_NORM_EPS = 1e-7  # published, added to the variance


@full_precision
def skd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    temperature: Positive = 1.0,
    multiplier: Positive = 2.0,
    alpha: Share = 0.9,
    teacher_labels: bool = False,
) -> Tensor:
    """Distillation between logits of one length; see :class:`SKDLoss`."""
    require_logits("skd_loss", student, teacher)
    labels = teacher.argmax(dim=1) if teacher_labels else check_labels("skd_loss", student, target)
    student, teacher = (
        F.layer_norm(logits, logits.shape[1:], eps=_NORM_EPS) * multiplier for logits in (student, teacher)
    )
    soft = soft_cross_entropy(F.log_softmax(teacher / temperature, dim=1), F.log_softmax(student / temperature, dim=1))
    hard = label_cross_entropy(F.log_softmax(student, dim=1), labels)
    return alpha * temperature**2 * soft.mean() + (1 - alpha) * hard.mean()


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

    Signals: student logits (N, C), teacher logits (N, C), target class indices (N,) or class probabilities (N, C).

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

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The loss of student logits against teacher logits, given the labels: a scalar."""
        return skd_loss(student, teacher, target, **self.hyperparameters)
