"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters
from lit_distill.losses.feature._maps import averaged_alike, layer_pairs

__all__ = ["AttentionTransferLoss", "attention_transfer_loss"]

Mode = Literal["code", "paper"]


@full_precision
def attention_transfer_loss(student: Signal, teacher: Signal, *, p: Count = 2, mode: Mode = "code") -> Tensor:
    """Distance of the normalized attention maps, summed over layers; see :class:`AttentionTransferLoss`."""
    pairs = layer_pairs("attention_transfer_loss", student, teacher, places=True)
    return torch.stack([_between(*averaged_alike(s, t), p=p, mode=mode) for s, t in pairs]).sum()


def _between(student: Tensor, teacher: Tensor, *, p: int, mode: Mode) -> Tensor:
    difference = _attention(student, p, mode) - _attention(teacher, p, mode)
    if mode == "paper":
        lengths: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return lengths.mean()
    return difference.square().mean()


def _attention(features: Tensor, p: int, mode: Mode) -> Tensor:
    activations = features.abs() if mode == "paper" else features
    return unit_vectors(activations.pow(p).mean(dim=1).flatten(1))


@hyperparameters
class AttentionTransferLoss(Loss):
    r"""Attention transfer: the student learns where the teacher's channels are active together.

    Signals: feature maps (N, C, H, W), one a network or a list of equal length; channels may differ. Where sizes
    differ, the larger map is average-pooled to the smaller. Scaling a network's features changes nothing. Layers are
    summed. ``mode="code"`` averages over N*H*W, so its values are small; its usual weight is 1000. Tokens (N, L, C) and
    maps (N, C, T, H, W) too.

    Formula:
        A(f) = Q/‖Q‖₂, Q = mean over c of f_c^p, flattened over H*W
        code:   L = Σ_layers mean over N*H*W of (A(s) - A(t))²
        paper:  L = Σ_layers mean over N of ‖A(s) - A(t)‖₂, with |f_c|^p

    Paper: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928. The default is
        the authors' code, which RepDistiller and mdistiller repeat; the paper's equation 2 is ``mode="paper"``.

    Use when: both networks are convolutional and of the same kind; it needs no parameters and no equal channels. It
        says nothing about which channel is active: where that matters, take OverhaulLoss or ReviewKDLoss.

    Args:
        p: power of the activations, a whole number from 1. An odd p keeps the sign of an activation in ``"code"``.
        mode: ``"code"`` or ``"paper"``.

    Raises:
        ValueError: an unknown mode, a p below 1, or maps that cannot be compared.

    Example:
        >>> student, teacher = torch.ones(2, 4, 2, 2), torch.eye(2).expand(2, 8, 2, 2)
        >>> [round(AttentionTransferLoss(mode=mode)(student, teacher).item(), 4) for mode in ("code", "paper")]
        [0.1464, 0.7654]
    """

    p: Count = 2
    mode: Mode = "code"

    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return attention_transfer_loss(student, teacher, **self.hyperparameters)
