"""ImageGenerator: images from noise, to distil without data."""

from __future__ import annotations

from torch import Tensor, nn


class ImageGenerator(nn.Module):
    """Noise (B, Z) to images (B, C, S, S), whose channels have mean 0 and deviation 1 over a batch in training.

    A linear layer makes maps of a quarter of the side, which two blocks of upsampling, 3x3 convolution, BatchNorm and
    LeakyReLU enlarge; a last convolution, tanh and a BatchNorm without scale and shift give the image. So the images
    are as normalized as those that a network was trained on, whatever their range.

    Paper: the generator of Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, and of Micaelli and
    Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, with their width of 128.

    Args:
        noise: Z.
        channels: C.
        side: S, a multiple of 4.
        width: channels of the first maps; the last have half of them.

    Raises:
        ValueError: a number is below 1, the side is no multiple of 4, or the width is odd.

    Example:
        >>> import torch
        >>> ImageGenerator(noise=16, side=8, width=8)(torch.randn(4, 16)).shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(self, *, noise: int = 100, channels: int = 3, side: int = 32, width: int = 128) -> None:
        super().__init__()
        if min(noise, channels, side, width) < 1 or side % 4 or width % 2:
            raise ValueError(
                "ImageGenerator expects numbers of at least 1, a side that is a multiple of 4 and an even width, "
                f"got noise={noise}, channels={channels}, side={side}, width={width}"
            )
        half = width // 2
        self.maps = nn.Sequential(
            nn.Linear(noise, width * (side // 4) ** 2),
            nn.Unflatten(1, (width, side // 4, side // 4)),
            nn.BatchNorm2d(width),
        )
        self.blocks = nn.Sequential(_enlarging(width, width), _enlarging(width, half))
        self.image = nn.Sequential(
            nn.Conv2d(half, channels, 3, padding=1), nn.Tanh(), nn.BatchNorm2d(channels, affine=False)
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Images of noise (B, Z)."""
        images: Tensor = self.image(self.blocks(self.maps(noise)))
        return images


def _enlarging(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(before, after, 3, padding=1),
        nn.BatchNorm2d(after),
        nn.LeakyReLU(0.2, inplace=True),
    )
