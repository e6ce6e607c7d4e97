"""FitNets: a regressor of the student's features gives the teacher's hint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import (
    PairedMapsLoss,
    apply_layer,
    shapes_of,
)

__all__ = ["FitNetLoss", "fitnet_loss"]

Regressor = Literal["conv_bn_relu", "conv_bn", "conv"]


@full_precision
def fitnet_loss(regressed: Signal, teacher: Signal) -> Tensor:
    """Mean squared error between regressed student features and the teacher's hint, summed over layers.

    Args:
        regressed: what the regressor made of the student's features, any shape, one or a list.
        teacher: as many hints of the same shapes.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ, or the result is not finite.

    Example:
        >>> fitnet_loss(torch.zeros(2, 4, 3, 3), torch.full((2, 4, 3, 3), 2.0))
        tensor(4.)
    """
    ours, theirs = tensors_of(regressed), tensors_of(teacher)
    if [t.shape for t in ours] != [t.shape for t in theirs] or not ours:
        raise ValueError(
            f"fitnet_loss expects regressed features and hints of the same shapes: {shapes_of(regressed, teacher)}"
        )
    return torch.stack([F.mse_loss(s, t) for s, t in zip(ours, theirs, strict=True)]).sum()


@hyperparameters
class FitNetLoss(PairedMapsLoss):
    r"""FitNets: a regressor predicts the teacher's features in the middle from the student's.

    Signals: feature maps (N, C, H, W), one a network or a list of equal length, summed. A regressor brings the
    student's map to the teacher's channels and size: a 3x3 convolution of stride 2 where the student's map is twice as
    large, a transposed 4x4 one where it is half as large, else a convolution without padding of the kernel that leaves
    the teacher's size, 1x1 for equal sizes. The regressors are sized from an example batch, and are trained and saved
    with the run. Errors are averaged over all elements. Tokens (N, L, C), vectors (N, C) and maps (N, C, T, H, W) too.

    Formula:
        L = Σ_layers mean (r(s) - t)²,   r = ReLU(BatchNorm(conv(·))), BatchNorm(conv(·)), conv(·) or the identity

    Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550. Regressors and scaling are
        those of RepDistiller and mdistiller. The paper trains the hint first and the labels after, as
        ``experiment=fitnet_stages_pptsmv2`` does; as a term of one sum it is trained along with them.

    Use when: a simple, strong baseline for one layer in the middle, whatever the widths. With several layers
        OverhaulLoss and ReviewKDLoss use the features better.

    Args:
        regressor: ``"conv_bn_relu"`` (for hints after a ReLU), ``"conv_bn"`` (before it), ``"conv"``, or None to
            compare features of the same shape as they are.

    Raises:
        ValueError: an unknown regressor, or maps that no regressor brings together.

    Example:
        >>> student, teacher = torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)
        >>> loss = FitNetLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    regressor: Regressor | None = "conv_bn_relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.regressors = nn.ModuleList()

    @property
    def is_built(self) -> bool:
        """Whether the regressors exist; nothing is missing without one."""
        return self._channels is not None or self.regressor is None

    def build(self, example: Example) -> None:
        """Create a regressor a layer.

        Raises:
            ValueError: a student map cannot be brought to its teacher map's size, shapes differ and ``regressor`` is
                None, or the loss was built for other channels.
        """
        if self.regressor is None:
            fitnet_loss(example.student, example.teacher)
        else:
            super().build(example)

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        assert self.regressor is not None
        for student, teacher in pairs:
            self.regressors.append(_make_regressor(student, teacher, self.regressor))

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        if self.regressor is None:
            return fitnet_loss(student, teacher)
        pairs = self._pairs(student, teacher)
        regressed = [apply_layer(r, s) for r, (s, _) in zip(self.regressors, pairs, strict=True)]
        return fitnet_loss(regressed, [t for _, t in pairs])


def _make_regressor(student: Tensor, teacher: Tensor, kind: Regressor) -> nn.Module:
    layers: list[nn.Module] = [_make_convolution(student.shape, teacher.shape)]
    if kind != "conv":
        layers.append(nn.BatchNorm2d(teacher.shape[1]))
    if kind == "conv_bn_relu":
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _make_convolution(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    (_, ours, h, w), (_, theirs, to_h, to_w) = student, teacher
    if (h, w) == (2 * to_h, 2 * to_w):
        return nn.Conv2d(ours, theirs, 3, stride=2, padding=1)
    if (2 * h, 2 * w) == (to_h, to_w):
        return nn.ConvTranspose2d(ours, theirs, 4, stride=2, padding=1)
    if h >= to_h and w >= to_w:
        return nn.Conv2d(ours, theirs, (1 + h - to_h, 1 + w - to_w))
    raise ValueError(
        "FitNetLoss can bring a student map to the teacher's size when it is as large, larger, or exactly half as "
        f"large: got student {tuple(student)} and teacher {tuple(teacher)}; tap layers of the same stride"
    )
