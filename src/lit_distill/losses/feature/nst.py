"""Neuron selectivity transfer: match the distributions of what the single channels select."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Signal
from lit_distill.losses.feature._maps import averaged_alike, layer_pairs

__all__ = ["NSTLoss", "nst_loss"]


@full_precision
def nst_loss(student: Signal, teacher: Signal) -> Tensor:
    """Squared maximum mean discrepancy between the channels, summed over layers; see :class:`NSTLoss`."""
    pairs = layer_pairs("nst_loss", student, teacher, places=True)
    return torch.stack([_discrepancy(*averaged_alike(s, t)) for s, t in pairs]).sum()


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = unit_vectors(student.flatten(2)), unit_vectors(teacher.flatten(2))
    channels, positions = s.shape[1] + t.shape[1], s.shape[2]
    if positions**2 <= channels**2:
        # Σ_cc' (x_c·y_c')² = <XᵀX, YᵀY>: with few positions one matrix of them holds everything, nothing cancels.
        difference = s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]
        return difference.square().sum(dim=(1, 2)).mean()
    return _mean_kernel(s, s) + _mean_kernel(t, t) - 2 * _mean_kernel(s, t)


def _mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).square().mean()


class NSTLoss(nn.Module):
    r"""Neuron selectivity transfer: the student's channels, as a set, select the same places as the teacher's.

    Signals: feature maps (N, C, H, W), one a network or a list of equal length; channels may differ, and their order
    and scale do not matter. Where sizes differ, the larger map is average-pooled to the smaller. Kernels are averaged
    over channel pairs and the batch; layers are summed. Needs (C + C')² or (H*W)² numbers a sample, the fewer of both.
    The teacher's own kernel is constant; it makes the loss 0 for equal distributions. Tokens (N, L, C) and maps (N, C,
    T, H, W) too.

    Formula:
        L = Σ_layers mean over N of [ mean k(s_c, s_c') + mean k(t_c, t_c') - 2 mean k(s_c, t_c') ]
        k(x, y) = (xᵀy)², s_c and t_c: channels flattened over H*W, of length 1

    Paper: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
        arXiv:1707.01219. The kernel that the paper chooses, polynomial with d = 2 and c = 0; matches RepDistiller.

    Use when: widths differ and no parameters should be added, and the maps are small enough to compare positions (late
        stages). It is insensitive to the order of channels, which AttentionTransferLoss is too, at lower cost.

    Raises:
        ValueError: maps that cannot be compared.

    Example:
        >>> student = torch.rand(2, 4, 3, 3)
        >>> NSTLoss()(student, student[:, [2, 0, 3, 1]]).abs() < 1e-6  # a set of channels, in no order
        tensor(True)
    """

    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return nst_loss(student, teacher)
