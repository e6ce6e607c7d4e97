"""Evaluation of several views of each video: their probabilities averaged, as one batch for the network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def average_views(model: Callable[[Tensor], Tensor], inputs: Tensor, *, max_clips: int | None = None) -> Tensor:
    r"""Log-probabilities of each video, its views' probabilities averaged: :math:`\log \tfrac1V \sum_v softmax(z_v)`.

    What comes out serves as logits: softmax gives the averaged probabilities back, and cross-entropy and top-k are
    those of the average. Every video's views are in one batch of one process, so nothing changes under DDP.

    Args:
        model: gives logits (N, C) for clips (N, T, 3, H, W).
        inputs: (B, V, T, 3, H, W); or (B, T, 3, H, W), for which the model's logits are returned as they are.
        max_clips: most clips that the network is given at once; none gives it all B * V.

    Returns:
        (B, C), float32 at least.

    Raises:
        ValueError: the inputs have neither 5 nor 6 dimensions.

    Example:
        >>> two_views = torch.zeros(1, 2, 4, 3, 8, 8)
        >>> average_views(lambda clips: torch.eye(2) * 100, two_views).exp()
        tensor([[0.5000, 0.5000]])
    """
    if inputs.ndim == 5:
        return model(inputs)
    if inputs.ndim != 6:
        raise ValueError(f"expected clips (B, T, 3, H, W) or views (B, V, T, 3, H, W), came {tuple(inputs.shape)}")
    batch, views = inputs.shape[:2]
    clips = inputs.flatten(0, 1)
    logits = torch.cat([model(part) for part in torch.split(clips, max_clips or len(clips))])
    log_probabilities = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    shaped = log_probabilities.view(batch, views, -1)
    return torch.logsumexp(shaped, dim=1) - torch.log(torch.tensor(float(views), device=shaped.device))
