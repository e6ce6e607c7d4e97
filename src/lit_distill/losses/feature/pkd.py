"""Distillation by Pearson correlation (Cao et al., NeurIPS 2022): features up to the size of each channel."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import standardized
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature._tokens import Tokens, resized_tokens, token_pairs

__all__ = ["PKDLoss", "pkd_loss"]

Resize: TypeAlias = Literal["student", "teacher"]


@full_precision
def pkd_loss(
    student: Signal,
    teacher: Signal,
    *,
    mask: Tensor | None = None,
    resize: Resize = "student",
    eps: Positive = 1e-6,
    gather: bool = False,
) -> Tensor:
    """Half the squared difference of standardized channels, summed over layers; see :class:`PKDLoss`.

    Args:
        student: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C); or a list of layers.
        teacher: the same, of the same channels.
        mask: which places count: (B,), (B, H, W) or (B, N); places then are of one number on both sides.
        resize: whose places are brought to the other's, bilinearly.
        eps: added to the standard deviations.
        gather: take mean and deviation over all processes.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: channels that differ, or a result that is not finite.

    Example:
        >>> student = torch.tensor([[1.0], [2.0], [3.0]])
        >>> round(pkd_loss(student, 10 - student).item(), 4)  # (1 - r) (M - 1) / M with r = -1, M = 3
        1.3333
    """
    layers = []
    for ours, theirs in token_pairs("pkd_loss", student, teacher, mask):
        s, t = _of_one_size(ours, theirs, resize)
        if s.shape != t.shape:
            raise ValueError(f"pkd_loss expects layers of the same channels: {shapes_of(student, teacher)}")
        rows, weights = (s.flatten(0, 1), t.flatten(0, 1)), ours.mask
        if gather:
            rows = gather_with_gradients(rows[0]), gather_with_gradients(rows[1])
            weights = None if weights is None else gather_with_gradients(weights)
        column = None if weights is None else weights.to(s.dtype)[:, None]
        s, t = (standardized(x, 0, eps=eps, weights=column) for x in rows)
        layers.append(masked_mean((s - t).square().mean(dim=1), weights) / 2)
    return torch.stack(layers).sum()


def _of_one_size(ours: Tokens, theirs: Tokens, resize: Resize) -> tuple[Tensor, Tensor]:
    if resize == "student":
        return resized_tokens("pkd_loss", ours, theirs), theirs.values
    return ours.values, resized_tokens("pkd_loss", theirs, ours)


@hyperparameters
class PKDLoss(Loss):
    r"""Pearson correlation of features: each channel is compared up to its mean and its size.

    With s, t brought to mean 0 and standard deviation 1 by channel, over the M places of the whole batch:

    .. math:: L = \frac{1}{2 M C} \sum_i \sum_c \left(\hat s_{ic} - \hat t_{ic}\right)^2
        = \frac{M-1}{M} \left(1 - \bar r\right)

    r is Pearson's correlation of a channel, averaged over channels; the deviation is unbiased, with ``eps`` added. A
    channel that is constant becomes 0 and gets no gradient. Layers are summed. The statistics are the batch's: under
    DDP, ``gather`` takes those of the global batch.

    Signals: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C) of the same channels, one a network or a list. Maps,
    and square grids of tokens, of another size are resized bilinearly.

    Paper: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
    NeurIPS 2022, arXiv:2207.02039. Matches mmrazor, which resizes where heights differ, at the levels of a feature
    pyramid with weight 6 (10 for a RetinaNet X101 and R50).

    Use when: teacher and student have one width but differ in scale, as detectors of different kinds with a feature
    pyramid of 256 channels each.

    Args:
        resize: the ``student`` is brought to the teacher's size, or the ``teacher`` to the student's.
        eps: above 0.
        gather: take the statistics of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, or layers that cannot be compared.

    Example:
        >>> features = torch.randn(2, 3, 4, 4)
        >>> PKDLoss()(features, 5 * features - 1).item() < 1e-6
        True
    """

    resize: Resize = "student"
    eps: Positive = 1e-6
    gather: bool = False

    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return pkd_loss(student, teacher, mask=mask, **self.hyperparameters)
