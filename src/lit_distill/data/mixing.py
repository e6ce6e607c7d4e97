"""Targets as class probabilities: label smoothing, and mixing of a batch by Mixup or CutMix over height and width."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.data.transforms import Box

MixName: TypeAlias = Literal["mixup", "cutmix", "videomix"]


def class_probabilities(target: Tensor, num_classes: int, *, smoothing: float = 0.0) -> Tensor:
    r"""Class indices as class probabilities, smoothed as in Szegedy et al., CVPR 2016.

    .. math:: y_c = (1 - \varepsilon) \, [c = y] + \varepsilon / C

    Smoothing and mixing are linear: smoothed labels mixed are mixed labels smoothed. The cross-entropy with them is
    ``torch.nn.CrossEntropyLoss(label_smoothing=ε)`` on the indices.

    Args:
        target: int64 (B,); -1 for a sample without a label.
        num_classes: C.
        smoothing: :math:`\varepsilon`, from 0 to below 1.

    Returns:
        float32 (B, C), rows that sum to 1; a row of zeros for a sample without a label.

    Example:
        >>> class_probabilities(torch.tensor([1]), 4, smoothing=0.1)
        tensor([[0.0250, 0.9250, 0.0250, 0.0250]])
    """
    known = (target >= 0).to(torch.float32)[:, None]
    sharp = F.one_hot(target.clamp_min(0), num_classes) * known
    return sharp * (1 - smoothing) + known * (smoothing / num_classes) if smoothing else sharp


class Mix(NamedTuple):
    """What one batch's mixing will be: drawn on the CPU, applied on the device.

    Attributes:
        partner: (B,) int64, the sample that each sample is mixed with.
        weight: scalar float32, the share that each sample keeps.
        box: the rectangle taken from the partner; None to blend whole clips.
    """

    partner: Tensor
    weight: Tensor
    box: Box | None = None

    def __call__(self, clips: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Apply to clips (B, ..., H, W) and targets (B,) or (B, C).

        Returns:
            the mixed clips, a new tensor, and class probabilities (B, C), float32.
        """
        if self.box is None:
            mixed = self.weight * clips + (1 - self.weight) * clips[self.partner]
        else:
            rows = slice(self.box.top, self.box.top + self.box.height)
            columns = slice(self.box.left, self.box.left + self.box.width)
            mixed = clips.clone()
            mixed[..., rows, columns] = clips[self.partner][..., rows, columns]
        soft = target if target.ndim == 2 else class_probabilities(target, num_classes)
        return mixed, self.weight * soft + (1 - self.weight) * soft[self.partner]


class Mixer(Protocol):
    """Draws how a batch is mixed."""

    def draw(self, batch: int, height: int, width: int, rng: random.Random) -> Mix:
        """A :class:`Mix` for ``batch`` clips of ``height`` x ``width`` pixels, drawn from ``rng``."""


@dataclass(frozen=True, kw_only=True)
class Mixup:
    r"""Blend each clip with another of its batch (Zhang et al., ICLR 2018).

    .. math:: \tilde x = \lambda x + (1 - \lambda) x_\pi, \quad \tilde y = \lambda y + (1 - \lambda) y_\pi, \quad
        \lambda \sim Beta(\alpha, \alpha)

    One :math:`\lambda` and one permutation :math:`\pi` a batch, as in PaddleVideo's ``Mixup``.

    Args:
        alpha: of the Beta distribution, above 0.

    Raises:
        ValueError: ``alpha`` is not above 0.

    Example:
        >>> mix = Mixup(alpha=0.2).draw(4, 8, 8, random.Random(0))
        >>> clips, target = mix(torch.rand(4, 2, 3, 8, 8), torch.tensor([0, 1, 2, 0]), num_classes=3)
        >>> target.shape, target.sum(1).tolist()
        (torch.Size([4, 3]), [1.0, 1.0, 1.0, 1.0])
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _require_positive(self.alpha)

    def draw(self, batch: int, height: int, width: int, rng: random.Random) -> Mix:
        """Draw a permutation, then the weight."""
        return Mix(_permutation(batch, rng), torch.tensor(rng.betavariate(self.alpha, self.alpha)))


@dataclass(frozen=True, kw_only=True)
class CutMix:
    r"""Replace a rectangle of each clip, the same in all frames, by that of another clip (Yun et al., ICCV 2019).

    The rectangle has the frame's ratio and :math:`1 - \lambda` of its area, :math:`\lambda \sim Beta(\alpha, \alpha)`,
    is centred anywhere in the frame and cut off at its edges; targets are weighted by the area really replaced.

    PaddleVideo's ``Cutmix`` cuts the axes of channels and height by mistake, since its clips have a time axis that the
    code for images did not know; this one cuts height and width.

    Args:
        alpha: of the Beta distribution, above 0.

    Raises:
        ValueError: ``alpha`` is not above 0.

    Example:
        >>> mix = CutMix(alpha=1.0).draw(2, 8, 8, random.Random(1))
        >>> clips, target = mix(torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 4, 3, 8, 8), torch.tensor([0, 1]), 2)
        >>> bool((clips.mean((1, 2, 3, 4)) - target[:, 1]).abs().max() < 1e-6)
        True
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _require_positive(self.alpha)

    def draw(self, batch: int, height: int, width: int, rng: random.Random) -> Mix:
        """Draw a permutation, the wanted area, then the rectangle's centre (column, row)."""
        partner = _permutation(batch, rng)
        side = math.sqrt(1.0 - rng.betavariate(self.alpha, self.alpha))
        left, right = _cut(rng.randrange(width), int(width * side), width)
        top, bottom = _cut(rng.randrange(height), int(height * side), height)
        box = Box(left, top, right - left, bottom - top)
        return Mix(partner, torch.tensor(1.0 - box.width * box.height / (width * height)), box)


@dataclass(frozen=True, kw_only=True)
class VideoMix:
    """CutMix for a batch or Mixup, by the toss of a coin (PaddleVideo's ``VideoMix``, with :class:`CutMix` set right).

    Args:
        cutmix_probability: how often it is CutMix, from 0 to 1.
        cutmix_alpha: see :class:`CutMix`.
        mixup_alpha: see :class:`Mixup`.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> mixes = [VideoMix().draw(2, 8, 8, random.Random(seed)).box is None for seed in range(100)]
        >>> 30 < sum(mixes) < 70
        True
    """

    cutmix_probability: float = 0.5
    cutmix_alpha: float = 0.2
    mixup_alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.cutmix_probability <= 1.0:
            raise ValueError(f"cutmix_probability must be from 0 to 1, got {self.cutmix_probability}")
        _require_positive(self.cutmix_alpha)
        _require_positive(self.mixup_alpha)

    def draw(self, batch: int, height: int, width: int, rng: random.Random) -> Mix:
        """Draw which of the two, then that one."""
        cut = rng.random() < self.cutmix_probability
        mixer: Mixer = CutMix(alpha=self.cutmix_alpha) if cut else Mixup(alpha=self.mixup_alpha)
        return mixer.draw(batch, height, width, rng)


_MIXERS: dict[str, Callable[[], Mixer]] = {"mixup": Mixup, "cutmix": CutMix, "videomix": VideoMix}


def mixer_of(mix: Mixer | MixName | None) -> Mixer | None:
    """The mixer of a name, with its published values; any other as it is.

    Raises:
        ValueError: another name.

    Example:
        >>> mixer_of("videomix")
        VideoMix(cutmix_probability=0.5, cutmix_alpha=0.2, mixup_alpha=0.2)
    """
    if not isinstance(mix, str):
        return mix
    if mix not in _MIXERS:
        raise ValueError(f"data.mix is one of {list(_MIXERS)}, a mixer by its _target_, or null for none, got {mix!r}")
    return _MIXERS[mix]()


def _permutation(batch: int, rng: random.Random) -> Tensor:
    return torch.tensor(rng.sample(range(batch), batch))


def _cut(center: int, length: int, limit: int) -> tuple[int, int]:
    half = length // 2
    return max(center - half, 0), min(center + half, limit)


def _require_positive(alpha: float) -> None:
    if not alpha > 0.0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
