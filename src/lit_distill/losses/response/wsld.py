"""Weighted soft labels (Zhou et al., ICLR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import label_cross_entropy, label_rows, logit_rows, soft_cross_entropy

__all__ = ["WSLDLoss", "wsld_loss"]

_RATIO_EPS = 1e-7  # of the authors, keeps the ratio finite where the teacher is sure of the label


@full_precision
def wsld_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 2.0,
    teacher_labels: bool = False,
    class_dim: int | None = None,
) -> Tensor:
    """Soft labels weighted by how much the student lags behind the teacher; see :class:`WSLDLoss`."""
    rows = logit_rows("wsld_loss", student, teacher, class_dim, mask)
    student, teacher = rows.student, rows.teacher
    labels = teacher.argmax(dim=1) if teacher_labels else label_rows("wsld_loss", rows, target, class_dim)
    with torch.no_grad():
        error_s = label_cross_entropy(F.log_softmax(student, dim=1), labels)
        error_t = label_cross_entropy(F.log_softmax(teacher, dim=1), labels)
        weight = -torch.expm1(-error_s / (error_t + _RATIO_EPS))
    soft = soft_cross_entropy(F.log_softmax(teacher / temperature, dim=1), F.log_softmax(student / temperature, dim=1))
    return rows.mean(weight * soft) * temperature**2


@hyperparameters
class WSLDLoss(Loss):
    r"""Soft labels weigh less for samples on which the student already does well compared with the teacher.

    .. math::
        L = \frac{T^2}{N} \sum_i w_i \, \mathrm{CE}\left(\mathrm{softmax}(t_i/T), \mathrm{softmax}(s_i/T)\right), \quad
        w_i = 1 - \exp\left(-\frac{\mathrm{CE}(y_i, s_i)}{\mathrm{CE}(y_i, t_i) + 10^{-7}}\right)

    A soft cross-entropy (not a KL divergence, so not 0 for equal logits) averaged over samples, times T²; the weights
    are taken at T = 1 and get no gradient.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``; as
    target class indices (B,) or (B, T), or class probabilities of the logits' shape after mixing, with which both
    cross-entropies of the weight are then taken.

    Paper: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective",
    ICLR 2021. Matches its authors' program and PaddleClas' WSLLoss; the authors weigh it 2.25 on CIFAR-100 (T = 4) and
    2.5 on ImageNet (T = 2), beside the cross-entropy with the labels.

    Use when: soft labels help some samples and hurt others, as where the teacher smooths away what the student already
    knows; it needs a teacher that is right most of the time, as the weights compare errors on the labels.

    Args:
        temperature: T, above 0.
        teacher_labels: take the teacher's most likely class instead of the target, PaddleClas' ``use_target_as_gt``.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a temperature that is not positive, shapes that differ, bad labels, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(WSLDLoss(temperature=2.0)(student, teacher, torch.tensor([0])).item(), 4)
        3.227
    """

    expects_logits = True

    temperature: Positive = 2.0
    teacher_labels: bool = False
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits, given the labels: a scalar."""
        return wsld_loss(student, teacher, target, mask=mask, **self.hyperparameters)
