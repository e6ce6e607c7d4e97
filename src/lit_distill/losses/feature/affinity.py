"""Affinity distillation (He et al., CVPR 2019): which positions of a map are alike."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._maps import ConnectedMapsLoss, shapes_of
from lit_distill.losses.feature._tokens import token_pairs

__all__ = ["AffinityLoss", "affinity_loss"]

Of: TypeAlias = Literal["positions", "channels"]


@full_precision
def affinity_loss(student: Signal, teacher: Signal, *, mask: Tensor | None = None, of: Of = "positions") -> Tensor:
    """Distance of the matrices of affinities between positions, summed over layers; see :class:`AffinityLoss`.

    Args:
        student: maps (B, C, H, W) or tokens (B, N, C); or a list of layers.
        teacher: the same; channels may differ between ``positions``.
        mask: which positions count: (B,), (B, H, W) or (B, N).
        of: what an affinity is made of.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that cannot be compared, or a result that is not finite.

    Example:
        >>> affinity_loss(torch.ones(1, 2, 1, 2), torch.eye(2)[None, :, None])  # 4 cosines, of which 2 differ by 1
        tensor(0.7071)
    """
    layers = []
    for ours, theirs in token_pairs("affinity_loss", student, teacher, mask, alike=of == "channels"):
        s, t = ours.values, theirs.values
        if s.shape[1] != t.shape[1]:
            raise ValueError(f"affinity_loss expects layers of the same positions: {shapes_of(student, teacher)}")
        samples, places = ours.weights()
        root = places.sqrt()[:, :, None]
        if of == "positions":
            first, second = (unit_vectors(x) * root for x in (s, t))
            distance: Tensor = torch.linalg.vector_norm((first @ first.mT - second @ second.mT).flatten(1), dim=1)
        else:
            distance = _of_channels(unit_vectors((s * root).mT), unit_vectors((t * root).mT)).sum(dim=1)
        layers.append(masked_mean(distance / places.sum(dim=1), samples))
    return torch.stack(layers).sum()


def _of_channels(a: Tensor, b: Tensor) -> Tensor:
    """‖aaᵀ - bbᵀ‖ of vectors of length 1 along the last dimension, ‖a - b‖ ‖a + b‖ / √2; 1 if one of both is zero."""
    minus, plus = (torch.linalg.vector_norm(x, dim=-1) for x in (a - b, a + b))
    one_is_zero = (a.detach() == 0).all(dim=-1) != (b.detach() == 0).all(dim=-1)
    return torch.where(one_is_zero, minus * plus, minus * plus / 2**0.5)


@hyperparameters
class AffinityLoss(ConnectedMapsLoss):
    r"""Affinity distillation: positions that are alike in the teacher become alike in the student.

    With A the cosines between the features of two positions, of P positions in all:

    .. math:: L = \frac1N \sum_n \frac1P \left\| A(s_n) - A(t_n) \right\|_F, \quad
        A_{ij} = \frac{f_i \cdot f_j}{\|f_i\| \|f_j\|}

    A mean over samples, a sum over layers. ``of="channels"`` sums the same over channels, each with a matrix of its
    own, :math:`A^c = a a^\top` of the channel's map a, normalized over positions: it needs equal channels. A zero
    vector stays zero. An adapter, a 3x3 convolution, brings the student to the teacher's channels; it is sized from an
    example batch, trained and saved with the run.

    Signals: feature maps (N, C, H, W) of one size, one a network or a list. With ``connect=False`` tokens (B, N, C)
    too. Between positions it takes memory of their squared number.

    Paper: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019, arXiv:1903.04688, which
    describes ``positions``. torchdistill has ``channels``, at weight 1 beside KTALoss.

    Use when: maps of dense prediction, beside a loss of the features themselves.

    Args:
        of: an affinity is the cosine between two ``positions``, or the product of a position with another by
            ``channels``.
        connect: whether there is an adapter.

    Raises:
        ValueError: a bad hyperparameter, or layers that cannot be compared.

    Example:
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = AffinityLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    of: Of = "positions"
    connect: bool = True

    def _connector(self, ours: int, theirs: int) -> nn.Module:
        return nn.Conv2d(ours, theirs, 3, padding=1)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return affinity_loss(*self._connected(student, teacher), mask=mask, of=self.of)
