"""Knowledge review: the student's deep levels are fused into its shallow ones before they meet the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import PairedMapsLoss, layer_pairs

__all__ = ["ReviewKDLoss", "review_kd_loss"]


@full_precision
def review_kd_loss(student: Signal, teacher: Signal, *, levels: Sequence[Count] = (4, 2, 1)) -> Tensor:
    r"""Hierarchical context loss (HCL): mean squared error of two feature maps at several pooled sizes.

    .. math:: \frac{\sum_k 2^{-k}\, \mathrm{MSE}(P_{l_k} s, P_{l_k} t)}{\sum_k 2^{-k}}

    :math:`P_{l_0}` is the map as it is and :math:`P_{l_k}` averages it to :math:`l_k \times l_k`; only the ``levels``
    below the map's height take part. Each MSE is a mean over all elements; several maps are summed.

    Args:
        student: feature maps (N, C, H, W), one or a list.
        teacher: feature maps of the same shapes.
        levels: the pooled sizes :math:`l_1, l_2, …` in the order of their weights 1/2, 1/4, ….

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes or the numbers of maps differ, a level is below 1, or the result is not finite.

    Example:
        >>> student, teacher = torch.zeros(2, 8, 6, 6), torch.ones(2, 8, 6, 6)
        >>> review_kd_loss(student, teacher)
        tensor(1.)
    """
    pairs = layer_pairs("review_kd_loss", student, teacher)
    return torch.stack([_hierarchical_context(s, t, levels) for s, t in pairs]).sum()


def _hierarchical_context(student: Tensor, teacher: Tensor, levels: Sequence[int]) -> Tensor:
    require_same_shape("review_kd_loss", student, teacher)
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    difference = student - teacher  # pooling is linear, so one pooled map a level is enough
    for level in levels:
        if level < student.shape[2]:
            weight /= 2
            total += weight
            loss = loss + weight * F.adaptive_avg_pool2d(difference, level).square().mean()
    return loss / total


class AttentionFusion(nn.Module):
    """Attention-based fusion (ABF) of one student level with what the deeper levels left.

    Args:
        in_channels: channels of the student's level.
        mid_channels: channels of the residual that goes from level to level.
        out_channels: channels of the teacher's level.
        fuse: whether a deeper level exists.
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, mid_channels, 1, bias=False), nn.BatchNorm2d(mid_channels))
        self.expand = nn.Sequential(
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.attention = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if fuse else None
        for module in (*self.reduce, *self.expand):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)

    def forward(self, level: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The level in the teacher's channels and ``size``, and the residual for the next shallower level."""
        fused: Tensor = self.reduce(level)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[-2:], mode="nearest")
            gates = self.attention(torch.cat([fused, deeper], dim=1))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if fused.shape[-2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.expand(fused), fused


@hyperparameters
class ReviewKDLoss(PairedMapsLoss):
    r"""Knowledge review: every teacher level supervises a student level fused with all deeper ones.

    Shapes: lists of levels from shallow to deep, feature maps (N, C, H, W) or embeddings (N, D), which count as maps of
    1x1; student and teacher differ freely in channels and sizes. The fusion runs from the deepest level up: a 1x1
    convolution brings the level to min(``max_channels``, channels of the deepest student level), an attention of two
    gates mixes it with the residual from below (nearest resizing), and a 3x3 convolution brings it to the teacher's
    channels. HCL is :func:`review_kd_loss`: the sum over levels of a mean over all elements. Tokens (N, L, C) and maps
    (N, C, T, H, W) too.

    The fusion modules are sized from an example batch, and are trained and saved with the run. Fusion and loss compute
    in float32 or better, whatever the training precision is.

    Formula:
        r_n = ABF_n(s_n),  r_i = ABF_i(s_i, r_(i+1)),  i from shallow (1) to deep (n)
        L = Σ_i HCL(conv_i(r_i), t_i)
        HCL(s, t) = Σ_k 2^-k MSE(pool_(l_k)(s), pool_(l_k)(t)) / Σ_k 2^-k,  k = 0: no pooling,  l = levels < H

    Paper: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044. Fusion, HCL and
        initialization are those of the authors' code and of mdistiller, which raise the term's weight linearly from
        0 over the first epochs (20 on CIFAR-100): give the term a schedule, as the experiment does.

    Use when: teacher and student have stages of several resolutions and features may be taken from all of them. It
        costs a fusion module (mostly one 3x3 convolution) a level in training and nothing afterwards.

    Args:
        levels: pooled sizes of HCL, in the order of their weights 1/2, 1/4, ….
        max_channels: upper limit of the channels of the residual.

    Raises:
        ValueError: a hyperparameter is out of its range, or the levels cannot be paired.

    Example:
        >>> student = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> teacher = [torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)]
        >>> loss = ReviewKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    levels: Sequence[Count] = (4, 2, 1)
    max_channels: Count = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self.levels = tuple(self.levels)
        self.fusions = nn.ModuleList()

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        mid = min(self.max_channels, pairs[-1][0].shape[1])
        for number, (s, t) in enumerate(pairs, start=1):
            self.fusions.append(AttentionFusion(s.shape[1], mid, t.shape[1], fuse=number < len(pairs)))

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        pairs = self._pairs(student, teacher)
        dtype = next(self.fusions.parameters()).dtype
        residual: Tensor | None = None
        reviewed: list[Tensor] = []
        for (level, target), fusion in zip(reversed(pairs), reversed(self.fusions), strict=True):
            output, residual = fusion(level.to(dtype), residual, (target.shape[2], target.shape[3]))
            reviewed.append(output)
        return review_kd_loss(reviewed, [target for _, target in reversed(pairs)], levels=self.levels)
