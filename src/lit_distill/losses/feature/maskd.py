"""Masked distillation with receptive tokens (Huang et al., ICLR 2023): regions that the teacher finds alike."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count, NonNegative
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import PairedMapsLoss, aligner, apply_layer
from lit_distill.losses.feature._prompts import make_prompts, overlap, prompted_masks, without_gradient
from lit_distill.losses.feature._tokens import as_tokens

__all__ = ["MasKDLoss", "maskd_loss"]


@full_precision
def maskd_loss(
    student: Tensor, teacher: Tensor, masks: Tensor, weights: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """Squared error in each of several soft regions; see :class:`MasKDLoss`.

    Args:
        student: maps (N, C, H, W).
        teacher: the same shape.
        masks: (N, T, H, W), from 0 to 1.
        weights: of a sample's masks, (N, T), which sum to 1; None for the mean.
        mask: which places count: (N,) or (N, H, W).

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> maskd_loss(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2), torch.full((1, 3, 2, 2), 0.5))
        tensor(0.5000)
    """
    require_same_shape("maskd_loss", student, teacher)
    ours, theirs = (as_tokens("maskd_loss", x, mask) for x in (student, teacher))
    samples, places = ours.weights()
    regions = masks.flatten(2).where((places != 0)[:, None], 0.0) * places[:, None]
    regions_squared = regions * masks.flatten(2).where((places != 0)[:, None], 0.0)
    error = torch.einsum("ntp,np->nt", regions_squared, (ours.values - theirs.values).square().mean(dim=2))
    sizes = regions.sum(dim=2)
    error = error / sizes.masked_fill(sizes == 0, 1)
    return masked_mean(error.mean(dim=1) if weights is None else (error * weights).sum(dim=1), samples)


@hyperparameters
class MasKDLoss(PairedMapsLoss):
    r"""Masked distillation: learned tokens find regions in the teacher's map, and each region counts by itself.

    With tokens e_k and features t_p of the teacher, s_p of the student at position p:

    .. math:: L = \frac1N \sum_n \sum_k w_{nk} \frac{\sum_p \left(m_{kp}\right)^2 \frac1C \|s_p - t_p\|^2}
        {\sum_p m_{kp}}, \quad m_{kp} = σ(e_k \cdot t_p)

    A mean over samples and channels, a sum over layers. w is 1/T, or where ``weighted`` the softmax of a head on the
    teacher's map (a 3x3 convolution, the average over positions, a 1x1 convolution). After ``warmup_epochs`` a mask is
    multiplied by the student's own, σ(e_k · s_p), as a constant; in eval mode it always is.

    The masks would learn to be empty, so tokens and head get no gradient from this error while ``frozen``. The tokens
    learn by ``diversity`` times the mean Dice coefficient between the masks of a sample, so that they differ. The paper
    trains tokens and head beforehand, by that and the teacher's own loss on its masked features. A 1x1 convolution
    aligns the student where channels differ. All of it is sized from an example batch and saved with the run.

    Signals: feature maps (N, C, H, W) of one size, one a network or a list. A mask has (N,) or (N, H, W).

    Paper: Huang et al., "Masked Distillation with Receptive Tokens", ICLR 2023, arXiv:2205.14589. Matches its authors'
    program for detection: 6 tokens, ``weighted``, weight 1, 7 or 10 by detector, on the levels of a feature pyramid.
    Its program for segmentation has no head and half the value.

    Use when: dense prediction, where the background would dominate a plain squared error.

    Args:
        tokens: number of masks a layer.
        weighted: weigh masks by a head, which is of use once it is trained.
        frozen: keep the error's gradient from tokens and head.
        diversity: weight of the masks' overlap, at least 0.
        student_mask: whether the student's masks count, too.
        warmup_epochs: until then they do not.

    Raises:
        ValueError: a bad hyperparameter, or maps that cannot be compared.

    Example:
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = MasKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    tokens: Count = 6
    weighted: bool = False
    frozen: bool = True
    diversity: NonNegative = 1.0
    student_mask: bool = True
    warmup_epochs: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_epoch(0.0)
        self.prompts = nn.ParameterList()
        self.heads, self.aligners = nn.ModuleList(), nn.ModuleList()

    def set_epoch(self, epoch: float) -> None:
        """Take the fractional epoch: before ``warmup_epochs`` the student's masks do not count."""
        self.warms_up = epoch < self.warmup_epochs

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        for student, teacher in pairs:
            channels = teacher.shape[1]
            self.prompts.append(make_prompts(self.tokens, channels))
            self.aligners.append(aligner(student.shape[1], channels))
            if self.weighted:
                self.heads.append(make_head(channels, self.tokens))

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        total = []
        for number, (ours, theirs) in enumerate(self._pairs(student, teacher)):
            tokens = [as_tokens("MasKDLoss", x, mask) for x in (ours, theirs)]  # zeros where nothing counts
            samples, _ = tokens[1].weights()
            ours, theirs = (x.values.mT.unflatten(2, x.size) for x in tokens)  # type: ignore[no-untyped-call]
            ours = apply_layer(self.aligners[number], ours)
            masks = prompted_masks(self.prompts[number].to(theirs.dtype), theirs)
            used = without_gradient(masks) if self.frozen else masks
            if self.student_mask and not (self.training and self.warms_up):
                used = used * prompted_masks(self.prompts[number].detach().to(ours.dtype), ours.detach())
            weights = apply_layer(self.heads[number], theirs).flatten(1).softmax(dim=1) if self.weighted else None
            if weights is not None and self.frozen:
                weights = without_gradient(weights)
            total.append(maskd_loss(ours, theirs, used, weights, mask=mask))
            if self.diversity:
                total.append(self.diversity * masked_mean(overlap(masks), samples))
        return torch.stack(total).sum()


def make_head(channels: int, tokens: int) -> nn.Sequential:
    """What weighs the masks of a map."""
    layers = nn.Conv2d(channels, channels, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, tokens, 1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
