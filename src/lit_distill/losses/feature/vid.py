"""Variational information distillation: the teacher's features should be likely, given the student's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count, Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import (
    PairedMapsLoss,
    apply_layer,
    averaged_alike,
)

__all__ = ["VIDLoss", "vid_loss"]


@full_precision
def vid_loss(mean: Tensor, teacher: Tensor, *, log_scale: Tensor, eps: Positive = 1e-5) -> Tensor:
    r"""Negative log likelihood of the teacher's features under a normal distribution, less the constant log √2π.

    .. math:: \operatorname{mean} \tfrac12 \left( \frac{(μ - t)^2}{σ_c^2} + \log σ_c^2 \right), \quad
        σ_c^2 = \log(1 + e^{a_c}) + ε

    Args:
        mean: μ, predicted from the student's features, (N, C, H, W).
        teacher: t, the teacher's features, of the same shape.
        log_scale: a, (C,); the variance of a channel is its softplus.
        eps: ε, the smallest variance.

    Returns:
        The loss, a scalar in float32 or better; it may be negative.

    Raises:
        ValueError: the shapes do not fit, ε is not positive, or the result is not finite.

    Example:
        >>> t = torch.zeros(2, 3, 4, 4)
        >>> round(vid_loss(t + 1, t, log_scale=torch.full((3,), 0.5413)).item(), 4)     # variance 1
        0.5
    """
    if mean.shape != teacher.shape or mean.ndim != 4 or log_scale.shape != mean.shape[1:2]:
        raise ValueError(
            "vid_loss expects means and teacher features of one shape (N, C, H, W) and a log_scale (C,), got "
            f"{tuple(mean.shape)}, {tuple(teacher.shape)} and {tuple(log_scale.shape)}"
        )
    variance = torch.logaddexp(log_scale, torch.zeros_like(log_scale)) + eps
    # The mean over a channel first: its variance divides once, not at every position.
    squares = (mean - teacher).square().mean(dim=(0, 2, 3))
    return 0.5 * (squares / variance + variance.log()).mean()


@hyperparameters
class VIDLoss(PairedMapsLoss):
    r"""Variational information distillation: a lower bound of the mutual information of both networks' features.

    Signals: feature maps (N, C, H, W), one a network or a list of equal length, summed. Where sizes differ, the larger
    map is average-pooled to the smaller. Three 1x1 convolutions without bias, with ReLU between, predict the mean of
    the teacher's features from the student's; each teacher channel has its own variance. Both are sized from an example
    batch, trained and saved with the run. Averaged over all elements; may be negative. Tokens (N, L, C), vectors (N, C)
    and maps (N, C, T, H, W) too.

    Formula:
        L = Σ_layers mean over N*C*H*W of ½ [ (μ(s) - t)² / σ_c² + log σ_c² ],   σ_c² = softplus(a_c) + ε

    Paper: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835.
        Matches the authors' code as RepDistiller repeats it, but its log(1 + exp(a)) overflows for large a, this not.

    Use when: widths differ and some of the teacher's channels are worth more than others: channels that the student
        cannot predict get a large variance and stop mattering.

    Args:
        mid_channels: channels of the hidden convolutions; None for the teacher's.
        init_pred_var: the variance at the start, above ``eps``.
        eps: ε, the smallest variance.

    Raises:
        ValueError: a hyperparameter is out of its range, or maps that cannot be compared.

    Example:
        >>> student, teacher = torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)
        >>> loss = VIDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    mid_channels: Count | None = None
    init_pred_var: Positive = 5.0
    eps: Positive = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_pred_var <= self.eps:
            raise ValueError(f"VIDLoss: init_pred_var must be above eps={self.eps}, got {self.init_pred_var!r}")
        self.regressors = nn.ModuleList()
        self.log_scales = nn.ParameterList()

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        variance = self.init_pred_var - self.eps
        inverse_softplus = variance + math.log(-math.expm1(-variance))
        for s, t in pairs:
            ours, theirs = s.shape[1], t.shape[1]
            self.regressors.append(_make_regressor((ours, *2 * (self.mid_channels or theirs,), theirs)))
            self.log_scales.append(nn.Parameter(torch.full((theirs,), inverse_softplus)))

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        losses = []
        pairs = self._pairs(student, teacher)
        for regressor, log_scale, pair in zip(self.regressors, self.log_scales, pairs, strict=True):
            s, t = averaged_alike(*pair)
            losses.append(vid_loss(apply_layer(regressor, s), t, log_scale=log_scale, eps=self.eps))
        return torch.stack(losses).sum()


def _make_regressor(widths: Sequence[int]) -> nn.Module:
    first, second, third = (nn.Conv2d(i, o, 1, bias=False) for i, o in pairwise(widths))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
