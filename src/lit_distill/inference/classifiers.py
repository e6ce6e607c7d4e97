"""What predicts: anything that turns a batch of bytes into class probabilities, eager networks first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_distill._views import average_over_views
from lit_distill.data.preprocess import Preprocess

MAX_CLIPS = 32
"""Clips that a network is given at once, so that dense views (30 a video) stay within memory."""


class Classifier(Protocol):
    """Turns what :meth:`lit_distill.data.preprocess.Preprocess.read` gives, stacked, into probabilities."""

    def __call__(self, batch: Tensor) -> Tensor:
        """Class probabilities (B, C), float32, on the CPU.

        Args:
            batch: uint8 clips (B, T, 3, H, W), views of videos (B, V, T, 3, H, W) whose probabilities are averaged, or
                images (B, 3, H, W).
        """


def log_probabilities(
    network: Callable[[Tensor], Tensor], inputs: Tensor, *, views: bool = False, max_clips: int | None = MAX_CLIPS
) -> Tensor:
    r"""Log-probabilities of a batch: :math:`\log softmax(z)`, of V views :math:`\log \tfrac1V \sum_v softmax(z_v)`.

    Args:
        network: gives logits (N, C).
        inputs: normalised clips (B, T, 3, H, W), views (B, V, T, 3, H, W), or images (B, 3, H, W).
        views: whether they are views.
        max_clips: most clips of views that the network is given at once.

    Returns:
        (B, C), float32 at least.

    Example:
        >>> log_probabilities(nn.Flatten(), torch.zeros(1, 2, 1, 1)).exp()
        tensor([[0.5000, 0.5000]])
    """
    if views:
        return average_over_views(network, inputs, max_clips=max_clips)
    logits = network(inputs)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


class NetworkClassifier:
    """A network as it is: one of PyTorch, or anything else that gives logits for a batch of floats.

    Args:
        network: gives logits; a module is put into eval mode and moved to ``device``.
        preprocess: normalises its inputs.
        device: where it runs; anything but a module gets its inputs there.

    Example:
        >>> from lit_distill.data import VideoDataModule
        >>> data = VideoDataModule(
        ...     root=".", train_list="a", val_list="b", num_classes=2, num_frames=4, size=28, scale=32
        ... )
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 28 * 28, 2))
        >>> classifier = NetworkClassifier(network, Preprocess.of(data))
        >>> classifier(torch.zeros(5, 4, 3, 28, 28, dtype=torch.uint8)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], preprocess: Preprocess, *, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.network = network.eval().to(self.device) if isinstance(network, nn.Module) else network
        self.preprocess = preprocess

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Class probabilities, see :class:`Classifier`."""
        inputs = self.preprocess.normalize(batch.to(self.device, non_blocking=True))
        return log_probabilities(self.network, inputs, views=self.preprocess.views == "dense").exp().float().cpu()
