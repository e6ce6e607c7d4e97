"""Views of a batch: what one model sees of clips decoded for several, and several clips of each video averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InputView:
    r"""Every n-th frame of clips, and those resized: a batch as a model of smaller inputs takes it.

    Of T frames it keeps t, the middle one of each of t equal parts of the clip, :math:`\lfloor (j + 1/2) T / t \rfloor`
    for j = 0..t-1, so that the frame j of a model that sees t of them stands for the same time as the frames
    :math:`j T/t` to :math:`(j + 1) T/t - 1` of a model that sees all. Frames are resized bilinearly and antialiased,
    after normalisation, crop, flip and mixing: all models see the same augmented clip. Pixels x that the data
    normalised by :math:`\mu, \sigma` become those of the model's own :math:`\mu', \sigma'`, a channel at a time:
    :math:`(x \sigma + \mu - \mu') / \sigma'`.

    Args:
        num_frames: t, at most T; None for all.
        size: side of the frames in pixels, at most theirs; None for theirs.
        mean: of each channel, as the model was trained with; with ``std``. None for the data's.
        std: of each channel, above 0.
        data_mean: of the batches; None for that of the data module. 0 and 1 for pixels from 0 to 1.
        data_std: of the batches.

    Raises:
        ValueError: a number below 1, or a mean without a standard deviation; when called, more frames or pixels than
            the clips have, no clips, or a normalisation of the batches that is not known.

    Example:
        >>> InputView(num_frames=2, size=4)(torch.zeros(3, 8, 3, 16, 16)).shape
        torch.Size([3, 2, 3, 4, 4])
        >>> InputView(num_frames=4).frames(16)
        [2, 6, 10, 14]
    """

    num_frames: int | None = None
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    data_mean: Sequence[float] | None = None
    data_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for start in ("", "data_"):
            mean, std = getattr(self, f"{start}mean"), getattr(self, f"{start}std")
            if (mean is None) != (std is None) or (std is not None and not (len(mean) == len(std) and min(std) > 0)):
                raise ValueError(
                    f"inputs: {start}mean and {start}std go together, a number a channel, std above 0, got {mean!r} "
                    f"and {std!r}"
                )
        for name in ("num_frames", "size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"inputs: {name} is a whole number of at least 1, or null for the data's, got {value!r}"
                )

    @classmethod
    def of(cls, given: InputView | Mapping[str, Any]) -> InputView:
        """One of its arguments as a mapping, or as it is."""
        if isinstance(given, cls):
            return given
        names = [each.name for each in fields(cls)]
        if not isinstance(given, Mapping) or set(given) - set(names):
            raise ValueError(f"inputs of a model are {', '.join(names)}, got {given!r}")
        return cls(**given)

    def of_data(self, mean: Sequence[float], std: Sequence[float]) -> InputView:
        """The same for batches that are normalised so, unless it says how they are."""
        if self.mean is None or self.data_mean is not None:
            return self
        return replace(self, data_mean=tuple(mean), data_std=tuple(std))

    @property
    def arguments(self) -> dict[str, Any]:
        """What :meth:`of` takes, for a card: number of frames and size, and a normalisation where there is one."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in every.items() if value is not None or name in ("num_frames", "size")}

    def of_batch(self, inputs: Any) -> Any:
        """The view of clips or images, alone or the only ones of a mapping.

        Raises:
            ValueError: as for a call, or a mapping has none, or several.
        """
        if not isinstance(inputs, Mapping):
            return self(inputs)
        least = 4 if self.num_frames is None else 5
        pictures = [
            key for key, x in inputs.items() if isinstance(x, Tensor) and x.ndim >= least and x.is_floating_point()
        ]
        if len(pictures) != 1:
            raise ValueError(f"inputs: expected one entry of clips or images, got {pictures} of {list(inputs)}")
        return {**inputs, pictures[0]: self(inputs[pictures[0]])}

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
        clips = clips if self.mean is None else self._normalised(clips)
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

    def _normalised(self, clips: Tensor) -> Tensor:
        assert self.mean is not None
        assert self.std is not None
        if self.data_mean is None or self.data_std is None:
            raise ValueError(
                "inputs: how the batches are normalised is not known, as no data module has mean and std: say it, by "
                "data_mean and data_std (0 and 1 a channel for pixels from 0 to 1)"
            )
        channels = clips.shape[-3]
        if not len(self.mean) == len(self.data_mean) == channels:
            raise ValueError(
                f"inputs: mean has {len(self.mean)} channels, the data's {len(self.data_mean)}, the clips {channels}"
            )
        ours, theirs = (self.data_mean, self.data_std), (self.mean, self.std)
        factors = [s / t for s, t in zip(ours[1], theirs[1], strict=True)]
        offsets = [(m - n) / t for m, n, t in zip(ours[0], *theirs, strict=True)]
        factor, offset = torch.tensor([factors, offsets], device=clips.device)[..., None, None]
        normalised: Tensor = clips * factor + offset
        return normalised.to(clips.dtype)


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
