"""OverHaul: features before the ReLU, a margin for the negative ones, a distance that skips what need not match."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_distill.losses._hyperparameters import Count, Positive
from lit_distill.losses._numerics import full_precision, nan_unless_finite, require_finite
from lit_distill.losses.base import Example, Signal, hyperparameters, submodule
from lit_distill.losses.feature._maps import (
    PairedMapsLoss,
    apply_layer,
    averaged,
    layer_pairs,
    shapes_of,
    size_of,
)

__all__ = ["OverhaulLoss", "overhaul_loss", "overhaul_margin", "partial_l2"]

Reduction = Literal["batchmean", "sum"]
Statistics = Literal["running", "batch"]


def overhaul_margin(weight: Tensor, bias: Tensor) -> Tensor:
    r"""The margin of each channel: what a negative teacher response is on average, E[x | x < 0].

    A channel after BatchNorm is taken as normal with mean β and standard deviation :math:`s = |γ|`:

    .. math:: m = β - s\, \frac{φ(β/s)}{Φ(-β/s)} \text{ where } Φ(-β/s) > 0.001, \quad -3s \text{ elsewhere}

    φ and Φ are the normal density and distribution. A channel with γ = 0 is constant: its margin is min(β, 0), the
    limit (the published code divides by zero there).

    Args:
        weight: γ, (C,).
        bias: β, (C,).

    Returns:
        The margins, (C,) in float32, computed in float64 and without a gradient.

    Raises:
        ValueError: the shapes differ, or a value is not finite.

    Example:
        >>> overhaul_margin(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, -2.0, 9.0]))
        tensor([-0.7979, -2.0000, -3.0000])
    """
    if weight.shape != bias.shape or weight.ndim != 1:
        raise ValueError(
            f"overhaul_margin expects weight and bias (C,), got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    require_finite("overhaul_margin", weight=weight, bias=bias)
    s, m = weight.detach().double().abs(), bias.detach().double()
    z = m / torch.where(s == 0, 1.0, s)
    below = torch.special.ndtr(-z)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    margin = torch.where(below > 0.001, m - s * density / below, -3 * s)
    return torch.where(s == 0, m.clamp(max=0), margin).float()


@full_precision
def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    r"""Sum of squared errors, but for negative teacher responses that the student undercuts.

    With :math:`t' = \max(t, m)` it is :math:`\sum (s - t')^2` over the elements where :math:`s > t'` or :math:`t' > 0`.

    Args:
        student: s, the connector's output, of any shape.
        teacher: t, before the activation, of the same shape.
        margin: m, of a shape that broadcasts with them, such as (1, C, 1, 1).

    Returns:
        The sum over everything, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ, or a signal is not finite.

    Example:
        >>> s, t = torch.tensor([2.0, -3.0, 0.0]), torch.tensor([1.0, -2.0, -2.0])
        >>> partial_l2(s, t, torch.tensor(-0.5))
        tensor(1.2500)
    """
    if student.shape != teacher.shape:
        raise ValueError(f"partial_l2 expects signals of one shape: {shapes_of(student, teacher)}")
    target = torch.maximum(teacher, margin.to(teacher.dtype))
    counted = (student > target) | (target > 0)
    # The maximum would hide minus infinity.
    return ((student - target) * counted).square().sum() + nan_unless_finite(student, teacher)


@full_precision
def overhaul_loss(
    student: Signal,
    teacher: Signal,
    margins: Sequence[Tensor],
    *,
    reduction: Reduction = "batchmean",
    divisor: Positive = 1000.0,
) -> Tensor:
    r"""Partial L2 of n levels, level i weighted by :math:`2^{-(n-1-i)}`: the last counts 1, each before it half.

    Args:
        student: the connectors' outputs (N, C, H, W), one or a list from shallow to deep.
        teacher: features before the activation, of the same shapes.
        margins: a margin (C,) a level, from :func:`overhaul_margin`.
        reduction: ``"batchmean"`` divides by N and ``divisor``; ``"sum"`` divides by neither.
        divisor: brings a sum over C*H*W to the size of a cross-entropy.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes do not fit, an unknown reduction, or a signal is not finite.

    Example:
        >>> s, t = torch.full((2, 3, 4, 4), 2.0), torch.ones(2, 3, 4, 4)
        >>> overhaul_loss([s, s], [t, t], [torch.zeros(3), torch.zeros(3)], divisor=1.0)   # 48/2 + 48
        tensor(72.)
    """
    pairs = layer_pairs("overhaul_loss", student, teacher)
    if [tuple(m.shape) for m in margins] != [(t.shape[1],) for _, t in pairs]:
        raise ValueError(
            f"overhaul_loss expects a margin (C,) a level, got {[tuple(m.shape) for m in margins]}: "
            f"{shapes_of(student, teacher)}"
        )
    last = len(pairs) - 1
    total = torch.stack(
        [
            partial_l2(s, t, m.reshape(1, -1, 1, 1)) / 2 ** (last - i)
            for i, ((s, t), m) in enumerate(zip(pairs, margins, strict=True))
        ]
    ).sum()
    return total if reduction == "sum" else total / (len(pairs[0][0]) * divisor)


@hyperparameters
class OverhaulLoss(PairedMapsLoss):
    r"""OverHaul feature distillation: the teacher's features before the ReLU, its negative ones cut at a margin.

    Signals: feature maps (N, C, H, W) **before the activation**, one a network or a list from shallow to deep, such as
    the sum of a residual block (``…act:input``) or a BatchNorm (``….bn``). A connector, a 1x1 convolution without bias
    and BatchNorm, brings the student to the teacher's channels; connectors are sized from an example batch, and are
    trained and saved with the run. Sum over C, H and W, mean over N, divided by ``divisor``. Tokens (N, L, C), vectors
    (N, C) and maps (N, C, T, H, W) too.

    The margins come from the BatchNorm before the teacher's ReLU: the tapped modules themselves where they are
    BatchNorms, else ``batch_norms`` names them, as for a residual sum, where the published choice is the last BatchNorm
    of the block's branch. They are read when the loss is built, and in training again as long as the teacher learns.

    A frozen teacher normalizes by its running statistics. The published code leaves its teacher in train mode, so that
    it normalizes by the batch's: ``teacher_batch_norm="batch"`` does that in training steps, while the teacher's own
    statistics stay as they are. A teacher that is not frozen normalizes by the batch in training anyway.

    Formula:
        L = 1/(N·divisor) Σ_i 2^-(n-1-i) Σ (r_i(s_i) - t'_i)² over the elements with r_i(s_i) > t'_i or t'_i > 0
        t' = max(t, m),   m = E[x | x < 0] for x ~ N(β, γ²) a channel,   r = BatchNorm(conv1x1(·))

    Paper: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866. Matches the
        authors' code: divisor 1000 for CIFAR, 10000 for ImageNet. mdistiller's form differs in ``pool_teacher=True``
        and allows a larger ``kernel_size``.

    Use when: a strong, frozen convolutional teacher with BatchNorm and ReLU, and stages of equal strides. It transfers
        more than attention maps; a teacher without BatchNorm before the tap has no margins: take ReviewKDLoss.

    Args:
        batch_norms: the BatchNorm of each level, as ``"Teacher.stages.0.-1.conv3.bn"``; None: the tapped modules.
        divisor: the sum over a sample is divided by it.
        pool_teacher: average-pool the teacher's maps to the student's size, else sizes must be equal.
        kernel_size: of the connectors' convolutions, odd.
        teacher_batch_norm: how a frozen teacher normalizes in training: ``"running"`` or ``"batch"`` statistics.

    Raises:
        ValueError: a hyperparameter is out of its range, maps of different sizes, or no BatchNorm to read a margin of.

    Example:
        >>> student, teacher, norm = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4), nn.BatchNorm2d(16)
        >>> loss = OverhaulLoss()
        >>> loss.build(Example(student, teacher, teacher_modules=(norm,)))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    batch_norms: Sequence[str] | None = None
    divisor: Positive = 1000.0
    pool_teacher: bool = False
    kernel_size: Count = 1
    teacher_batch_norm: Statistics = "running"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ValueError(f"OverhaulLoss: kernel_size must be odd, got {self.kernel_size!r}")
        self.batch_norms = None if self.batch_norms is None else tuple(self.batch_norms)
        self.connectors = nn.ModuleList()
        self._norms: tuple[_BatchNorm, ...] = ()  # the teacher's own; in a tuple they do not become ours

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        self._norms = self._find_norms(example, [t for _, t in pairs])
        if self.teacher_batch_norm == "batch":
            self._use_batch_statistics(example)
        for level, (s, t) in enumerate(pairs):
            self.connectors.append(_make_connector(s.shape[1], t.shape[1], self.kernel_size))
            self.register_buffer(f"margin{level}", torch.empty(t.shape[1]))
        self._read_margins()

    @property
    def margins(self) -> list[Tensor]:
        """The margins (C,) of all levels."""
        return [self.get_buffer(f"margin{level}") for level in range(len(self.connectors))]

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        pairs = self._pairs(student, teacher)
        if self.training and any(norm.weight.requires_grad for norm in self._norms):
            self._read_margins()
        connected = [apply_layer(connector, s) for connector, (s, _) in zip(self.connectors, pairs, strict=True)]
        return overhaul_loss(connected, [t for _, t in pairs], self.margins, divisor=self.divisor)

    def _pairs(self, student: Signal, teacher: Signal) -> list[tuple[Tensor, Tensor]]:
        pairs = super()._pairs(student, teacher)
        if self.pool_teacher:
            pairs = [(s, averaged(t, size_of(s))) for s, t in pairs]
        if any(size_of(s) != size_of(t) for s, t in pairs):
            raise ValueError(
                "OverhaulLoss expects maps of equal height and width (tap layers of the same stride, or set "
                f"pool_teacher=True): {shapes_of(student, teacher)}"
            )
        return pairs

    def _find_norms(self, example: Example, teacher: list[Tensor]) -> tuple[_BatchNorm, ...]:
        if self.batch_norms is None:
            names = [f"tap {i} ({type(m).__name__})" for i, m in enumerate(example.teacher_modules)]
            found: list[nn.Module] = list(example.teacher_modules)
        else:
            names = list(self.batch_norms)
            found = [_find_module(name, example.models) for name in names]
        if len(found) != len(teacher):
            raise ValueError(
                f"OverhaulLoss needs the BatchNorm before the teacher's ReLU of {len(teacher)} levels, got {names}: "
                "tap the BatchNorms, or name one a level by batch_norms=['Teacher.layer1.1.bn2', …]"
            )
        norms = []
        for name, module, features in zip(names, found, teacher, strict=True):
            if not isinstance(module, _BatchNorm) or module.weight is None:
                raise ValueError(
                    f"OverhaulLoss reads margins from a BatchNorm with weight and bias, but {name} is {module}: "
                    "name the BatchNorm before the ReLU by batch_norms=['Teacher.layer1.1.bn2', …], one a level"
                )
            if module.num_features != features.shape[1]:
                raise ValueError(
                    f"OverhaulLoss: {name} normalizes {module.num_features} channels, but the teacher's map of this "
                    f"level is {tuple(features.shape)}"
                )
            norms.append(module)
        return tuple(norms)

    def _use_batch_statistics(self, example: Example) -> None:
        tapped = set(example.teacher_modules) | set(self._norms)
        teachers = [model for model in example.models.values() if tapped & set(model.modules())]
        if not teachers:
            raise ValueError("OverhaulLoss: teacher_batch_norm='batch' needs the teacher among the named models")
        for model in teachers:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.register_forward_hook(_BatchStatistics(self))

    @torch.no_grad()
    def _read_margins(self) -> None:
        for buffer, norm in zip(self.margins, self._norms, strict=True):
            buffer.copy_(overhaul_margin(norm.weight, norm.bias))


class _BatchStatistics:
    """A forward hook that gives a BatchNorm in eval mode the output of train mode, and leaves its statistics alone."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        assert isinstance(module, _BatchNorm)
        if module.training or not self.loss.training:
            return None
        return F.batch_norm(args[0], None, None, module.weight, module.bias, True, 0.0, module.eps)


def _make_connector(student: int, teacher: int, kernel_size: int) -> nn.Module:
    convolution = nn.Conv2d(student, teacher, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (kernel_size**2 * teacher)))
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher))


def _find_module(name: str, models: Mapping[str, nn.Module]) -> nn.Module:
    model, _, path = name.partition(".")
    try:
        return submodule(models[model], path)
    except (KeyError, AttributeError):
        norms = [f"{m}.{n}" for m in models for n, part in models[m].named_modules() if isinstance(part, _BatchNorm)]
        last = norms[-8:]
    raise ValueError(f"OverhaulLoss: batch_norms names {name!r}, which is no module; the last are {last}")
