"""Normalized knowledge distillation (Yang et al., ICCV 2023)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import index_rows, logit_rows, soft_cross_entropy, without_class

__all__ = ["NKDLoss", "nkd_loss"]

Rest: TypeAlias = Literal["others", "all"]


@full_precision
def nkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    gamma: NonNegative = 1.5,
    temperature: Positive = 1.0,
    rest: Rest = "others",
    class_dim: int | None = None,
) -> Tensor:
    """Soft target class plus normalized non-target classes; see :class:`NKDLoss`."""
    rows = logit_rows("nkd_loss", student, teacher, class_dim, mask)
    student, teacher = rows.student, rows.teacher
    labels = index_rows("nkd_loss", rows, target, class_dim)
    log_s = F.log_softmax(student, dim=1).gather(1, labels[:, None])
    log_t = F.log_softmax(teacher, dim=1).gather(1, labels[:, None])
    target_part = soft_cross_entropy(log_t.detach(), log_s)
    if rest == "others":
        student, teacher = without_class(student, labels), without_class(teacher, labels)
    log_rest_s, log_rest_t = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return rows.mean(target_part + gamma * temperature**2 * soft_cross_entropy(log_rest_t, log_rest_s))


@hyperparameters
class NKDLoss(Loss):
    r"""The target class gets the teacher's confidence as soft label; the other classes are normalized and matched.

    With p, q the probabilities of teacher and student, y the label, and p̂, q̂ the softmax at temperature T over the
    classes other than y:

    .. math:: L = \frac{1}{N}\sum_i -p_{i y_i} \log q_{i y_i}
            - γ \, T^2 \sum_{c \ne y_i} \hat p_{ic} \log \hat q_{ic}

    Two cross-entropies averaged over samples (not 0 for equal logits), the second times T². The first is at T = 1 and
    p_y gets no gradient. It stands beside a cross-entropy with the labels.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``; as
    target class indices (B,) or (B, T), or class probabilities of the logits' shape after mixing, of which the dominant
    class counts, as in the authors' program.

    Paper: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", ICCV 2023. Matches its authors' cls_KD, with their defaults for ImageNet.

    Use when: DKD fits, but tuning the weight of its target part is a nuisance, or labels are mixed; the teacher's
    confidence acts as the label.

    Args:
        gamma: γ, the weight of the other classes.
        temperature: T, above 0.
        rest: the classes that p̂ and q̂ are taken over: the "others", or "all", the target included, as the copy of this
            loss in the program of SDD does, whose mask leaves none out.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, bad labels, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(NKDLoss()(student, teacher, torch.tensor([0])).item(), 4)
        0.9284
    """

    expects_logits = True

    gamma: NonNegative = 1.5
    temperature: Positive = 1.0
    rest: Rest = "others"
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits, given the labels: a scalar."""
        return nkd_loss(student, teacher, target, mask=mask, **self.hyperparameters)
