"""PP-TSMv2: PP-LCNetV2 with one temporal shift and one temporal attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill.models import paddle_keys
from lit_distill.models.layers import (
    BatchNormKind,
    ConvBN,
    DropoutMode,
    SqueezeExcite,
    init_convolutions,
    make_divisible,
    make_dropout,
    require_choice,
)
from lit_distill.models.temporal import TemporalAttention, TemporalShift, frames_of
from lit_distill.optim import ParameterGroup, published_groups

_Self = TypeVar("_Self", bound="PPTSMv2")

Init: TypeAlias = Literal["published", "scratch"]


class _Stage(NamedTuple):
    """What the blocks of a stage share; widths at scale 1."""

    width: int
    kernel_size: int
    parallel: bool = False
    gated: bool = False
    split: bool = False
    shortcut: bool = False


_STAGES = (
    _Stage(128, 3),
    _Stage(256, 3),
    _Stage(512, 5, parallel=True, gated=True, split=True),
    _Stage(1024, 5, parallel=True, shortcut=True),
)


class DepthwiseSeparable(nn.Module):
    """Depthwise then pointwise convolution; the depthwise one may be several in parallel, fused into one for inference.

    Parallel branches are ConvBN of kernel ``kernel_size``, two less, …, 1 (the last only at stride 1), summed before
    one ReLU. A shortcut joins equal shapes only, and is added after the pointwise ReLU.
    """

    dw_conv: nn.Module | None
    dw_conv_list: nn.ModuleList | None

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, stage: _Stage, batch_norm: BatchNormKind
    ) -> None:
        super().__init__()
        self.shortcut = stage.shortcut and stride == 1 and in_channels == out_channels

        def depthwise(kernel_size: int, activation: nn.Module | None) -> ConvBN:
            return ConvBN(
                in_channels,
                in_channels,
                kernel_size,
                stride=stride,
                groups=in_channels,
                activation=activation,
                batch_norm=batch_norm,
            )

        def pointwise(inputs: int, outputs: int) -> ConvBN:
            return ConvBN(inputs, outputs, 1, activation=nn.ReLU(), batch_norm=batch_norm)

        if stage.parallel:
            sizes = range(stage.kernel_size, 0 if stride == 1 else 1, -2)
            self.dw_conv_list = nn.ModuleList(depthwise(size, None) for size in sizes)
            self.dw_conv = None
            self.act: nn.Module = nn.ReLU()
        else:
            self.dw_conv_list = None
            self.dw_conv = depthwise(stage.kernel_size, nn.ReLU())
            self.act = nn.Identity()
        self.se = SqueezeExcite(in_channels) if stage.gated else nn.Identity()
        if stage.split:
            self.pw_conv_1 = pointwise(in_channels, out_channels // 2)
            self.pw_conv_2 = pointwise(out_channels // 2, out_channels)
        else:
            self.pw_conv = pointwise(in_channels, out_channels)
        self.split = stage.split

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        x = self.se(self.act(self._depthwise(input)))
        x = self.pw_conv_2(self.pw_conv_1(x)) if self.split else self.pw_conv(x)
        output: Tensor = x + input if self.shortcut else x
        return output

    def _depthwise(self, input: Tensor) -> Tensor:
        if self.dw_conv_list is None:
            assert self.dw_conv is not None
            output: Tensor = self.dw_conv(input)
            return output
        first, *others = self.dw_conv_list
        output = first(input)
        for branch in others:
            output = output + branch(input)
        return output

    @torch.no_grad()
    def fuse(self) -> None:
        """Replace the parallel branches by the one convolution they equal in evaluation; nothing without branches.

        Each branch is :math:`w γ / σ` and :math:`β - μ γ / σ` with :math:`σ = sqrt(var + eps)`; smaller kernels are
        padded with zeros, and all are summed, in float64.
        """
        if self.dw_conv_list is None:
            return
        widest = self.dw_conv_list[0]
        assert isinstance(widest, ConvBN)
        reference = widest.conv.weight

        def exact(tensor: Tensor | None) -> Tensor:
            assert tensor is not None
            return tensor.to("cpu", torch.float64)  # some devices have no double precision

        kernel = torch.zeros(reference.shape, dtype=torch.float64)
        bias = torch.zeros(len(reference), dtype=torch.float64)
        for branch in self.dw_conv_list:
            assert isinstance(branch, ConvBN)
            norm = branch.bn
            gain = exact(norm.weight) / (exact(norm.running_var) + norm.eps).sqrt()
            margin = (reference.shape[-1] - branch.conv.weight.shape[-1]) // 2
            kernel += F.pad(exact(branch.conv.weight) * gain.reshape(-1, 1, 1, 1), (margin,) * 4)
            bias += exact(norm.bias) - exact(norm.running_mean) * gain
        conv = widest.conv
        fused = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.stride[0],
            conv.padding[0],
            groups=conv.groups,
            device=reference.device,
            dtype=reference.dtype,
        )
        fused.weight.copy_(kernel)
        fused.bias.copy_(bias)  # type: ignore[union-attr]
        self.dw_conv = fused.requires_grad_(reference.requires_grad).train(self.training)
        self.dw_conv_list = None


class PPTSMv2(nn.Module):
    r"""PP-TSMv2, a light video network: PP-LCNetV2 over the frames, one temporal exchange, mean over time.

    Clips (B, T, 3, H, W), normalised RGB, to logits (B, num_classes); any H and W. Features inside: (B*T, C, H', W').
    Temporal attention and temporal shift (ratio 1/T) act once, before ``stages.2``. Matches PaddleVideo's ``PPTSM_v2``.

    What a reference may name: ``stem`` (stride 2, 64 channels at scale 1); ``stages.0`` to ``stages.3`` (strides 4, 8,
    16, 32; 128, 256, 512, 1024 channels), ``stages.<s>.<i>`` their blocks; ``temporal_attention``; ``last_conv``
    (before its ReLU); ``fc:input`` the embedding (B, class_expand).

    **Two conventions of the origin are options here.** ``dropout_mode`` defaults to the published one: its evaluation
    scales by 1 - p, so published weights only give published logits with it, and training differs from torch's by a
    constant that ``fc`` learns. ``batch_norm`` defaults to torch's: the running variance is n / (n - 1) times the
    published one, n = B*T*H*W being hundreds at least, which no accuracy shows, and in return SyncBatchNorm and the
    fastest kernels work. Published weights give the published logits either way.

    Args:
        num_classes: number of logits.
        num_frames: T, at least 3; or 1 for stills, without temporal shift and attention: their state dict is that of
            clips but for the attention.
        temporal_attention: weigh the frames before ``stages.2``; on in the published 16-frame distillation recipe.
        scale: width multiplier; channels are rounded to multiples of 8. Published: 1.
        dropout: probability before the mean over time, in [0, 1).
        dropout_mode: ``"downscale_in_infer"`` (published) zeroes in training and scales by 1 - p in evaluation;
            ``"upscale_in_train"`` is torch's.
        depths: blocks in each of the four stages.
        class_expand: channels of ``last_conv`` and of the embedding.
        batch_norm: ``"torch"``, or ``"published"`` for biased running variances.
        init: random weights, ``"published"`` (Kaiming normal convolutions), or ``"scratch"``: besides, BatchNorm shifts
            of 1 before the last stage, and orthogonal 1 x 1 convolutions. This plain network has no shortcuts there,
            and its gradient grows by about 1.2 a ReLU towards the stem; the shift keeps the ReLUs near their linear
            range and orthogonal weights keep directions apart, so that training gets under way without pre-trained
            weights.
        reparameterized: build the fused form, for the state dict of a network after :meth:`reparameterize`.
        pretrained: weights to start from, read by :func:`lit_distill.models.load_weights`; its report is kept in
            ``load_report``.
        reset_head: start with a fresh classifier where the one in ``pretrained`` has another class count, which is
            an error otherwise (but for the ImageNet classifier of a published backbone).

    Raises:
        ValueError: a hyperparameter is out of its range, or ``pretrained`` does not fit.

    Example:
        >>> network = PPTSMv2(10, 8, scale=0.25, class_expand=64)
        >>> network(torch.zeros(2, 8, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        num_frames: int,
        *,
        temporal_attention: bool = True,
        scale: float = 1.0,
        dropout: float = 0.2,
        dropout_mode: DropoutMode = "downscale_in_infer",
        depths: Sequence[int] = (2, 2, 6, 2),
        class_expand: int = 1280,
        batch_norm: BatchNormKind = "torch",
        init: Init = "published",
        reparameterized: bool = False,
        pretrained: str | Path | None = None,
        reset_head: bool = False,
    ) -> None:
        super().__init__()
        require_choice(batch_norm, BatchNormKind, name="batch_norm")
        require_choice(init, Init, name="init")
        if num_classes < 1 or class_expand < 1:
            raise ValueError(f"PPTSMv2 expects num_classes and class_expand above 0, got {num_classes}, {class_expand}")
        if not scale > 0:
            raise ValueError(f"PPTSMv2 expects scale above 0, got {scale}")
        if len(depths) != len(_STAGES) or min(depths) < 1:
            raise ValueError(
                f"PPTSMv2 expects the depths of {len(_STAGES)} stages, 1 or more each, got {tuple(depths)}"
            )
        self.num_classes, self.num_frames = num_classes, num_frames

        channels, width = make_divisible(32 * scale), make_divisible(64 * scale)
        self.stem = nn.Sequential(
            ConvBN(3, channels, 3, stride=2, activation=nn.ReLU(), batch_norm=batch_norm),
            DepthwiseSeparable(channels, width, stride=1, stage=_Stage(64, 3), batch_norm=batch_norm),
        )
        self.stages = nn.ModuleList()
        for index, (stage, depth) in enumerate(zip(_STAGES, depths, strict=True)):
            if index == 2:
                attention = temporal_attention and num_frames > 1
                self.temporal_attention = TemporalAttention(num_frames) if attention else nn.Identity()
                self.temporal_shift = TemporalShift(width, num_frames)
            channels, width = width, make_divisible(stage.width * scale)
            self.stages.append(
                nn.Sequential(
                    *(
                        DepthwiseSeparable(
                            width if block else channels,
                            width,
                            stride=1 if block else 2,
                            stage=stage,
                            batch_norm=batch_norm,
                        )
                        for block in range(depth)
                    )
                )
            )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last_conv = nn.Conv2d(width, class_expand, 1, bias=False)
        self.act = nn.ReLU()
        self.dropout = make_dropout(dropout, dropout_mode)
        self.fc = nn.Linear(class_expand, num_classes)
        self._init_weights(init)
        if reparameterized:
            self.reparameterize()
        if pretrained is not None:
            from lit_distill.models.weights import load_weights

            self.load_report = load_weights(self, pretrained, reset_head=reset_head)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips (B, T, 3, H, W).

        Raises:
            ValueError: another number of dimensions, frames or channels.
        """
        x = self.stem(frames_of(video, self.num_frames, name="PPTSMv2"))
        for index, stage in enumerate(self.stages):
            if index == 2:
                x = self.temporal_shift(self.temporal_attention(x))
            x = stage(x)
        x = self.dropout(self.act(self.last_conv(self.pool(x))))
        logits: Tensor = self.fc(torch.unflatten(x.flatten(1), 0, (-1, self.num_frames)).mean(dim=1))
        return logits

    def reparameterize(self: _Self) -> _Self:
        """Fuse all parallel branches in place, for inference; equal outputs in evaluation, fewer layers.

        The fused network has the published ``dw_conv.weight`` and ``dw_conv.bias`` in its state dict and no
        ``dw_conv_list``; ``PPTSMv2(..., reparameterized=True)`` builds one to load that into. Doing it twice does
        nothing more. An optimizer made before holds the old parameters: fuse when training is over.

        Returns:
            The network itself.
        """
        for module in self.modules():
            if isinstance(module, DepthwiseSeparable):
                module.fuse()
        return self

    def parameter_groups(self) -> list[ParameterGroup]:
        """Parameters by how they learn as published: the attention is the fast layer, ``fc`` an ordinary one."""
        attention = self.temporal_attention
        return published_groups(self, attention.fc if isinstance(attention, TemporalAttention) else None)

    def native_key(self, published: str) -> str | None:
        """Our name of a tensor of a published state dict, or None; see :mod:`lit_distill.models.paddle_keys`."""
        return paddle_keys.pptsm_v2_to_native(published)

    def published_key(self, native: str) -> str | None:
        """The published name of one of our tensors, or None; the inverse of :meth:`native_key`."""
        return paddle_keys.pptsm_v2_to_published(native)

    def _init_weights(self, init: Init) -> None:
        init_convolutions(self)
        if init == "scratch":
            for module in (*self.stem.modules(), *self.stages[:-1].modules()):
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    nn.init.ones_(module.bias)
            for module in self.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                    nn.init.orthogonal_(module.weight)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
