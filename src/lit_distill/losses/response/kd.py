"""Knowledge distillation from softened logits (Hinton et al., 2015), with logit standardization (Sun et al., 2024)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import Divergence, logit_rows, standardized_rows
from lit_distill.losses.response._logits import divergence as _divergence

__all__ = ["KDLoss", "kd_loss"]


@full_precision
def kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 4.0,
    logit_standardization: bool = False,
    standardization_eps: Positive = 1e-7,
    divergence: Divergence = "kl",
    class_dim: int | None = None,
) -> Tensor:
    """KL divergence between softened class probabilities; see :class:`KDLoss`."""
    rows = logit_rows("kd_loss", student, teacher, class_dim, mask)
    if logit_standardization:
        rows = standardized_rows("kd_loss with logit_standardization", rows, eps=standardization_eps)
    log_s, log_t = (F.log_softmax(logits / temperature, dim=1) for logits in (rows.student, rows.teacher))
    return rows.mean(_divergence(log_t, log_s, divergence)) * temperature**2


@hyperparameters
class KDLoss(Loss):
    r"""The student matches the teacher's softened class probabilities under a KL divergence.

    .. math:: L = \frac{T^2}{N} \sum_i \mathrm{KL}\left(\mathrm{softmax}(t_i/T) \,\|\, \mathrm{softmax}(s_i/T)\right)

    Summed over classes, averaged over samples (and over time steps or pixels), times T², so that its gradient keeps
    its size when T changes. For large T it tends to half the mean squared difference of the centered logits. The
    cross-entropy with the labels is a separate term; the paper weighs it low, usually 0.1 against 0.9.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``;
    segmentation maps (B, C, H, W) take ``class_dim=1``.

    Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015. With
    ``logit_standardization``: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.
    Matches the KD of mdistiller, RepDistiller's DistillKL and PaddleClas' KLDivLoss; torchdistill's KDLoss is
    ``alpha * CE + (1 - alpha) * KDLoss``, but without T² when its alpha is 0.

    Use when: a trained teacher of the same task exists: it is the baseline for all other methods. Standardize when the
    teacher is so much larger that the student cannot reach the size of its logits.

    Args:
        temperature: T, above 0; 1 to 8 are usual.
        logit_standardization: replace each row of logits by its z-score, (z - mean) / (std + eps) with the unbiased
            standard deviation, so that the student need not match the teacher's magnitude; its paper uses T = 2 and a
            weight of 9. A row whose logits are all equal stays 0 and gets no gradient.
        standardization_eps: that eps, above 0.
        divergence: ``kl`` is Hinton's, KL(teacher ‖ student), under which the student covers all that the teacher holds
            possible; ``reverse_kl`` is KL(student ‖ teacher), which keeps to what the teacher holds likely (Gu et al.,
            MiniLLM, ICLR 2024); ``js`` the Jensen-Shannon divergence, at most log 2; ``mean_kl`` the mean of both KL.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a temperature that is not positive, shapes that differ, NaN or infinite logits; standardized logits
            of two classes, whose z-scores are the same whatever they are.

    Example:
        >>> import torch
        >>> loss = KDLoss(temperature=4.0)
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(loss(student, teacher).item(), 4)
        1.1274
        >>> loss(teacher, teacher).item()
        0.0
    """

    expects_logits = True

    temperature: Positive = 4.0
    logit_standardization: bool = False
    standardization_eps: Positive = 1e-7
    divergence: Divergence = "kl"
    class_dim: int | None = None

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against teacher logits: a scalar."""
        return kd_loss(student, teacher, mask=mask, **self.hyperparameters)
