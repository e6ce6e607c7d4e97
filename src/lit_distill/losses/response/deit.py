"""Distillation through a token: one head learns from the labels, the other from the teacher (DeiT, ICML 2021)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive, Share
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters, tensors_of
from lit_distill.losses.response._logits import label_cross_entropy, label_rows, logit_rows
from lit_distill.losses.response.hard_label import hard_label_loss
from lit_distill.losses.response.kd import kd_loss

__all__ = ["DeiTLoss", "deit_loss"]

Labels: TypeAlias = Literal["hard", "soft"]


@full_precision
def deit_loss(
    student: Signal,
    teacher: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: Share = 0.5,
    labels: Labels = "hard",
    temperature: Positive = 1.0,
    class_dim: int | None = None,
) -> Tensor:
    """Labels for the one head, the teacher for the other; see :class:`DeiTLoss`."""
    heads = tensors_of(student)
    if len(heads) != 2:
        raise ValueError(
            "deit_loss expects the logits of two heads of the student, class token and distillation token, got "
            f"{len(heads)}: pair: [[Student.head, Student.head_dist], Teacher]"
        )
    by_labels, by_teacher = heads
    rows = logit_rows("deit_loss", by_labels, by_labels, class_dim, mask)
    given = label_rows("deit_loss", rows, target, class_dim)
    base = rows.mean(label_cross_entropy(F.log_softmax(rows.student, dim=1), given))
    if labels == "hard":
        distilled = hard_label_loss(by_teacher, teacher, mask=mask, class_dim=class_dim)
    else:
        distilled = kd_loss(by_teacher, teacher, mask=mask, temperature=temperature, class_dim=class_dim)
    return (1 - alpha) * base + alpha * distilled


@hyperparameters
class DeiTLoss(Loss):
    r"""The class token's head learns the labels, the distillation token's head learns what the teacher says.

    With z the logits of the class token, z' those of the distillation token and t the teacher's:

    .. math::
        \begin{aligned}
        L_\text{hard} &= \frac{1}{N} \sum_i (1 - α) \, \mathrm{CE}(z_i, y_i)
            + α \, \mathrm{CE}\left(z'_i, \arg\max_c t_{ic}\right) \\
        L_\text{soft} &= \frac{1}{N} \sum_i (1 - α) \, \mathrm{CE}(z_i, y_i)
            + α \, T^2 \, \mathrm{KL}\left(\mathrm{softmax}(t_i/T) \,\|\, \mathrm{softmax}(z'_i/T)\right)
        \end{aligned}

    Averaged over samples. It holds its own part of the labels: a separate cross-entropy term is not needed. In
    evaluation DeiT averages both heads, which is the network's own affair. For a student with one head take
    :class:`HardLabelLoss` or :class:`KDLoss`.

    Signals: a list of the student's two heads, class token first, and teacher logits, all of the same shape (B, C) or
    (B, T, C), or any with ``class_dim``; as target class indices, or class probabilities after mixing.

    Paper: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
    arXiv:2012.12877. Hard labels are what it found best. Matches its authors' program, save that for soft labels the
    program divides by N C, which makes them C times weaker than the paper's equation: multiply α/(1 - α) accordingly.

    Use when: the student is a transformer with a distillation token and the teacher is of another kind, best a
    convolutional network.

    Args:
        alpha: α, the share of the teacher, from 0 to 1.
        labels: ``hard`` for the teacher's most likely class, ``soft`` for its probabilities.
        temperature: T of soft labels, above 0.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, another number of heads, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> heads = [torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])]
        >>> teacher = torch.tensor([[0.0, 3.0, -3.0]])
        >>> round(DeiTLoss()(heads, teacher, torch.tensor([0])).item(), 4)
        0.4795
    """

    expects_logits = True

    alpha: Share = 0.5
    labels: Labels = "hard"
    temperature: Positive = 1.0
    class_dim: int | None = None

    def forward(self, student: Signal, teacher: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of both heads against labels and teacher: a scalar."""
        return deit_loss(student, teacher, target, mask=mask, **self.hyperparameters)
