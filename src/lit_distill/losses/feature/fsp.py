"""Flow of the solution procedure: how one layer's channels go over into the next layer's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import as_maps, averaged_alike, shapes_of

__all__ = ["FSPLoss", "fsp_loss"]

Pairing = Literal["consecutive", "disjoint"]
Reduction = Literal["mean", "sum"]


@full_precision
def fsp_loss(
    student: Signal, teacher: Signal, *, pairing: Pairing = "consecutive", reduction: Reduction = "mean"
) -> Tensor:
    """Squared distance between the FSP matrices, summed over pairs of layers; see :class:`FSPLoss`."""
    ours, theirs = tensors_of(student), tensors_of(teacher)
    if len(ours) != len(theirs) or len(ours) < 2 or (pairing == "disjoint" and len(ours) % 2):
        wanted = "an even number of" if pairing == "disjoint" else "two or more"
        raise ValueError(
            f"fsp_loss expects lists of {wanted} layers from bottom to top, as many from student and teacher: "
            f"{shapes_of(student, teacher)}"
        )
    ours, theirs = as_maps("fsp_loss", student, teacher)
    if [s.shape[1] for s in ours] != [t.shape[1] for t in theirs]:
        raise ValueError(
            "fsp_loss expects student and teacher layers of the same channels (choose a teacher of the same width): "
            f"{shapes_of(student, teacher)}"
        )
    bottoms = range(0, len(ours) - 1, 1 if pairing == "consecutive" else 2)
    differences = [_matrix(ours[i], ours[i + 1]) - _matrix(theirs[i], theirs[i + 1]) for i in bottoms]
    squares = [d.square().mean(dim=0) for d in differences]
    return torch.stack([s.mean() if reduction == "mean" else s.sum() for s in squares]).sum()


def _matrix(bottom: Tensor, top: Tensor) -> Tensor:
    """(N, C, H, W) and (N, C', H', W') to (N, C, C')."""
    b, u = (x.flatten(2) for x in averaged_alike(bottom, top))
    return b @ u.mT / b.shape[2]


@hyperparameters
class FSPLoss(Loss):
    r"""Flow of the solution procedure: the student's features change from layer to layer as the teacher's do.

    Signals: lists of two or more maps (N, C, H, W) a network, bottom first, of equal channels layer by layer. Within a
    network the larger of two maps is average-pooled to the smaller; sizes may differ between the networks. Pairs of
    layers are summed. Tokens (N, L, C), vectors (N, C) and maps (N, C, T, H, W) too.

    Formula:
        G(b, u)_ij = mean over positions of b_i * u_j
        L = Σ_pairs mean over N of ‖G(student) - G(teacher)‖², the mean ("mean") or sum ("sum") of the elements squared

    Paper: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
        Learning", CVPR 2017. The paper sums a matrix's elements (``reduction="sum"``) and names the two ends of each
        stage (``pairing="disjoint"``); RepDistiller, which is matched by default, averages and pairs consecutive
        layers.

    Use when: teacher and student are equally wide, such as a deeper network of the same family. Other widths cannot be
        compared: take ReviewKDLoss or OverhaulLoss there.

    Args:
        pairing: ``"consecutive"`` pairs layers (0, 1), (1, 2), …; ``"disjoint"`` (0, 1), (2, 3), ….
        reduction: ``"mean"`` or ``"sum"`` over the elements of a matrix.

    Raises:
        ValueError: an unknown option, fewer than two layers, or channels that differ.

    Example:
        >>> bottom, top = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 2, 2)
        >>> FSPLoss()([bottom, top], [bottom, 3 * top])
        tensor(4.)
    """

    pairing: Pairing = "consecutive"
    reduction: Reduction = "mean"

    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return fsp_loss(student, teacher, **self.hyperparameters)
