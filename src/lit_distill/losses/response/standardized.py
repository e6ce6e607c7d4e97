"""Any loss between logits on standardized logits (Sun et al., CVPR 2024)."""

from __future__ import annotations

from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import hyperparameters
from lit_distill.losses.response._logits import logit_rows, standardized_rows
from lit_distill.losses.response._wrapped import WrappedLoss, call
from lit_distill.losses.response.kd import KDLoss

__all__ = ["StandardizedLoss", "standardized_loss"]


@full_precision
def standardized_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    loss: nn.Module | None = None,
    eps: Positive = 1e-7,
    class_dim: int | None = None,
) -> Tensor:
    """A loss of the z-scores of both networks' logits; see :class:`StandardizedLoss`."""
    rows = logit_rows("standardized_loss", student, teacher, class_dim, mask)
    rows = standardized_rows("standardized_loss", rows, eps=eps)
    return call(KDLoss() if loss is None else loss, rows, target, class_dim)


@hyperparameters
class StandardizedLoss(WrappedLoss):
    r"""Any loss between logits, on the z-score of each sample's logits: only their order and relative gaps count.

    .. math:: L = ℓ\left(\hat s, \hat t, y\right), \quad
        \hat z = \frac{z - \bar z}{\mathrm{std}(z) + ε}

    The mean and the unbiased standard deviation are those of a row's classes; scaling and reduction are those of ℓ, the
    ``loss``, whose temperature then divides the z-scores. A row whose logits are all equal stays 0 and gets no
    gradient. Standardized losses are smaller: the authors weigh KD and DKD 9 times as much, at T = 2.

    Signals: student logits and teacher logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``, and the
    target of the loss if it takes one.

    Paper: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427, which does so
    with KD, DKD and MLKD among others. Matches its program. KDLoss has it built in, as ``logit_standardization``.

    Use when: the teacher is so much larger that the student cannot reach the size of its logits, whichever loss fits
    otherwise.

    Args:
        loss: ℓ, a loss of this library between logits; None for KDLoss().
        eps: ε, above 0.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: a bad hyperparameter, fewer than three classes, or what the loss refuses.

    Example:
        >>> import torch
        >>> from lit_distill.losses import DKDLoss
        >>> loss = StandardizedLoss(loss=DKDLoss(temperature=2.0))
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> loss(student, teacher, torch.tensor([0])).item() < 1e-9  # the student's logits are a third of the teacher's
        True
    """

    expects_logits = True

    loss: nn.Module | None = None
    eps: Positive = 1e-7
    class_dim: int | None = None

    def forward(
        self, student: Tensor, teacher: Tensor, target: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of both networks' standardized logits: a scalar."""
        return standardized_loss(student, teacher, target, mask=mask, **self.hyperparameters)
