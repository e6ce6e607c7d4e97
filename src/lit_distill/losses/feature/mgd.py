"""Masked generative distillation: the student generates the teacher's full features from its own masked ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import NonNegative, Share
from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature._maps import PairedMapsLoss, apply_layer, shapes_of, size_of

__all__ = ["MGDLoss", "mgd_loss"]

Mask = Literal["channel", "spatial"]


@full_precision
def mgd_loss(generated: Tensor, teacher: Tensor, *, alpha: NonNegative = 7e-5) -> Tensor:
    r"""Squared error between generated and teacher features: :math:`\frac{α}{N} \sum (g - t)^2`.

    The sum runs over channels and positions; only the batch N is averaged, so α depends on the size of the map.

    Args:
        generated: what the generation block made of the student's masked features, (N, C, H, W).
        teacher: the teacher's features, of the same shape.
        alpha: α, at least 0.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ, α is negative or the result is not finite.

    Example:
        >>> mgd_loss(torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3), alpha=0.5)
        tensor(18.)
    """
    require_same_shape("mgd_loss", generated, teacher)
    return alpha * (generated - teacher).square().sum() / len(teacher)


@hyperparameters
class MGDLoss(PairedMapsLoss):
    r"""Masked generative distillation: from features with a random part missing, generate the teacher's complete ones.

    Shapes: feature maps (N, C, H, W) of one batch size and one spatial size; channels may differ, then a 1x1
    convolution aligns the student's. A mask sets whole channels of a sample (``mask="channel"``, the published form for
    classification) or whole positions (``"spatial"``, for detection and segmentation) to zero with probability
    ``mask_ratio``, without rescaling the rest. The generation block is a 3x3 convolution, a ReLU and a 3x3 convolution
    with the teacher's channels. Error: a sum over C, H and W, a mean over N, times ``alpha``. Tokens (N, L, C), vectors
    (N, C) and maps (N, C, T, H, W) too.

    In training the mask comes from torch's global random generator of the features' device, so that
    ``seed_everything`` reproduces it. In eval mode it comes from a separate generator with a fixed seed: validation
    losses compare from epoch to epoch and the global generator stays where it is.

    The convolutions are sized from an example batch, and are trained and saved with the run; they and the error compute
    in float32 or better, whatever the training precision is.

    Formula:
        L = α/N Σ (G(m ⊙ A(s)) - t)²,   A: 1x1 convolution where channels differ,   G = conv3x3(ReLU(conv3x3(·)))
        m ~ Bernoulli(1 - mask_ratio), one value a sample and channel (or a sample and position)

    Paper: Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv:2205.01529. Mask, block and scaling are those
        of the authors' code; its values for detection are alpha=2e-5, mask_ratio=0.65, mask="spatial".

    Use when: one late feature map of the same size exists in both networks. alpha has to follow the size of the map
        (the error is a sum): start where the term is of the size of the cross-entropy.

    Args:
        alpha: α, weight of the summed error, at least 0.
        mask_ratio: λ, share of the features that is masked, in [0, 1].
        mask: ``"channel"`` or ``"spatial"``.

    Raises:
        ValueError: a hyperparameter is out of its range, or the maps differ in batch or spatial size.

    Example:
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = MGDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    alpha: NonNegative = 7e-5
    mask_ratio: Share = 0.15
    mask: Mask = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.align: nn.Conv2d | None = None
        self.generation = nn.Sequential()

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        ours, theirs = (features.shape[1] for features in pairs[0])
        if ours != theirs:
            self.align = nn.Conv2d(ours, theirs, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(theirs, theirs, 3, padding=1), nn.ReLU(), nn.Conv2d(theirs, theirs, 3, padding=1)
        )

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        ((student, teacher),) = self._pairs(student, teacher)
        aligned = student if self.align is None else apply_layer(self.align, student)
        generated = apply_layer(self.generation, aligned * self._draw_mask(aligned))
        return mgd_loss(generated, teacher, alpha=self.alpha)

    def _draw_mask(self, features: Tensor) -> Tensor:
        """Ones and zeros, (N, C, 1, 1) or (N, 1, H, W)."""
        n, c, h, w = features.shape
        shape = (n, c, 1, 1) if self.mask == "channel" else (n, 1, h, w)
        generator = None if self.training else torch.Generator(features.device).manual_seed(0)
        drawn = torch.rand(shape, device=features.device, generator=generator)
        return (drawn >= self.mask_ratio).to(features.dtype)

    def _pairs(self, student: Signal, teacher: Signal) -> list[tuple[Tensor, Tensor]]:
        shapes = shapes_of(student, teacher)
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            raise ValueError(f"MGDLoss compares one layer with one: give one reference each, one term a pair; {shapes}")
        pairs = super()._pairs(student, teacher)
        if size_of(pairs[0][0]) != size_of(pairs[0][1]):
            raise ValueError(f"MGDLoss expects maps of one spatial size (pick layers of the same stride), {shapes}")
        return pairs
