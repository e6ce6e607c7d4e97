"""Teacher-free distillation from a teacher made by hand (Yuan et al., CVPR 2020)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive, Share
from lit_distill.losses._numerics import full_precision, kl_from_log_probabilities
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import index_rows, logit_rows

__all__ = ["TfKDLoss", "tf_kd_loss"]

_SMALLEST = 1e-30  # of a probability, which may be 0 at the ends of the range

Softened: TypeAlias = Literal["logarithms", "probabilities"]


@full_precision
def tf_kd_loss(
    student: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    correct_probability: Share = 0.99,
    temperature: Positive = 20.0,
    student_temperature: Positive | None = None,
    softened: Softened = "logarithms",
    class_dim: int | None = None,
) -> Tensor:
    """KL divergence from a teacher that is sure of the label and knows nothing besides; see :class:`TfKDLoss`."""
    rows = logit_rows("tf_kd_loss", student, student, class_dim, mask)
    labels = index_rows("tf_kd_loss", rows, target, class_dim)
    logits, classes = rows.student, rows.student.shape[1]
    rest = (1 - correct_probability) / max(1, classes - 1)
    virtual = logits.new_full(logits.shape, rest).scatter(1, labels[:, None], correct_probability)
    if softened == "logarithms":
        virtual = virtual.clamp_min(_SMALLEST).log()
    log_t = F.log_softmax(virtual / temperature, dim=1)
    log_s = F.log_softmax(logits / (student_temperature or temperature), dim=1)
    return rows.mean(kl_from_log_probabilities(log_t, log_s))


@hyperparameters
class TfKDLoss(Loss):
    r"""Distillation without a teacher: a virtual one gives the label a high probability, the other classes equal rests.

    With y the label, a = ``correct_probability``, K classes and q = softmax(z/T) of the student's logits z:

    .. math:: L = \frac{1}{N} \sum_i \mathrm{KL}\left(\mathrm{softmax}(\log u_i / T) \,\|\, q_i\right), \quad
        u_{ic} = \begin{cases} a & c = y_i \\ (1 - a)/(K - 1) & c \ne y_i \end{cases}

    Summed over classes, averaged over samples (and over time steps or pixels), without T². This is the regularization
    of the paper (Tf-KD reg), which stands beside the cross-entropy with the labels, 0.9 against 0.1. The paper's other
    method, self-training (Tf-KD self), is :class:`KDLoss` with a trained copy of the student as the teacher:
    ``experiment=born_again_pptsmv2``. Label smoothing that gives its share ε to the *other* classes is torch's
    ``CrossEntropyLoss(label_smoothing=ε K / (K - 1))``.

    Signals: student logits (B, C) or (B, T, C), or any with ``class_dim``, and GroundTruth: class indices (B,) or
    (B, T), or class probabilities after mixing, of which the dominant class counts.

    Paper: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020. The default
    has the paper's one temperature on both sides. The authors' program leaves the student at T = 1
    (``student_temperature=1``), takes the softmax of the probabilities u themselves (``softened="probabilities"``),
    which at T = 20 is all but uniform, and divides by K too; it weighs the result 0.1 times 100 for ResNet18 on
    CIFAR-100, which is a weight of 10 / K here.

    Use when: no teacher is to be had, and label smoothing is what one would take: this is a softer kind of it.

    Args:
        correct_probability: a, from 0 to 1; the authors use 0.99.
        temperature: T of the virtual teacher, above 0; the authors use 20 to 40.
        student_temperature: that of the student; None for the same.
        softened: what the virtual teacher's softmax takes: the ``"logarithms"`` of u, or the ``"probabilities"``.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, labels that are no classes, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, labels = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
        >>> round(TfKDLoss(temperature=4.0)(student, labels).item(), 4)
        0.1127
        >>> round(TfKDLoss(softened="probabilities", student_temperature=1.0)(student, labels).item(), 4)
        0.2927
    """

    correct_probability: Share = 0.99
    temperature: Positive = 20.0
    student_temperature: Positive | None = None
    softened: Softened = "logarithms"
    class_dim: int | None = None

    def forward(self, student: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits, given the labels: a scalar."""
        return tf_kd_loss(student, target, mask=mask, **self.hyperparameters)
