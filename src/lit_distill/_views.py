"""Views of a batch: what one model sees of clips decoded for several, and several clips of each video averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InputView:
    r"""Every so-manieth frame of clips, and those resized: a batch as a model of smaller inputs takes it.

    Of T frames it keeps t, the middle one of each of t equal parts of the clip, :math:`\lfloor (j + 1/2) T / t \rfloor`
    for j = 0..t-1, so that the frame j of a model that sees t of them stands for the same time as the frames
    :math:`j T/t` to :math:`(j + 1) T/t - 1` of a model that sees all. Frames are resized bilinearly and antialiased,
    after normalisation, crop, flip and mixing: all models see the same augmented clip.

    Args:
        num_frames: t, at most T; None for all.
        size: side of the frames in pixels, at most theirs; None for theirs.

    Raises:
        ValueError: a number below 1; when called, more frames or pixels than the clips have, or no clips.

    Example:
        >>> InputView(num_frames=2, size=4)(torch.zeros(3, 8, 3, 16, 16)).shape
        torch.Size([3, 2, 3, 4, 4])
        >>> InputView(num_frames=4).frames(16)
        [2, 6, 10, 14]
    """

    num_frames: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"inputs: {name} is a whole number of at least 1, or null for the data's, got {value!r}"
                )

    @classmethod
    def of(cls, given: InputView | Mapping[str, Any]) -> InputView:
        """One of ``num_frames`` and ``size`` as a mapping, or as it is."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping) or set(given) - {"num_frames", "size"}:
            raise ValueError(f"inputs of a model are num_frames and size, got {given!r}")
        return cls(**given)

    def frames(self, length: int) -> list[int]:
        """Which of a clip's ``length`` frames are kept.

        Raises:
            ValueError: there are fewer than ``num_frames``.
        """
        kept = length if self.num_frames is None else self.num_frames
        if kept > length:
            raise ValueError(
                f"inputs: num_frames={kept} of clips of {length} frames: data.num_frames is the most that a model needs"
            )
        return [(2 * j + 1) * length // (2 * kept) for j in range(kept)]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a view of clips (..., T, C, H, W), or of images (..., C, H, W) without ``num_frames``."""
        *front, channels, height, width = shape
        if self.num_frames is not None:
            front[-1] = len(self.frames(front[-1]))
        side = (height, width) if self.size is None else (self.size, self.size)
        return (*front, channels, *side)

    def __call__(self, clips: Tensor) -> Tensor:
        """The view of clips (..., T, C, H, W), floating point; of images (..., C, H, W) without ``num_frames``.

        Raises:
            ValueError: they have another shape, fewer frames or fewer pixels.
        """
        least = 4 if self.num_frames is None else 5
        if not isinstance(clips, Tensor) or clips.ndim < least or not clips.is_floating_point():
            got = f"{clips.dtype} {tuple(clips.shape)}" if isinstance(clips, Tensor) else type(clips).__name__
            raise ValueError(f"inputs: expected normalised clips (B, T, C, H, W) or images (B, C, H, W), got {got}")
        if self.num_frames is not None and self.num_frames != clips.shape[-4]:
            clips = clips[..., self.frames(clips.shape[-4]), :, :, :]
        if self.size is None or clips.shape[-2:] == (self.size, self.size):
            return clips
        if self.size > min(clips.shape[-2:]):
            raise ValueError(
                f"inputs: size={self.size} of frames {tuple(clips.shape[-2:])}: "
                "data.size is the most that a model needs"
            )
        images = clips.flatten(0, -4).to(torch.promote_types(clips.dtype, torch.float32))
        smaller = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return smaller.to(clips.dtype).reshape(*clips.shape[:-2], self.size, self.size)


class ViewsBatch(NamedTuple):
    """A batch whose inputs are several views of each sample: evaluation averages their class probabilities.

    Data say so by this type: a data module returns it, or a loader collates it. Inputs of any other batch, whatever
    their shape, reach the models as they are.

    Attributes:
        inputs: (B, V, ...), V views of each of B samples.
        target: (B,), or (B, C) class probabilities.
        indices: (B,), positions of the samples in their data set; None where they are not known.

    Example:
        >>> inputs, target, indices = ViewsBatch(torch.zeros(2, 30, 8, 3, 16, 16), torch.tensor([0, 1]))
    """

    inputs: Tensor
    target: Tensor
    indices: Tensor | None = None


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
        raise ValueError(f"expected clips (B, T, 3, H, W) or views (B, V, T, 3, H, W), got {tuple(inputs.shape)}")
    return average_over_views(model, inputs, max_clips=max_clips)


def average_over_views(model: Callable[[Tensor], Tensor], inputs: Tensor, *, max_clips: int | None = None) -> Tensor:
    """What :func:`average_views` gives, for views (B, V, ...) of any shape, as in a :class:`ViewsBatch`."""
    batch, views = inputs.shape[:2]
    clips = inputs.flatten(0, 1)
    logits = torch.cat([model(part) for part in torch.split(clips, max_clips or len(clips))])
    log_probabilities = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    shaped = log_probabilities.view(batch, views, -1)
    return torch.logsumexp(shaped, dim=1) - torch.log(torch.tensor(float(views), device=shaped.device))
