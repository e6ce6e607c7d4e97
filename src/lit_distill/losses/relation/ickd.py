"""Inter-channel correlation (Liu et al., ICCV 2021)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Rule
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import batch_normalized, unit_vectors
from lit_distill.losses._numerics import full_precision, upcast
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature._tokens import Tokens, as_map, as_tokens, sample_weights

__all__ = ["ICKDLoss", "ickd_loss"]

Kernel = Annotated[int, Rule(lambda k: k in (1, 3, 5, 7), "1, 3, 5 or 7")]


@full_precision
def ickd_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Squared difference of the normalized Gram matrices of channels; see :class:`ICKDLoss`.

    Args:
        student: maps (B, C, H, W) or (B, C, T, H, W), or tokens (B, N, C).
        teacher: the same, of as many channels and any size.
        mask: which places count: (B,), or (B, N), (B, H, W) where both have these.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the channels differ, or the result is not finite.

    Example:
        >>> maps = torch.randn(2, 3, 4, 4)
        >>> ickd_loss(maps, 2 * maps).item() < 1e-10
        True
    """
    ours, theirs = (as_tokens("ickd_loss", x, mask) for x in (student, teacher))
    if len(ours.values) != len(theirs.values) or ours.values.shape[2] != theirs.values.shape[2]:
        raise ValueError(
            f"ickd_loss expects maps of the same samples and as many channels: {shapes_of(student, teacher)}"
        )
    difference = _relations(ours) - _relations(theirs)
    return masked_mean(difference.square().sum(dim=(1, 2)) / difference.shape[1], sample_weights(ours, mask))


def _relations(tokens: Tokens) -> Tensor:
    """The Gram matrix of each sample's channels (B, C, C), each row of length 1."""
    values = tokens.values
    if tokens.places is not None:
        values = values * tokens.places.to(values.dtype).sqrt()[..., None]
    return unit_vectors(values.mT @ values)


@hyperparameters
class ICKDLoss(SizedLoss):
    r"""Channels that respond alike in the teacher respond alike in the student.

    With F the C × HW matrix of a sample's channels and G = F Fᵀ, each row divided by its length:

    .. math:: L = \frac{1}{N C} \sum_{i=1}^N \left\| G^s_i - G^t_i \right\|_F^2

    The student's map goes through a convolution without bias and batch normalization to the teacher's channels; sizes
    may differ. Layers are summed. The connectors are sized from an example batch, trained and saved with the run.

    Signals: feature maps (B, C, H, W) or (B, C, T, H, W) or tokens (B, N, C), one a network or a list of equal length.
    A mask has (B,), or the places of both sides; with ``kernel`` above 1 what it leaves out is 0 to its neighbors.

    Paper: Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation", ICCV 2021,
    arXiv:2202.03680. The default is the authors' for CIFAR-100, where it has weight 2.5 on the last map. Theirs for
    ImageNet (``kernel=3``) and torchdistill (``kernel=None`` after a connector of the model) divide by the batch size
    again: their weight 500 is 500/N here.

    Use when: the last maps of student and teacher differ in size, and what each channel stands for matters more than
    where it responds.

    Args:
        kernel: size of the connector's convolution; None for equal channels, without a connector.

    Raises:
        ValueError: another kernel, or maps that cannot be paired.

    Example:
        >>> student, teacher = torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)
        >>> loss = ICKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    kernel: Kernel | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.connectors = nn.ModuleList()
        self._channels: list[tuple[int, int]] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the connectors exist; nothing is missing without them."""
        return self._channels is not None or self.kernel is None

    def build(self, example: Example) -> None:
        """Create the connectors for the channels of ``example``.

        Raises:
            ValueError: the maps cannot be paired, or the loss was built for other channels.
        """
        pairs = self._pairs(example.student, example.teacher)
        channels = [(s.values.shape[2], t.values.shape[2]) for s, t in pairs]
        if self._channels not in (None, channels):
            raise ValueError(f"ICKDLoss was built for (student, teacher) channels {self._channels}, got {channels}")
        if self._channels is None:
            if self.kernel is not None:
                self.connectors.extend(_connector(*pair, self.kernel) for pair in channels)
            self._channels = channels
            self.to(pairs[0][0].values.device)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        losses = []
        for number, (ours, theirs) in enumerate(self._pairs(student, teacher, mask)):
            values = ours.values
            if self.kernel is not None:
                values = self._connected(self.connectors[number], ours)
            places = mask if mask is None or mask.ndim == 1 else ours.places
            losses.append(ickd_loss(values, theirs.values, mask=places))
        return torch.stack(losses).sum()

    def _connected(self, connector: nn.Module, tokens: Tokens) -> Tensor:
        convolution, norm = connector.children()
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
        values = tokens.values.mT[..., None] if self.kernel == 1 else as_map("ICKDLoss", tokens.values, tokens.size)
        if values.ndim != 4:
            raise ValueError(
                f"ICKDLoss convolves maps (B, C, H, W) with kernel={self.kernel}, got {tuple(values.shape)}"
            )
        values = convolution(values.to(convolution.weight.dtype))
        mask = None if tokens.mask is None else tokens.mask.reshape(len(values), 1, *values.shape[2:])
        return upcast(batch_normalized(norm, values, mask)).flatten(2).mT

    def _pairs(self, student: Signal, teacher: Signal, mask: Tensor | None = None) -> list[tuple[Tokens, Tokens]]:
        ours, theirs = tensors_of(student), tensors_of(teacher)
        if len(ours) != len(theirs) or not ours or any(len(s) != len(t) for s, t in zip(ours, theirs, strict=True)):
            raise ValueError(
                f"ICKDLoss expects as many student maps as teacher maps, of one batch: {shapes_of(student, teacher)}"
            )
        return [
            (as_tokens("ICKDLoss", s, mask), as_tokens("ICKDLoss", t, mask)) for s, t in zip(ours, theirs, strict=True)
        ]


def _connector(ours: int, theirs: int, kernel: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(ours, theirs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(theirs))
