"""Feature-based distillation for detectors (Zhang and Ma, ICLR 2021): attention, and relations by non-local blocks."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Count, NonNegative, Positive
from lit_distill.losses._masks import mask_of_rows, without_masked
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import PairedMapsLoss, apply_layer, shapes_of

__all__ = ["FBKDLoss", "fbkd_loss"]

Affinity: TypeAlias = Literal["dot_product", "embedded_gaussian"]


@full_precision
def fbkd_loss(
    student: Tensor,
    teacher: Tensor,
    adapted: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 0.5,
    gather: bool = False,
) -> Tensor:
    r"""The length of the adapted student's error, weighted by where both maps are active: the first part of FBKD.

    Args:
        student: maps (N, C, H, W), whose activity counts.
        teacher: maps (N, C', H, W).
        adapted: the student's maps with the teacher's channels.
        mask: which samples count, (N,).
        temperature: of the softmax over positions of the mean absolute channel.
        gather: take the length over all processes.

    Returns:
        The loss, a scalar in float32 or better: a length over the whole batch, not a mean.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> maps = torch.ones(1, 2, 2, 2)
        >>> round(fbkd_loss(maps, maps, 0 * maps).item(), 4)  # √8
        2.8284
    """
    if student.shape[2:] != teacher.shape[2:] or adapted.shape != teacher.shape:
        raise ValueError(f"fbkd_loss expects maps of one size: {shapes_of(student, teacher)}")
    activity = (_activity(student, temperature) + _activity(teacher, temperature)).detach() / 2
    return _length(activity.sqrt() * (teacher - adapted), mask, gather)


def _activity(maps: Tensor, temperature: float) -> Tensor:
    """Shares of positions in the mean absolute channel, times their number: (N, 1, H, W)."""
    mean = maps.abs().mean(dim=1).flatten(1)
    return ((mean / temperature).softmax(dim=1) * mean.shape[1]).reshape(len(maps), 1, *maps.shape[2:])


def _length(difference: Tensor, mask: Tensor | None, gather: bool) -> Tensor:
    """The root of a sum of squares over the batch; no slope at 0."""
    weights = None if mask is None else mask_of_rows("FBKDLoss", mask, difference.shape[:1])
    squares = without_masked(difference, weights).flatten(1).square().sum(dim=1)
    squares = squares if weights is None else squares * weights
    total = (gather_with_gradients(squares) if gather else squares).sum()
    return torch.where(total > 0, total, 1.0).sqrt().where(total > 0, total)


class _NonLocal(nn.Module):
    """What a position takes from all others, added to it; nothing at first."""

    def __init__(self, channels: int, reduction: int, pool: int, affinity: Affinity) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.pool, self.affinity = pool, affinity
        self.value, self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        norm = nn.BatchNorm2d(channels)
        self.out = nn.Sequential(nn.Conv2d(inner, channels, 1, bias=False), norm)
        for layer in (self.value, self.query, self.key):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """A map (N, C, H, W) of the same shape."""
        value, key = self.value(x), self.key(x)
        if self.pool > 1:
            value, key = F.max_pool2d(value, self.pool), F.max_pool2d(key, self.pool)
        value, key, query = value.flatten(2), key.flatten(2), self.query(x).flatten(2)
        weights = query.mT @ key
        if self.affinity == "dot_product":
            weights = weights / weights.shape[-1]
        else:
            weights = (weights / query.shape[1] ** 0.5).softmax(dim=-1)
        taken = (value @ weights.mT).unflatten(2, x.shape[2:])
        result: Tensor = x + self.out(taken)
        return result


class _Layers(nn.Module):
    """What one pair of maps needs."""

    def __init__(self, ours: int, theirs: int, reduction: int, pool: int, affinity: Affinity) -> None:
        super().__init__()
        self.adaptation = nn.Conv2d(ours, theirs, 1)
        self.channel = nn.Linear(ours, theirs)
        self.spatial = nn.Conv2d(1, 1, 3, padding=1)
        self.relation = nn.Conv2d(ours, theirs, 1)
        self.student_block = _NonLocal(ours, reduction, pool, affinity)
        self.teacher_block = _NonLocal(theirs, reduction, pool, affinity)


@hyperparameters
class FBKDLoss(PairedMapsLoss):
    r"""Feature-based distillation: errors where networks are active, of channels, of positions and of relations.

    With A, W, A' adaptations, K a 3x3 convolution and R a non-local block of each network:

    .. math:: L = a \left\| \sqrt{M} \, (t - A s) \right\| + b \left\| \bar t_{hw} - W \bar s_{hw} \right\|
        + c \left\| \bar t_c - K \bar s_c \right\| + d \left\| R(t) - A' R(s) \right\|

    M is the mean of both maps' activity: the softmax over positions of the mean absolute channel over T, times the
    number of positions, without a gradient; means are over positions and over channels. Each norm is the root of the
    sum of squares over the whole batch, as published: it grows with the root of the batch, and under DDP ``gather``
    takes that of the global batch. Layers are summed. All layers, the teacher's block among them, are sized from an
    example batch, trained and saved with the run; a block adds nothing at first.

    Signals: feature maps (N, C, H, W) of one size, one a network or a list. A mask has (N,).

    Paper: Zhang and Ma, "Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and
    Efficient Detectors", ICLR 2021. Matches mmrazor, on four levels of a feature pyramid, whose blocks pool keys and
    values by 16, 8, 4 and 4 (twice its strides of 8, 4, 2 and 2).

    Use when: detectors, on the levels of their feature pyramids.

    Args:
        mask_weight: a.
        channel_weight: b.
        spatial_weight: c.
        relation_weight: d.
        temperature: T, above 0.
        reduction: the inner channels of a block are so many times fewer.
        pool: the side of the windows whose maxima are a block's keys and values; 1 for none.
        affinity: ``dot_product`` over the number of positions, or ``embedded_gaussian``, the softmax of it.
        gather: take norms over all processes, with gradients.

    Raises:
        ValueError: a bad hyperparameter, or maps that cannot be compared.

    Example:
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = FBKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    mask_weight: NonNegative = 7e-5
    channel_weight: NonNegative = 4e-3
    spatial_weight: NonNegative = 4e-3
    relation_weight: NonNegative = 7e-5
    temperature: Positive = 0.5
    reduction: Count = 2
    pool: Count = 1
    affinity: Affinity = "dot_product"
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = nn.ModuleList()

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        options = self.reduction, self.pool, self.affinity
        self.layers.extend(_Layers(s.shape[1], t.shape[1], *options) for s, t in pairs)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        total = []
        for layers, (s, t) in zip(self.layers, self._pairs(student, teacher), strict=True):
            assert isinstance(layers, _Layers)
            weights = None if mask is None else mask_of_rows("FBKDLoss", mask, s.shape[:1])
            s, t = without_masked(s, weights), without_masked(t, weights)
            adapted = apply_layer(layers.adaptation, s)
            error = fbkd_loss(s, t, adapted, mask=mask, temperature=self.temperature, gather=self.gather)
            channel = t.mean(dim=(2, 3)) - apply_layer(layers.channel, s.mean(dim=(2, 3)))
            spatial = t.mean(dim=1, keepdim=True) - apply_layer(layers.spatial, s.mean(dim=1, keepdim=True))
            related = apply_layer(layers.relation, apply_layer(layers.student_block, s))
            relation = apply_layer(layers.teacher_block, t) - related
            parts = ((self.channel_weight, channel), (self.spatial_weight, spatial), (self.relation_weight, relation))
            total.append(self.mask_weight * error)
            total.extend(weight * _length(part, mask, self.gather) for weight, part in parts)
        return torch.stack(total).sum()
