"""SmallResNet: a residual network for images of a few pixels, such as those of CIFAR, MNIST and data=digits_images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_distill.models.layers import ConvBN, init_convolutions
from lit_distill.models.pptsm_resnet import ResidualBlock


class SmallResNet(nn.Module):
    """A residual network whose first layers keep the size of small images, of one to many stages.

    Images (B, 3, H, W), normalised RGB, to logits (B, num_classes). Every second stage from the second on halves the
    size: of three stages on 8 x 8 pixels the maps are 8, 4 and 4 pixels wide. Activations are leaky ReLU of slope
    0.01.

    What a reference may name: ``stem``; ``stages.0``, ``stages.1``, …, ``stages.<s>.<i>`` their blocks, and
    ``stages.<s>.-1.act:input`` the last block before its last activation; ``fc:input`` the embedding, which has as many
    channels as the last stage.

    Args:
        num_classes: number of logits.
        widths: channels of each stage.
        blocks: residual blocks of two 3 x 3 convolutions in each stage.
        pretrained: weights to start from, read by :func:`lit_distill.models.load_weights`; its report is kept in
            ``load_report``.
        reset_head: start with a fresh classifier where the one in ``pretrained`` has another class count, which is an
            error otherwise.

    Raises:
        ValueError: a number is below 1, or ``pretrained`` does not fit.

    Example:
        >>> SmallResNet(10, widths=(8, 16))(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int],
        blocks: int = 1,
        pretrained: str | Path | None = None,
        reset_head: bool = False,
    ) -> None:
        super().__init__()
        if min(num_classes, blocks, len(widths), *widths) < 1:
            raise ValueError(
                "SmallResNet expects num_classes, blocks and each of widths, at least one, to be 1 or more, got "
                f"num_classes={num_classes}, blocks={blocks}, widths={list(widths)}"
            )
        self.num_classes = num_classes
        channels = widths[0]
        self.stem = ConvBN(3, channels, 3, activation=nn.LeakyReLU())
        self.stages = nn.ModuleList()
        for index, width in enumerate(widths):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if index % 2 and not block else 1
                stage.append(
                    ResidualBlock(
                        channels, width, stride=stride, bottleneck=False, project=stride > 1 or channels != width,
                        num_frames=1, batch_norm="torch",
                    )
                )  # fmt: skip
                channels = width
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions(self)
        if pretrained is not None:
            from lit_distill.models.weights import load_weights

            self.load_report = load_weights(self, pretrained, reset_head=reset_head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W)."""
        # CPU kernels are faster on this layout; on other devices it is the user's choice, as for PPTSMResNet
        x = images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits
