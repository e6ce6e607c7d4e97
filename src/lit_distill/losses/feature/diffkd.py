"""DiffKD (Huang et al., NeurIPS 2023): the student's features are denoised by a diffusion model of the teacher's."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count, NonNegative, Positive
from lit_distill.losses._numerics import full_precision, kl_from_logits
from lit_distill.losses.base import Example, SizedLoss, hyperparameters
from lit_distill.losses.feature._maps import apply_layer, shapes_of

__all__ = ["DiffKDLoss", "diffkd_loss"]

Distance: TypeAlias = Literal["mse", "kl"]

_TIMES = 1000  # of the diffusion, published
_ROWS = 1280  # of the embedding of times, published


@full_precision
def diffkd_loss(
    denoised: Tensor, teacher: Tensor, *, distance: Distance = "mse", temperature: Positive = 1.0
) -> Tensor:
    """Distance between denoised student features and the teacher's; see :class:`DiffKDLoss`.

    Args:
        denoised: (N, C, H, W).
        teacher: the same shape.
        distance: ``mse``, a mean over everything, or ``kl`` of the channels' softmax, a mean over positions.
        temperature: of ``kl``, which is times its square.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> diffkd_loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
        tensor(1.)
    """
    if denoised.shape != teacher.shape:
        raise ValueError(f"diffkd_loss expects features of one shape: {shapes_of(denoised, teacher)}")
    if distance == "mse":
        return F.mse_loss(denoised, teacher)
    s, t = (x.movedim(1, -1) for x in (denoised, teacher))
    return temperature**2 * kl_from_logits(t, s, temperature=temperature).mean()


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.block = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """A map of the same shape."""
        result: Tensor = x + self.block(x)
        return result


def _pointwise(channels: int, factor: int) -> list[nn.Module]:
    wide = channels * factor
    return [nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, channels, 1)]


class _Denoiser(nn.Module):
    """The noise in a latent map at a time."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.times = nn.Embedding(_ROWS, channels)
        if kernel_size == 3:
            layers: list[nn.Module] = [_Bottleneck(channels, 4), _Bottleneck(channels, 4)]
            layers += [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)]
        else:
            layers = [*_pointwise(channels, 4), nn.BatchNorm2d(channels), *_pointwise(channels, 4)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        """Noise of the same shape."""
        noise: Tensor = self.layers(latent + self.times(time)[..., None, None])
        return noise


class _NoiseShare(nn.Module):
    """How much of a student's latent map is kept where noise is mixed in, one number a sample."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size == 3:
            self.layers = nn.Sequential(_Bottleneck(channels, 8))
        else:
            self.layers = nn.Sequential(*_pointwise(channels, 2), nn.BatchNorm2d(channels))
        self.head = nn.Linear(channels, 2)

    def forward(self, latent: Tensor) -> Tensor:
        """(N, 1, 1, 1), from 0 to 1."""
        share: Tensor = self.head(self.layers(latent).mean(dim=(2, 3))).softmax(dim=1)[:, :1, None, None]
        return share


@hyperparameters
class DiffKDLoss(SizedLoss):
    r"""DiffKD: the student's features are a noisy version of the teacher's; a diffusion model denoises them first.

    With z = E(t) the teacher's latent map, D the noise model, and ŝ the student's denoised map:

    .. math::
        \begin{aligned}
        L &= d(\hat s, z) + \left\| D\left(\sqrt{\bar α_τ} z + \sqrt{1 - \bar α_τ} ε, τ\right) - ε \right\|^2
            + \left\| E'(z) - t \right\|^2 \\
        \hat s &= P\left(\mathrm{DDIM}\left(g f + (1 - g) ε'\right)\right), \quad f = A(s)
        \end{aligned}

    Squares are means over everything. A and P are 1x1 convolutions, P with BatchNorm; g is learned, one number a
    sample. DDIM takes ``steps`` steps of D over the first half of 1000 times. The latent map is constant to the first
    two parts; E and E', 1x1 convolutions (E with BatchNorm), learn by the third alone, and are there where ``latent``
    is given, else z = t. Noise and times τ are drawn in each call, in eval mode by a separate generator with a fixed
    seed. The layers are sized from an example batch, trained and saved with the run.

    Signals: feature maps (N, C, H, W) of one size, or logits (N, C), for which ``kernel_size=1`` and ``distance="kl"``
    are meant.

    Paper: Huang et al., "Knowledge Diffusion for Distillation", NeurIPS 2023, arXiv:2305.15712. Matches its authors'
    program: on the last maps with a latent of 1024 channels, and on logits, each part of weight 1.

    Use when: the student is much smaller than its teacher, so that its features are noisy to it. It costs seven passes
    of a small network each step.

    Args:
        steps: of DDIM.
        latent: channels of the latent map; None for the teacher's own, without an autoencoder.
        kernel_size: 3 for maps, 1 for logits.
        distance: d, ``mse`` or ``kl``.
        temperature: of ``kl``.
        denoised_weight: of the first part.
        noise_weight: of the second part.
        reconstruction_weight: of the third part.

    Raises:
        ValueError: a bad hyperparameter, or signals that cannot be compared.

    Example:
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = DiffKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    steps: Count = 5
    latent: Count | None = None
    kernel_size: Literal[1, 3] = 3
    distance: Distance = "mse"
    temperature: Positive = 1.0
    denoised_weight: NonNegative = 1.0
    noise_weight: NonNegative = 1.0
    reconstruction_weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adapter, self.encoder, self.decoder = nn.Sequential(), nn.Sequential(), nn.Sequential()
        self.denoiser: _Denoiser | None = None
        self.share, self.projector = nn.Sequential(), nn.Sequential()
        self._channels: tuple[int, int] | None = None
        kept = (1 - torch.linspace(1e-4, 0.02, _TIMES)).cumprod(dim=0)
        self.kept: Tensor
        self.register_buffer("kept", kept, persistent=False)

    @property
    def is_built(self) -> bool:
        """Whether the layers exist."""
        return self._channels is not None

    def build(self, example: Example) -> None:
        """Create the layers.

        Raises:
            ValueError: signals that cannot be compared, or the loss was built for other channels.
        """
        student, teacher = self._maps(example.student, example.teacher)  # type: ignore[arg-type]
        channels = student.shape[1], teacher.shape[1]
        if self._channels not in (None, channels):
            raise ValueError(f"DiffKDLoss was built for (student, teacher) channels {self._channels}, got {channels}")
        if self._channels is None:
            ours, theirs = channels
            width = self.latent or theirs
            if self.latent:
                self.encoder = nn.Sequential(nn.Conv2d(theirs, width, 1), nn.BatchNorm2d(width))
                self.decoder = nn.Sequential(nn.Conv2d(width, theirs, 1))
            self.adapter = nn.Sequential(nn.Conv2d(ours, width, 1))
            self.denoiser = _Denoiser(width, self.kernel_size)
            self.share = nn.Sequential(_NoiseShare(width, self.kernel_size))
            self.projector = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
            self._channels = channels
            self.to(student.device)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        student, teacher = self._maps(student, teacher)
        latent = apply_layer(self.encoder, teacher)
        total = []
        if self.latent:
            total.append(self.reconstruction_weight * F.mse_loss(apply_layer(self.decoder, latent), teacher))
        latent = latent.detach()
        noise, other, times = self._draw(latent)
        kept = self.kept[times].to(latent.dtype)[:, None, None, None]
        noisy = kept.sqrt() * latent + (1 - kept).sqrt() * other
        total.append(self.noise_weight * F.mse_loss(self._noise_in(noisy, times), other))
        denoised = apply_layer(self.projector, self._denoised(apply_layer(self.adapter, student), noise))
        total.append(
            self.denoised_weight
            * diffkd_loss(denoised, latent.to(denoised.dtype), distance=self.distance, temperature=self.temperature)
        )
        return torch.stack(total).sum()

    def _denoised(self, features: Tensor, noise: Tensor) -> Tensor:
        share = apply_layer(self.share, features)
        image = share * features + (1 - share) * noise.to(features.dtype)
        stride = _TIMES // (2 * self.steps)
        for step in reversed(range(self.steps)):
            time = step * stride
            predicted = self._noise_in(image, torch.full((len(image),), time, device=image.device))
            now = self.kept[time].to(image.dtype)
            clean = (image - (1 - now).sqrt() * predicted) / now.sqrt()
            before = self.kept[time - stride].to(image.dtype) if step else torch.ones_like(now)
            image = before.sqrt() * clean + (1 - before).sqrt() * predicted
        return image

    def _noise_in(self, latent: Tensor, times: Tensor) -> Tensor:
        assert self.denoiser is not None
        noise: Tensor = self.denoiser(latent.to(self.denoiser.times.weight.dtype), times)
        return noise.to(latent.dtype)

    def _draw(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise for the student's map and for the teacher's, and the times of the latter."""
        generator = None if self.training else torch.Generator(latent.device).manual_seed(0)
        device = latent.device
        noise, other = (
            torch.randn(latent.shape, dtype=latent.dtype, device=device, generator=generator) for _ in range(2)
        )
        return noise, other, torch.randint(_TIMES, (len(latent),), device=device, generator=generator)

    def _maps(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both as maps; vectors have one position."""
        shapes = shapes_of(student, teacher)
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            raise ValueError(f"DiffKDLoss compares one layer with one: give one reference each; {shapes}")
        s, t = (x[..., None, None] if x.ndim == 2 else x for x in (student, teacher))
        if s.ndim != 4 or t.ndim != 4 or len(s) != len(t) or s.shape[2:] != t.shape[2:] or not s.numel():
            raise ValueError(f"DiffKDLoss expects maps (N, C, H, W) of one size, or logits (N, C), {shapes}")
        return s, t
