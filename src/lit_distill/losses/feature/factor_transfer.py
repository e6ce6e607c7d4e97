"""Factor transfer: the teacher's features, paraphrased to few factors, are what the student translates its own to."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count, NonNegative, Positive
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import (
    PairedMapsLoss,
    apply_layer,
    averaged_alike,
    layer_pairs,
    shapes_of,
)

__all__ = ["FactorTransferLoss", "factor_transfer_loss"]


@full_precision
def factor_transfer_loss(student: Tensor, teacher: Tensor, *, p1: Count | None = None, p2: Count = 1) -> Tensor:
    r"""Mean of :math:`|F(s) - F(t)|^{p_2}` between normalized factors.

    ``p1=None`` flattens the whole factor (N, C*H*W) and divides it by its length, as the authors do. With a number, F
    is the mean over channels of the factor's power p1, flattened over H*W and divided by its length, as RepDistiller
    does; channels may then differ.

    Args:
        student: the student's factor (N, C, H, W).
        teacher: the teacher's factor (N, C', H', W'); the larger map is average-pooled to the smaller.
        p1: None, or a whole number from 1.
        p2: power of the differences, a whole number from 1.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that cannot be compared, a power below 1, or a result that is not finite.

    Example:
        >>> import torch
        >>> student, teacher = torch.ones(1, 1, 2, 2), torch.eye(2).expand(1, 1, 2, 2)
        >>> round(factor_transfer_loss(student, teacher).item(), 4)
        0.3536
    """
    ((s, t),) = layer_pairs("factor_transfer_loss", student, teacher)
    if p1 is None and s.shape[1] != t.shape[1]:
        raise ValueError(
            f"factor_transfer_loss expects factors of the same channels unless p1 averages over them: {shapes_of(s, t)}"
        )
    s, t = averaged_alike(s, t)
    difference = _normalized(s, p1) - _normalized(t, p1)
    return difference.abs().mean() if p2 == 1 else difference.abs().pow(p2).mean()


def _normalized(factor: Tensor, p1: int | None) -> Tensor:
    return unit_vectors(factor.flatten(1) if p1 is None else factor.pow(p1).mean(dim=1).flatten(1))


@hyperparameters
class FactorTransferLoss(PairedMapsLoss):
    r"""Factor transfer: a paraphraser distils the teacher's features to factors, a translator learns to match them.

    Signals: feature maps (N, C, H, W), one a network, usually the last. The paraphraser is an autoencoder of the
    teacher's features, three 3x3 convolutions to ``rate`` times its channels and three transposed ones back; the
    translator is three convolutions on the student's features. Leaky ReLU of slope 0.1 follows each. Both are sized
    from an example batch, and are trained and saved with the run. Tokens (N, L, C), vectors (N, C) and maps (N, C, T,
    H, W) too.

    The paraphraser learns to reconstruct alone for ``paraphraser_epochs``; from then on the factors are transferred
    too, as constants to the paraphraser. The published recipe stops the paraphraser there; here it keeps learning
    to reconstruct, since a teacher may still be learning. In eval mode the loss is the complete one.

    Formula:
        L = mean |p(t) - t| + β mean |F(translator(s)) - F(factor(t))|^p2,   F(x) = x/‖x‖₂ of the flattened factor
        p = decoder(encoder(·)),  factor = encoder;  β = 0 in the first epochs

    Paper: Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        arXiv:1802.04977. Networks and F are the authors' code's; RepDistiller's F averages over channels (``p1=2``)
        and has BatchNorm in the translator (``batch_norm=True``).

    Use when: the last maps of a wide teacher. The paraphraser has about 32 C² weights for a teacher of C
        channels: above a thousand channels tap an earlier layer or take a smaller ``rate``.

    Args:
        beta: β, weight of the transfer beside the reconstruction, at least 0.
        rate: the factor has so many times the teacher's channels, above 0.
        paraphraser_epochs: epochs of reconstruction alone, at least 0.
        p1: None: the whole factor, or the power whose mean over channels is compared.
        p2: power of the differences.
        batch_norm: BatchNorm before each activation of the translator.

    Raises:
        ValueError: a hyperparameter is out of its range, or maps that cannot be compared.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = FactorTransferLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    beta: NonNegative = 500.0
    rate: Positive = 0.5
    paraphraser_epochs: NonNegative = 5.0
    p1: Count | None = None
    p2: Count = 1
    batch_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_epoch(0.0)
        self.encoder = nn.Sequential()
        self.decoder = nn.Sequential()
        self.translator = nn.Sequential()

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        ours, theirs = (features.shape[1] for features in pairs[0])
        factors = max(1, round(theirs * self.rate))
        self.encoder = _layers(nn.Conv2d, (theirs, theirs, factors, factors))
        self.decoder = _layers(nn.ConvTranspose2d, (factors, factors, theirs, theirs))
        self.translator = _layers(nn.Conv2d, (ours, ours, factors, factors), batch_norm=self.batch_norm)

    def set_epoch(self, epoch: float) -> None:
        """Take the fractional epoch: before ``paraphraser_epochs`` the factors are not transferred."""
        self.only_reconstructs = epoch < self.paraphraser_epochs

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        ((s, t),) = self._pairs(student, teacher)
        factor = apply_layer(self.encoder, t)
        reconstruction = F.l1_loss(apply_layer(self.decoder, factor), t)
        transfer = factor_transfer_loss(apply_layer(self.translator, s), factor.detach(), p1=self.p1, p2=self.p2)
        # Times 0 and not left out: data parallelism wants a gradient for every parameter in every step.
        return reconstruction + transfer * (0.0 if self.training and self.only_reconstructs else self.beta)

    def _pairs(self, student: Signal, teacher: Signal) -> list[tuple[Tensor, Tensor]]:
        pairs = super()._pairs(student, teacher)
        if len(pairs) != 1:
            raise ValueError("FactorTransferLoss compares one layer with one layer: one term a pair of layers")
        return pairs


def _layers(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...], *, batch_norm: bool = False
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers.append(kind(inputs, outputs, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)
