"""Layers that both video networks are made of, and where torch's own differ from the published ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BatchNormKind: TypeAlias = Literal["torch", "published"]
DropoutMode: TypeAlias = Literal["downscale_in_infer", "upscale_in_train"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a number of channels to a multiple of ``divisor``, never below 90 % of it.

    Example:
        >>> [make_divisible(channels) for channels in (3, 22.4, 64)]
        [8, 24, 64]
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def require_choice(value: str, choices: object, *, name: str) -> None:
    """Raise ValueError unless ``value`` is one of the literals of the type ``choices``."""
    if value not in get_args(choices):
        raise ValueError(f"{name} expects one of {list(get_args(choices))}, got {value!r}")


class BiasedBatchNorm2d(nn.BatchNorm2d):
    r"""BatchNorm2d whose running variance averages the biased batch variance :math:`\frac1n \sum (x - \bar x)^2`.

    That is what Paddle does; torch averages the unbiased one, n / (n - 1) times as much, n = B*T*H*W. Outputs in
    training and in evaluation with the same statistics do not differ. ``SyncBatchNorm.convert_sync_batchnorm`` turns it
    into torch's own behaviour.

    Example:
        >>> norm = BiasedBatchNorm2d(1)
        >>> _ = norm(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
        >>> round(norm.running_var.item(), 6)       # 0.9 * 1 + 0.1 * 1; the unbiased variance is 2
        1.0
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        assert self.momentum is not None
        # momentum 1 makes these the statistics of the batch alone; autograd must not see the running ones change
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        output = F.batch_norm(input, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            count = input.numel() // input.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * ((count - 1) / count), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return output


NORMS: dict[BatchNormKind, Callable[[int], nn.BatchNorm2d]] = {
    "torch": nn.BatchNorm2d,
    "published": BiasedBatchNorm2d,
}


class DownscaleInInferDropout(nn.Module):
    r"""Dropout that only zeroes in training and multiplies by :math:`1 - p` in evaluation.

    The mean is the same as with torch's dropout, which scales by 1 / (1 - p) in training instead. Matches Paddle's
    ``mode="downscale_in_infer"``, where the factor is single precision in every precision of the input.

    Args:
        p: probability of a zero, in [0, 1).

    Example:
        >>> DownscaleInInferDropout(0.5).eval()(torch.ones(2))
        tensor([0.5000, 0.5000])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.scale = float(torch.tensor(1.0) - torch.tensor(p, dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        """Zero or scale a tensor of any shape."""
        if not self.training:
            return input * self.scale
        return input * torch.empty_like(input).bernoulli_(1.0 - self.p)

    def extra_repr(self) -> str:
        """Shown in the module's print."""
        return f"p={self.p}"


def make_dropout(p: float, mode: DropoutMode) -> nn.Module:
    """Dropout in the given mode; ``upscale_in_train`` is torch's own.

    Raises:
        ValueError: p is outside [0, 1), or the mode is unknown.
    """
    require_choice(mode, DropoutMode, name="dropout_mode")
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout expects a probability in [0, 1), got {p}")
    return DownscaleInInferDropout(p) if mode == "downscale_in_infer" else nn.Dropout(p)


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm, activation; odd kernels, padded so that stride 1 keeps the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
        batch_norm: BatchNormKind = "torch",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False
        )
        self.bn = NORMS[batch_norm](out_channels)
        self.act = nn.Identity() if activation is None else activation

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        output: Tensor = self.act(self.bn(self.conv(input)))
        return output


class SqueezeExcite(nn.Module):
    """Scale the channels by a sigmoid gate of their means: 1x1 convolutions with bias, ReLU between (Hu et al., 2018).

    Args:
        channels: of the input and output.
        reduction: the hidden layer has ``channels // reduction`` channels.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = nn.Conv2d(channels, channels // reduction, 1)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Gate (N, C, H, W)."""
        return input * torch.sigmoid(self.conv2(self.act(self.conv1(self.pool(input)))))


@torch.no_grad()
def init_convolutions(model: nn.Module) -> None:
    r"""Initialise as published: convolutions :math:`N(0, 2 / \text{fan-in})`, biases 0, BatchNorm 1 and 0.

    The fan-in is that of one group, ``weight.shape[1] * k * k``.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
