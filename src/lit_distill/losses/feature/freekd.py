"""Distillation of frequencies (Zhang et al., CVPR 2024): wavelets of a map, where prompts find them of use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count, NonNegative
from lit_distill.losses._masks import mask_of_rows, masked_mean, without_masked
from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import PairedMapsLoss, aligner, apply_layer
from lit_distill.losses.feature._prompts import make_prompts, overlap, prompted_masks, without_gradient

__all__ = ["FreeKDLoss", "freekd_loss"]


@full_precision
def freekd_loss(
    student: Tensor,
    teacher: Tensor,
    prompts: Tensor,
    *,
    mask: Tensor | None = None,
    frozen: bool = True,
    diversity: NonNegative = 1.0,
) -> Tensor:
    """Difference of high frequencies where the teacher's agree with a prompt; see :class:`FreeKDLoss`.

    Args:
        student: maps (N, C, H, W).
        teacher: the same shape.
        prompts: (levels, T, C), the finest level first.
        mask: which samples count, (N,).
        frozen: keep the difference's gradient from the prompts.
        diversity: weight of the masks' overlap.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> flat, checkered = torch.zeros(1, 1, 2, 2), torch.eye(2)[None, None]
        >>> freekd_loss(flat, checkered, torch.zeros(1, 1, 1))  # masks of 1/2, a diagonal of 1 among three orientations
        tensor(0.1667)
    """
    require_same_shape("freekd_loss", student, teacher)
    samples = None if mask is None else mask_of_rows("freekd_loss", mask, student.shape[:1])
    student, teacher = without_masked(student, samples), without_masked(teacher, samples)
    total = []
    for level in prompts.unbind():
        student, ours = _haar(student)
        teacher, theirs = _haar(teacher)
        masks = prompted_masks(level, theirs.sum(dim=2))
        used = without_gradient(masks) if frozen else masks
        difference = (ours - theirs).abs().mean(dim=(1, 2))
        total.append(masked_mean((used.mean(dim=1) * difference).mean(dim=(1, 2)), samples))
        if diversity:
            total.append(diversity * masked_mean(overlap(masks), samples))
    return torch.stack(total).sum()


def _haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low frequencies (N, C, h, w) and three orientations of high ones (N, C, 3, h, w); odd sides end in a 0."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    a, b, c, d = (x[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
    return (a + b + c + d) / 2, torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2


@hyperparameters
class FreeKDLoss(PairedMapsLoss):
    r"""Frequency distillation: the high frequencies of a map, at places that prompts find in the teacher's.

    With s^l, t^l the three orientations of the Haar wavelet's level l of both maps, and prompts e of the level:

    .. math:: L = \sum_l \frac{1}{N T C \cdot 3 \, h w} \sum m^l_{np} \left| s^l - t^l \right|, \quad
        m^l_{np} = σ\left(e \cdot \textstyle\sum_o t^{l,o}_p\right)

    A mean over samples, prompts, channels, orientations and positions, a sum over levels and layers. Low frequencies
    are not compared: the published recipe adds the mean squared error of the maps at weight 5. Odd sides are padded
    with zeros.

    The masks would learn to be empty, so the prompts get no gradient from the difference while ``frozen``; they learn
    by ``diversity`` times the mean Dice coefficient between the masks of a sample. The paper trains them beforehand, by
    that and the teacher's own loss. A 1x1 convolution aligns the student where channels differ. Both are sized from an
    example batch and saved with the run.

    Signals: feature maps (N, C, H, W) of one size, one a network or a list. A mask has (N,).

    Paper: Zhang et al., "FreeKD: Knowledge Distillation via Semantic Frequency Prompt", CVPR 2024, arXiv:2311.12079.
    Matches its authors' program: 2 prompts, three levels, weight 1.

    Use when: dense prediction, where edges count and plain errors follow large surfaces.

    Args:
        prompts: number of masks a level.
        levels: of the wavelet, from the finest.
        frozen: keep the difference's gradient from the prompts.
        diversity: weight of the masks' overlap, at least 0.

    Raises:
        ValueError: a bad hyperparameter, or maps that cannot be compared.

    Example:
        >>> student, teacher = torch.randn(2, 8, 8, 8), torch.randn(2, 16, 8, 8)
        >>> loss = FreeKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    prompts: Count = 2
    levels: Count = 3
    frozen: bool = True
    diversity: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens = nn.ParameterList()
        self.aligners = nn.ModuleList()

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        for student, teacher in pairs:
            self.tokens.append(make_prompts(self.levels, self.prompts, teacher.shape[1]))
            self.aligners.append(aligner(student.shape[1], teacher.shape[1]))

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        total = []
        for layer, tokens, (s, t) in zip(self.aligners, self.tokens, self._pairs(student, teacher), strict=True):
            s, prompts = apply_layer(layer, s), tokens.to(t.dtype)
            total.append(freekd_loss(s, t, prompts, mask=mask, frozen=self.frozen, diversity=self.diversity))
        return torch.stack(total).sum()
