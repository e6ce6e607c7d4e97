"""Distillation of multi-label outputs: each class is a yes or no of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import logit_rows

__all__ = ["BinaryKDLoss", "binary_kd_loss"]

Direction: TypeAlias = Literal["forward", "reverse", "symmetric"]


@full_precision
def binary_kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 1.0,
    direction: Direction = "forward",
    class_weights: Sequence[NonNegative] | None = None,
    class_dim: int | None = None,
) -> Tensor:
    """KL divergence between the probabilities of each class on its own; see :class:`BinaryKDLoss`."""
    rows = logit_rows("binary_kd_loss", student, teacher, class_dim, mask, one_class=True)
    student, teacher = rows.student / temperature, rows.teacher / temperature
    if direction == "forward":
        divergence = _divergence(teacher, student)
    elif direction == "reverse":
        divergence = _divergence(student, teacher)
    else:
        divergence = (_divergence(teacher, student) + _divergence(student, teacher)) / 2
    if class_weights is not None:
        if len(class_weights) != student.shape[1]:
            raise ValueError(
                f"binary_kd_loss expects a weight for each of the {student.shape[1]} classes, got {len(class_weights)}"
            )
        divergence = divergence * student.new_tensor(class_weights)
    return rows.mean(divergence.mean(dim=1)) * temperature**2


def _divergence(target: Tensor, input: Tensor) -> Tensor:
    """KL of the coin with logit ``target`` from that of ``input``, from logarithms alone."""
    yes = F.logsigmoid(target) - F.logsigmoid(input)
    no = F.logsigmoid(-target) - F.logsigmoid(-input)
    return target.sigmoid() * yes + (-target).sigmoid() * no


@hyperparameters
class BinaryKDLoss(Loss):
    r"""The student matches the teacher's probability of each label, where a sample may have several or none.

    With p = σ(t/T) and q = σ(s/T) and C classes of weights w (1 by default):

    .. math:: L = \frac{T^2}{N C} \sum_i \sum_c w_c \, \mathrm{kl}(p_{ic} \| q_{ic}), \quad
        \mathrm{kl}(p \| q) = p \log\frac{p}{q} + (1 - p) \log\frac{1 - p}{1 - q}

    Averaged over samples and classes as ``BCEWithLogitsLoss``, beside which it stands, times T². ``reverse`` is
    kl(q ‖ p), ``symmetric`` the mean of both. From logarithms alone: exact where a probability rounds to 0 or 1.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``.

    Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, class by class. Yang et al.,
    "Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453, take it for the responses. DMLLoss with
    ``activation="sigmoid"`` is PaddleVideo's form, without the (1 - p) part.

    Use when: outputs are multi-label, so that probabilities of classes do not sum to 1 and KDLoss means nothing. Weigh
    rare classes up; take ``reverse`` when the student is to leave out what it cannot reach.

    Args:
        temperature: T, above 0.
        direction: ``forward``, ``reverse`` or ``symmetric``.
        class_weights: w, one a class, each at least 0; None for 1.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, another number of weights, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(BinaryKDLoss()(student, teacher).item(), 4)
        0.1132
        >>> BinaryKDLoss(class_weights=[0, 1, 0])(student, teacher).item()
        0.0
    """

    expects_logits = True

    temperature: Positive = 1.0
    direction: Direction = "forward"
    class_weights: Sequence[NonNegative] | None = None
    class_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_weights = None if self.class_weights is None else tuple(self.class_weights)

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return binary_kd_loss(student, teacher, mask=mask, **self.hyperparameters)
