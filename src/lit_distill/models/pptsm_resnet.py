"""PP-TSM ResNet: ResNet-vd with a temporal shift at the entrance of every block."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lit_distill.models import paddle_keys
from lit_distill.models.layers import (
    BatchNormKind,
    ConvBN,
    DropoutMode,
    init_convolutions,
    make_divisible,
    make_dropout,
    require_choice,
)
from lit_distill.models.temporal import TemporalShift, frames_of
from lit_distill.optim import ParameterGroup, published_groups

EXPANSION = 4
"""A bottleneck's output has so many times the channels of its 3x3 convolution."""


class Shortcut(ConvBN):
    """A 1x1 ConvBN without activation.

    A ``pooled`` one takes averages of 2x2 (fewer at odd borders) instead of striding the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, pooled: bool, batch_norm: BatchNormKind
    ) -> None:
        pool = pooled and stride > 1
        super().__init__(in_channels, out_channels, 1, stride=1 if pool else stride, batch_norm=batch_norm)
        self.pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if pool else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        return super().forward(self.pool(input))


class ResidualBlock(nn.Module):
    """A residual block whose branch sees shifted frames: basic (two 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1).

    The shortcut sees the frames unshifted. ``act`` is the last activation: ``act:input`` is the sum before it. A
    bottleneck gives ``EXPANSION`` times its ``channels``.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        bottleneck: bool,
        project: bool,
        num_frames: int,
        batch_norm: BatchNormKind,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        out_channels = channels * EXPANSION if bottleneck else channels
        self.temporal_shift = TemporalShift(in_channels, num_frames)
        if bottleneck:
            self.conv1 = ConvBN(in_channels, channels, 1, activation=nn.LeakyReLU(), batch_norm=batch_norm)
            self.conv2 = ConvBN(channels, channels, 3, stride=stride, activation=nn.LeakyReLU(), batch_norm=batch_norm)
            self.conv3 = ConvBN(channels, out_channels, 1, batch_norm=batch_norm)
        else:
            self.conv1 = ConvBN(
                in_channels, channels, 3, stride=stride, activation=nn.LeakyReLU(), batch_norm=batch_norm
            )
            self.conv2 = ConvBN(channels, channels, 3, batch_norm=batch_norm)
        self.shortcut = (
            Shortcut(in_channels, out_channels, stride=stride, pooled=bottleneck, batch_norm=batch_norm)
            if project
            else nn.Identity()
        )
        self.act = nn.LeakyReLU()

    def forward(self, input: Tensor) -> Tensor:
        """(B*T, C, H, W) to (B*T, C', H', W')."""
        branch = self.conv2(self.conv1(self.temporal_shift(input)))
        if self.bottleneck:
            branch = self.conv3(branch)
        output: Tensor = self.act(self.shortcut(input) + branch)
        return output


class PPTSMResNet(nn.Module):
    r"""PP-TSM: ResNet-vd over the frames, temporal shift in every block, mean over time.

    Clips (B, T, 3, H, W), normalised RGB, to logits (B, num_classes); any H and W. Features inside: (B*T, C, H', W').
    All activations are leaky ReLU of slope 0.01. Dropout acts on every frame's features, before the mean over time.
    Matches PaddleVideo's ``ResNetTweaksTSM`` with ``ppTSMHead``.

    What a reference may name: ``stem`` (stride 2, 64 channels at width 1); ``stages.0`` to ``stages.3`` (strides 4, 8,
    16, 32; 64, 128, 256, 512 channels, four times as many from depth 50 on), ``stages.<s>.<i>`` their blocks,
    ``stages.<s>.<i>.act:input`` a block before its last activation; ``fc:input`` the embedding.

    ``batch_norm`` defaults to torch's running variance, n / (n - 1) times the published one with n = B*T*H*W hundreds
    at least: no accuracy shows it, and SyncBatchNorm and the fastest kernels work. Published weights give the published
    logits either way. ``dropout_mode`` defaults to torch's, which here is the published one too.

    Args:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        num_classes: number of logits.
        num_frames: T, at least 3; or 1 for stills, without temporal shift: their state dict is that of clips.
        width: width multiplier, for small data; channels are rounded to multiples of 8. Published: 1.
        dropout: probability, in [0, 1).
        dropout_mode: ``"upscale_in_train"`` (torch's and published), or ``"downscale_in_infer"``.
        batch_norm: ``"torch"``, or ``"published"`` for biased running variances.
        pretrained: weights to start from, read by :func:`lit_distill.models.load_weights`; its report is kept in
            ``load_report``.
        reset_head: start with a fresh classifier where the one in ``pretrained`` has another class count, which is
            an error otherwise (but for the ImageNet classifier of a published backbone).

    Raises:
        ValueError: a hyperparameter is out of its range, or ``pretrained`` does not fit.

    Example:
        >>> network = PPTSMResNet(18, 10, 8, width=0.25)
        >>> network(torch.zeros(2, 8, 3, 33, 47)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        num_frames: int,
        *,
        width: float = 1.0,
        dropout: float = 0.5,
        dropout_mode: DropoutMode = "upscale_in_train",
        batch_norm: BatchNormKind = "torch",
        pretrained: str | Path | None = None,
        reset_head: bool = False,
    ) -> None:
        super().__init__()
        require_choice(batch_norm, BatchNormKind, name="batch_norm")
        if depth not in paddle_keys.RESNET_DEPTHS:
            raise ValueError(f"PPTSMResNet expects a depth of {list(paddle_keys.RESNET_DEPTHS)}, got {depth}")
        if num_classes < 1:
            raise ValueError(f"PPTSMResNet expects num_classes above 0, got {num_classes}")
        if not width > 0:
            raise ValueError(f"PPTSMResNet expects width above 0, got {width}")
        self.depth, self.num_classes, self.num_frames = depth, num_classes, num_frames
        bottleneck = depth >= 50

        half, channels = make_divisible(32 * width), make_divisible(64 * width)
        self.stem = nn.Sequential(
            ConvBN(3, half, 3, stride=2, activation=nn.LeakyReLU(), batch_norm=batch_norm),
            ConvBN(half, half, 3, activation=nn.LeakyReLU(), batch_norm=batch_norm),
            ConvBN(half, channels, 3, activation=nn.LeakyReLU(), batch_norm=batch_norm),
        )
        self.stem_pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList()
        for index, blocks in enumerate(paddle_keys.RESNET_DEPTHS[depth]):
            inner = make_divisible(64 * 2**index * width)
            outer = inner * EXPANSION if bottleneck else inner
            self.stages.append(
                nn.Sequential(
                    *(
                        ResidualBlock(
                            outer if block else channels,
                            inner,
                            stride=2 if index and not block else 1,
                            bottleneck=bottleneck,
                            project=not block,
                            num_frames=num_frames,
                            batch_norm=batch_norm,
                        )
                        for block in range(blocks)
                    )
                )
            )
            channels = outer
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = make_dropout(dropout, dropout_mode)
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        if pretrained is not None:
            from lit_distill.models.weights import load_weights

            self.load_report = load_weights(self, pretrained, reset_head=reset_head)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips (B, T, 3, H, W).

        Raises:
            ValueError: another number of dimensions, frames or channels.
        """
        x = self.stem_pool(self.stem(frames_of(video, self.num_frames, name="PPTSMResNet")))
        for stage in self.stages:
            x = stage(x)
        x = self.dropout(self.pool(x)).flatten(1)
        logits: Tensor = self.fc(torch.unflatten(x, 0, (-1, self.num_frames)).mean(dim=1))
        return logits

    def parameter_groups(self) -> list[ParameterGroup]:
        """Parameters by how they learn as published: the classifier is the fast layer."""
        return published_groups(self, self.fc)

    def native_key(self, published: str) -> str | None:
        """Our name of a tensor of a published state dict, or None; see :mod:`lit_distill.models.paddle_keys`."""
        return paddle_keys.pptsm_resnet_to_native(published, depth=self.depth)

    def published_key(self, native: str) -> str | None:
        """The published name of one of our tensors, or None; the inverse of :meth:`native_key`."""
        return paddle_keys.pptsm_resnet_to_published(native, depth=self.depth)
