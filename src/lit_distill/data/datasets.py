"""The one data set of videos: list entries in, clips of bytes out, each a function of (seed, epoch, index)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lit_distill.data.decode import Frames, ShortVideoError, count_frames, read_frames, read_images
from lit_distill.data.lists import Format
from lit_distill.data.samplers import SampleKey, seeded
from lit_distill.data.samples import Sample, SampleTable
from lit_distill.data.sampling import DENSE_CLIPS, FrameSampling, wrap
from lit_distill.data.transforms import ClipTransform

Views: TypeAlias = Literal["train", "center", "dense"]
Item: TypeAlias = tuple[Tensor, int, int]

# Headers may promise a frame or two that packed B-frames or an edit list then swallow; more is a truncated file.
_HEADER_SLACK = 2


class VideoDataset(Dataset[Item]):
    """Clips of listed videos or folders of frames.

    An item is (clip, label, index): the clip (T, 3, H, W), or (V, T, 3, H, W) of V views, in uint8; the class index;
    the position in ``samples``. What is random comes from a generator seeded by (seed, epoch, index) and from nothing
    else: the same key gives the same clip in any process, after any history.

    Args:
        samples: what to read, see :func:`lit_distill.data.read_list`.
        sampling: which frames make a clip; ``"dense"`` views use its ``num_frames`` with dense sampling.
        transform: their geometry.
        views: ``"train"``: one random clip; ``"center"``: one clip by the rules for evaluation, cropped in the middle;
            ``"dense"``: 10 clips x 3 crops, clip by clip.
        format: ``"video"`` files or folders of ``"frames"``.
        suffix: pattern of the frames' file names, numbered from 1.
        seed: of all random choices.

    Raises:
        ValueError: ``views`` is none of the three, or there are no samples.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.encode import write_video
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", np.zeros((9, 48, 64, 3), np.uint8))
        ...     dataset = VideoDataset(
        ...         [Sample(f"{folder}/a.mp4", 2)],
        ...         sampling=FrameSampling(num_frames=4),
        ...         transform=ClipTransform(size=28, scale=32),
        ...         views="center",
        ...     )
        ...     clip, label, index = dataset[0]
        >>> clip.shape, clip.dtype, label, index
        (torch.Size([4, 3, 28, 28]), torch.uint8, 2, 0)
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        sampling: FrameSampling,
        transform: ClipTransform,
        views: Views = "train",
        format: Format = "video",
        suffix: str = "img_{:05}.jpg",
        seed: int = 0,
    ) -> None:
        if views not in ("train", "center", "dense"):
            raise ValueError(f"views is 'train', 'center' or 'dense', came {views!r}")
        if not samples:
            raise ValueError("a VideoDataset needs at least one sample")
        self.samples = SampleTable(samples)
        self.sampling = FrameSampling(num_frames=sampling.num_frames, mode="dense") if views == "dense" else sampling
        self.transform = transform
        self.views = views
        self.format = format
        self.suffix = suffix
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey | int) -> Item:
        """The item of a key, or of an index in epoch 0.

        Raises:
            VideoError: the video can't be read; it is never replaced by another.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.samples[index]
        if sample.frames is not None:
            clips = self._read(sample, sample.frames, epoch, index)
        else:
            count = count_frames(sample.path)
            try:
                clips = self._read(sample, count, epoch, index)
            except ShortVideoError as error:
                if not 0 < count - _HEADER_SLACK <= error.frames:
                    raise
                clips = self._read(sample, error.frames, epoch, index)
        return self._views(clips, epoch, index), sample.label, index

    def _read(self, sample: Sample, length: int, epoch: int, index: int) -> list[Frames]:
        """The frames of each clip, every frame decoded once."""
        if self.views == "train":
            plan = [self.sampling.training(length, seeded("frames", self.seed, epoch, index), self.format)]
        else:
            plan = self.sampling.evaluation(length, self.format, clips=DENSE_CLIPS if self.views == "dense" else 1)
        plan = [wrap(numbers, length, self.format) for numbers in plan]
        wanted = sorted({number for numbers in plan for number in numbers})
        if self.format == "frames":
            frames = read_images(sample.path, self.suffix, wanted)
        else:
            frames = read_frames(sample.path, wanted)
        place = {number: position for position, number in enumerate(wanted)}
        return [frames[[place[number] for number in numbers]] for numbers in plan]

    def _views(self, clips: Sequence[Frames], epoch: int, index: int) -> Tensor:
        if self.views == "train":
            return _channels_first(self.transform.training(clips[0], seeded("view", self.seed, epoch, index)))
        if self.views == "center":
            return _channels_first(self.transform.center(clips[0]))
        return torch.stack([_channels_first(view) for clip in clips for view in self.transform.three_crops(clip)])


def collate(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack items into (clips (B, ...) uint8, labels (B,) int64, indices (B,) int64).

    In a worker process the clips are stacked right into shared memory, which is handed over without another copy.
    """
    clips, labels, indices = zip(*items, strict=True)
    batch = None
    if get_worker_info() is not None and not clips[0].is_cuda:
        shape = (len(clips), *clips[0].shape)
        storage = clips[0].untyped_storage()._new_shared(math.prod(shape) * clips[0].element_size())
        batch = torch.empty(0, dtype=clips[0].dtype).set_(storage).view(shape)
    return torch.stack(clips, out=batch), torch.tensor(labels), torch.tensor(indices)


def _channels_first(frames: Frames) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
