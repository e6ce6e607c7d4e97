"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._numerics import full_precision, kl_from_log_probabilities
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import index_rows, logit_rows, without_class

__all__ = ["DKDLoss", "dkd_loss"]


@full_precision
def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 8.0,
    temperature: Positive = 4.0,
    teacher_labels: bool = False,
    class_dim: int | None = None,
) -> Tensor:
    """Target-class and non-target-class distillation with separate weights, without warm-up; see :class:`DKDLoss`."""
    rows = logit_rows("dkd_loss", student, teacher, class_dim, mask)
    student, teacher = rows.student, rows.teacher
    labels = teacher.argmax(dim=1) if teacher_labels else index_rows("dkd_loss", rows, target, class_dim)
    binary_s, rest_s = _decouple(student / temperature, labels)
    binary_t, rest_t = _decouple(teacher / temperature, labels)
    target_part = kl_from_log_probabilities(binary_t, binary_s)
    rest_part = kl_from_log_probabilities(rest_t, rest_s)
    return rows.mean(alpha * target_part + beta * rest_part) * temperature**2


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log (p_target, 1 - p_target), and the log probabilities among the other classes.

    1 - p_target is a log-sum-exp over the others, never a subtraction, so it stays exact when p_target nears 1.
    """
    of_target = logits.gather(1, labels[:, None])
    others = without_class(logits, labels)
    of_others = others.logsumexp(dim=1, keepdim=True)
    of_all = torch.logaddexp(of_target, of_others)
    return torch.cat([of_target - of_all, of_others - of_all], dim=1), others - of_others


@hyperparameters
class DKDLoss(Loss):
    r"""Hinton's KL divergence, split into a target part and a non-target part with separate weights.

    With b = (p_target, 1 - p_target) and r the probabilities among the other classes, all at temperature T:

    .. math:: L = w \, \frac{T^2}{N} \sum_i α \, \mathrm{KL}(b^t_i \| b^s_i) + β \, \mathrm{KL}(r^t_i \| r^s_i)

    Averaged over samples, times T². With w = min(epoch / ``warmup_epochs``, 1) as the authors train it: an owner
    (DistillModule does) calls :meth:`set_epoch` with the fractional epoch; until the first call, w = 1.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``; as
    target class indices (B,) or (B, T), or class probabilities of the logits' shape after mixing, of which the dominant
    class counts.

    Paper: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022. Matches its authors' mdistiller and PaddleClas,
    save that they shift the target logit by -1000 where it is left out here, and take log(1 - p) of rounded
    probabilities, which gives infinities once the student is too sure.

    Use when: a trained teacher is so confident that Hinton's divergence carries little about the other classes; try a
    smaller beta where teacher and student differ much.

    Args:
        alpha: α, the weight of the target part.
        beta: β, the weight of the rest; the authors use 8 on CIFAR-100 for most pairs, 0.5 on ImageNet.
        temperature: T, above 0; the authors use 4 on CIFAR-100, 1 on ImageNet.
        warmup_epochs: length of the linear warm-up, 0 for none; the authors use 20 on CIFAR-100, 1 on ImageNet.
        teacher_labels: take the teacher's most likely class instead of the target, PaddleClas' ``use_target_as_gt``.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, labels that are no classes, NaN or infinite logits.

    Example:
        >>> import torch
        >>> loss = DKDLoss(alpha=1.0, beta=8.0, temperature=4.0)
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(loss(student, teacher, torch.tensor([0])).item(), 4)
        4.6075
    """

    expects_logits = True

    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0
    temperature: Positive = 4.0
    warmup_epochs: NonNegative = 20.0
    teacher_labels: bool = False
    class_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # A tensor, as a number that changes would have torch.compile make a graph for each step.
        self.warmup = nn.Buffer(torch.ones(()), persistent=False)

    def set_epoch(self, epoch: float) -> None:
        """Set the warm-up factor w for this fractional epoch."""
        self.warmup.fill_(min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits, given the labels: a scalar."""
        value = dkd_loss(
            student,
            teacher,
            target,
            mask=mask,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            teacher_labels=self.teacher_labels,
            class_dim=self.class_dim,
        )
        return value * self.warmup.to(value.dtype, copy=True)  # which another term may set before the backward pass
