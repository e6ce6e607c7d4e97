"""Cross-entropy with soft labels from a peer (label refinery), and SSLD's symmetric divergence."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import divergence, logit_rows, soft_cross_entropy

__all__ = ["SoftTargetCrossEntropy", "soft_target_cross_entropy"]

SoftForm: TypeAlias = Literal["cross_entropy", "js"]


@full_precision
def soft_target_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    form: SoftForm = "cross_entropy",
    temperature: Positive = 1.0,
    class_dim: int | None = None,
) -> Tensor:
    """The teacher's probabilities as soft labels; see :class:`SoftTargetCrossEntropy`."""
    rows = logit_rows("soft_target_cross_entropy", student, teacher, class_dim, mask)
    log_s, log_t = (F.log_softmax(logits / temperature, dim=-1) for logits in (rows.student, rows.teacher))
    per_row = divergence(log_t, log_s, "mean_kl") if form == "js" else soft_cross_entropy(log_t, log_s)
    return rows.mean(per_row) * temperature**2


@hyperparameters
class SoftTargetCrossEntropy(Loss):
    r"""The teacher's probabilities for the same input replace the labels.

    With q = softmax(t/T), p = softmax(s/T):

    .. math::
        L_\text{cross entropy} = -\frac{T^2}{N} \sum_i \sum_c q_{ic} \log p_{ic}, \qquad
        L_\text{js} = \frac{T^2}{2N} \sum_i \mathrm{KL}(q_i \| p_i) + \mathrm{KL}(p_i \| q_i)

    Summed over classes, averaged over samples (and over time steps or pixels), times T². The cross-entropy of equal
    logits is their entropy, not 0; the gradient for the student is that of a KL divergence. ``js`` is what SSLD calls
    a JS divergence: the mean of both KL divergences, 0 for equal logits, taken exactly where SSLD adds 1e-10.
    For soft labels that are given as probabilities (stored, or mixed), torch's own ``nn.CrossEntropyLoss`` is enough.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``;
    segmentation maps (B, C, H, W) take ``class_dim=1``.

    Paper: Bagherinezhad et al., "Label Refinery: Improving ImageNet Classification through Label Progression", 2018;
    Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones"
    (SSLD), 2021. Matches PaddleClas' DistillationCELoss, which leaves the teacher's gradient on; a LossComposer
    detaches it.

    Use when: labels do not fit the crop or clip that the student sees, so that the teacher's view of the same input is
    the better label; or with unlabelled data, as in SSLD.

    Args:
        form: ``cross_entropy`` or ``js``.
        temperature: T, above 0; 1 in both papers.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, NaN or infinite logits.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(SoftTargetCrossEntropy()(student, teacher).item(), 4)
        0.4596
        >>> SoftTargetCrossEntropy(form="js")(teacher, teacher).item()
        0.0
    """

    expects_logits = True

    form: SoftForm = "cross_entropy"
    temperature: Positive = 1.0
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return soft_target_cross_entropy(student, teacher, mask=mask, **self.hyperparameters)
