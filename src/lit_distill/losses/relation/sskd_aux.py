"""The first stage of self-supervision knowledge distillation (Xu et al., ECCV 2020): views find their samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Count, Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation.sskd import view_cosines

__all__ = ["SSKDAuxLoss", "sskd_aux_loss"]


@full_precision
def sskd_aux_loss(feature: Tensor, *, views: Count = 4, temperature: Positive = 1.0, gather: bool = False) -> Tensor:
    """Cross-entropy of the cosines of views with all samples, each view's own being the class.

    Args:
        feature: (N, D), rows in groups, each sample before its transformed views.
        views: rows of a group, the sample among them, at least two.
        temperature: of the cosines.
        gather: contrast with the samples of all processes.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: rows that are no groups, or a result that is not finite.

    Example:
        >>> import torch
        >>> round(sskd_aux_loss(torch.eye(2).repeat_interleave(4, dim=0)).item(), 4)
        0.3133
    """
    if feature.ndim < 2 or views < 2 or len(feature) % views or feature.numel() == 0:
        raise ValueError(
            f"sskd_aux_loss expects features (N, ...) in groups of views={views} rows, at least two, a sample and its "
            f"views, got {tuple(feature.shape)}"
        )
    feature = gather_with_gradients(feature) if gather else feature
    cosines = view_cosines(feature, views)
    own = torch.arange(cosines.shape[1], device=cosines.device).repeat_interleave(views - 1)
    return F.cross_entropy(cosines / temperature, own)


@hyperparameters
class SSKDAuxLoss(Loss):
    r"""A head of the teacher learns which sample a transformed view was made of.

    With A the cosines between features of the views x̃ and of the samples x of a batch, and n(j) the sample of view j:

    .. math:: L = -\frac1M \sum_{j=1}^M \log \mathrm{softmax}(A_j / T)_{n(j)}

    A mean over views. Cosines depend on the batch: under DDP ``gather`` contrasts with the global batch.

    Signals: a feature (N, D) or (N, ...), which is flattened; rows in groups, each sample before its transformed views.
    The second signal is not looked at: name GroundTruth.

    Paper: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv:2006.07114, the first stage, as
    in torchdistill: cosines without a temperature, of a head of two layers on the frozen teacher's pooled feature.

    Use when: a teacher is prepared for :class:`SSKDLoss`.

    Args:
        views: rows of a group, the sample among them, at least two.
        temperature: T, 1 as published.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, rows that are no groups, NaN or infinite values.

    Example:
        >>> import torch
        >>> SSKDAuxLoss()(torch.randn(8, 5), torch.tensor([0, 3])).shape
        torch.Size([])
    """

    views: Count = 4
    temperature: Positive = 1.0
    gather: bool = False

    def forward(self, feature: Tensor, teacher: Tensor | None = None) -> Tensor:
        """The loss of the features of one batch: a scalar."""
        return sskd_aux_loss(feature, **self.hyperparameters)
