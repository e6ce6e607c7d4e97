"""The one data set of videos: list entries in, clips of bytes out, each a function of (seed, epoch, index)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lit_distill.data.augment import augmented
from lit_distill.data.cache import ClipCache, content_key
from lit_distill.data.catalogue.quarantine import BadVideo, Batch, OnBad, PartialBatch, reason_for
from lit_distill.data.catalogue.samples import Sample, SampleTable
from lit_distill.data.decoding.frames import Frames
from lit_distill.data.decoding.layout import VideoError
from lit_distill.data.samplers import SampleKey, seeded
from lit_distill.data.sampling import DENSE_CLIPS, FrameSampling, wrap
from lit_distill.data.sources import Source, Video, VideoFiles
from lit_distill.data.sources.videos import DecodedVideo
from lit_distill.data.transforms import ClipTransform

Views: TypeAlias = Literal["train", "center", "dense"]
Item: TypeAlias = tuple[Tensor, int, int]
Resize: TypeAlias = Literal["decoder", "exact"]

_VIDEO_FILES = VideoFiles()


class VideoDataset(Dataset[Item | BadVideo]):
    """Clips of the videos of a source.

    An item is (clip, label, index): the clip (T, 3, H, W), or (V, T, 3, H, W) of V views, in uint8; the class index;
    the position in ``samples``. What is random comes from a generator seeded by (seed, epoch, index) and from nothing
    else: the same key gives the same clip in any process, after any history.

    Args:
        samples: what to read, see :func:`lit_distill.data.read_list`.
        source: what they are read from; video files by default.
        sampling: which frames make a clip; ``"dense"`` views use its ``num_frames`` with dense sampling.
        transform: their geometry.
        augment: what is done to ``"train"`` views after it, bytes (T, 3, H, W) to the same, drawing from torch's
            generator: such as :func:`lit_distill.data.augment.augmentation` gives; none for nothing.
        views: ``"train"``: one random clip; ``"center"``: one clip by the rules for evaluation, cropped in the middle;
            ``"dense"``: 10 clips x 3 crops, clip by clip.
        seed: of all random choices.
        resize: ``"decoder"``: frames of videos are scaled in the pass that converts their colours, and for training
            cropped and mirrored too; ``"exact"``: by :func:`lit_distill.data.transforms.resize` on whole frames, as
            published, at some cost.
        on_bad: ``"raise"``, or ``"quarantine"``: a
            :class:`lit_distill.data.catalogue.quarantine.BadVideo` takes the place of an
            item that can't be read.
        cache: where decoded frames are kept, scaled. Parts of them that a multi-scale crop resizes are resized as with
            ``"exact"``; otherwise it changes no clip. None decodes them each time.

    Raises:
        ValueError: an argument is none of those named, or there are no samples.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.decoding.encode import write_video
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
        source: Source = _VIDEO_FILES,
        sampling: FrameSampling,
        transform: ClipTransform,
        augment: Callable[[Tensor], Tensor] | None = None,
        views: Views = "train",
        seed: int = 0,
        resize: Resize = "decoder",
        on_bad: OnBad = "raise",
        cache: ClipCache | None = None,
    ) -> None:
        if views not in ("train", "center", "dense"):
            raise ValueError(f"views is 'train', 'center' or 'dense', got {views!r}")
        require_known(resize, on_bad)
        if not samples:
            raise ValueError("a VideoDataset needs at least one sample")
        self.samples, self.source = SampleTable(samples), source
        self.sampling = FrameSampling(num_frames=sampling.num_frames, mode="dense") if views == "dense" else sampling
        self.transform, self.augment = transform, augment
        self.views = views
        self.seed, self.resize, self.on_bad, self.cache = seed, resize, on_bad, cache

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey | int) -> Item | BadVideo:
        """The item of a key, or of an index in epoch 0.

        Raises:
            VideoError: the video can't be read and ``on_bad`` is ``"raise"``; it is never replaced by another.
        """
        return self._item(key, None)

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Item | BadVideo]:
        """The items of a batch; a worker process decodes them right into the memory that it hands over."""
        if type(self).__getitem__ is not VideoDataset.__getitem__:
            return [self[key] for key in keys]  # a subclass has its own way
        room = None
        if self.in_one_pass and self.augment is None and get_worker_info() is not None:
            frames, side = self.sampling.num_frames * self.sampling.segment_length, self.transform.size
            room = _shared((len(keys), frames, side, side, 3))
        return [self._item(key, None if room is None else room[place]) for place, key in enumerate(keys)]

    def frame_size(self, index: int) -> tuple[int, int]:
        """Width and height of a video's frames as they are stored, before any scaling.

        Raises:
            VideoError: the video can't be read.
        """
        video = self.source.open(self.samples[index])
        if video.size is not None:
            return video.size
        height, width = video.read([self.source.first]).shape[1:3]
        return width, height

    def _item(self, key: SampleKey | int, room: Tensor | None) -> Item | BadVideo:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.samples[index]
        try:
            clip = self._clip(sample, epoch, index, room)
        except VideoError as error:
            if self.on_bad == "raise":
                raise
            return BadVideo(index, sample.name, reason_for(sample.name, error.path, error.reason))
        return clip, sample.label, index

    def _clip(self, sample: Sample, epoch: int, index: int, room: Tensor | None) -> Tensor:
        """The view or views of a sample, every frame decoded once."""
        video, first = self.source.open(sample), self.source.first
        if self.views == "train":
            plan = [self.sampling.training(video.length, seeded("frames", self.seed, epoch, index), first)]
        else:
            clips = DENSE_CLIPS if self.views == "dense" else 1
            plan = self.sampling.evaluation(video.length, first, clips=clips)
        plan = [wrap(numbers, video.length, first) for numbers in plan]
        if self.in_one_pass and isinstance(video, DecodedVideo):
            if room is None or len(room) != len(plan[0]):
                return self._augmented(self._view(video, plan[0], epoch, index), epoch, index)
            self._view(video, plan[0], epoch, index, out=room.numpy())
            return room.permute(0, 3, 1, 2)
        wanted = sorted({number for numbers in plan for number in numbers})
        frames = self._frames(sample, video, wanted)
        if plan == [wanted]:
            return self._views([frames], epoch, index)
        place = {number: position for position, number in enumerate(wanted)}
        return self._views([frames[[place[number] for number in numbers]] for numbers in plan], epoch, index)

    @property
    def in_one_pass(self) -> bool:
        """Whether training views of videos are cropped, resized and mirrored while their colours are converted.

        Not with ``resize="exact"``; and not with a cache, which keeps whole frames: a clip is to be the same whether
        its video found room there or not.
        """
        decoded = self.views == "train" and isinstance(self.source, VideoFiles)
        return decoded and self.resize == "decoder" and self.cache is None

    def _view(
        self, video: DecodedVideo, numbers: Sequence[int], epoch: int, index: int, out: Frames | None = None
    ) -> Frames:
        """A training view, of which the reader converts what is seen."""
        view = self.transform.view(*self.transform.scaled_size(*video.size), seeded("view", self.seed, epoch, index))
        side = self.transform.size
        return video.read(numbers, size=(side, side), crop=view.crop_of(*video.size), flip=view.flip, out=out)

    def _frames(self, sample: Sample, video: Video, wanted: Sequence[int]) -> Frames:
        """The wanted frames: decoded, or the same out of the cache, where they are kept scaled."""
        if self.cache is None:
            return self._decode(sample, video, wanted)
        video.refuse(wanted)

        def decode(numbers: Sequence[int]) -> Frames:
            return self.transform.scaled(self._decode(sample, video, numbers))

        def shape() -> tuple[int, int]:
            if video.size is None:
                height, width = decode(wanted[:1]).shape[1:3]
                return height, width
            return self.transform.scaled_size(*video.size)[::-1]

        whole = None
        if self.views == "train" and self.sampling.mode != "linspace":  # other frames in every epoch
            whole = range(self.source.first, self.source.first + video.length)
        scaling = self.transform.scale, self.transform.aspect, self.resize
        key = content_key(*self.source.identity(sample, video.length), *scaling, self.source.limits)
        return self.cache.read(key, wanted, decode, shape=shape, video=whole)

    def _decode(self, sample: Sample, video: Video, numbers: Sequence[int]) -> Frames:
        if isinstance(video, DecodedVideo):
            scaled = self.transform.scaled_size(*video.size)
            return video.read(numbers, size=None if self.resize == "exact" or scaled == video.size else scaled[::-1])
        frames = video.read(numbers)
        if frames.dtype != np.uint8 or frames.ndim != 4 or (len(frames), frames.shape[-1]) != (len(numbers), 3):
            raise ValueError(
                f"{type(self.source).__name__} gave {frames.dtype} {frames.shape} for {len(numbers)} frames of "
                f"{sample.name}: expected uint8 ({len(numbers)}, H, W, 3), RGB"
            )
        return frames

    def _views(self, clips: Sequence[Frames], epoch: int, index: int) -> Tensor:
        if self.views == "train":
            view = self.transform.training(clips[0], seeded("view", self.seed, epoch, index))
            return self._augmented(view, epoch, index)
        if self.views == "center":
            return _channels_first(self.transform.center(clips[0]))
        return torch.stack([_channels_first(view) for clip in clips for view in self.transform.three_crops(clip)])

    def _augmented(self, view: Frames, epoch: int, index: int) -> Tensor:
        return augmented(_channels_first(view), self.augment, "augment", self.seed, epoch, index)


def require_known(resize: str, on_bad: str) -> None:
    """Raise ValueError for an unknown resize or policy."""
    if resize not in ("decoder", "exact"):
        raise ValueError(f"data.resize is 'decoder' or 'exact', got {resize!r}")
    if on_bad not in ("raise", "quarantine"):
        raise ValueError(f"data.on_bad is 'raise' or 'quarantine', got {on_bad!r}")


def collate(items: Sequence[Item | BadVideo]) -> Batch | PartialBatch:
    """Stack items into (clips (B, ...) uint8, labels (B,) int64, indices (B,) int64).

    In a worker process the clips are stacked right into shared memory, which is handed over without another copy.
    Where videos are among the items that could not be read, the others are stacked and the bad ones go beside them.
    """
    bad = [item for item in items if isinstance(item, BadVideo)]
    if bad:
        good = [item for item in items if not isinstance(item, BadVideo)]
        return PartialBatch(_stacked(good) if good else None, bad)
    return _stacked(items)  # type: ignore[arg-type]


def _stacked(items: Sequence[Item]) -> Batch:
    clips, labels, indices = zip(*items, strict=True)
    packed = [clip.movedim(-3, -1) for clip in clips]
    if not all(clip.is_contiguous() for clip in packed):
        return _stack(clips), torch.tensor(labels), torch.tensor(indices)
    # as they were decoded: stacked so, and only seen otherwise
    batch = _stack(packed) if (joined := _joined(packed)) is None else joined
    return batch.movedim(-1, -3), torch.tensor(labels), torch.tensor(indices)


def _stack(clips: Sequence[Tensor]) -> Tensor:
    shared = get_worker_info() is not None and not clips[0].is_cuda
    batch = _shared((len(clips), *clips[0].shape)) if shared else None
    return torch.stack(list(clips), out=batch)


def _joined(clips: Sequence[Tensor]) -> Tensor | None:
    """The batch that the clips are the rows of already; None where they are not."""
    first = clips[0]
    ends = [clip.data_ptr() for clip in clips]
    rows = range(first.data_ptr(), first.data_ptr() + len(clips) * first.numel(), first.numel() or 1)
    owner = first.untyped_storage()
    if ends != list(rows) or len(owner) != len(clips) * first.numel() or not owner.is_shared():
        return None
    return torch.empty(0, dtype=torch.uint8).set_(owner).view(len(clips), *first.shape)


def _shared(shape: Sequence[int]) -> Tensor:
    """Bytes in memory that is handed to another process without a copy."""
    make: Any = torch.UntypedStorage._new_shared  # it has no types
    return torch.empty(0, dtype=torch.uint8).set_(make(math.prod(shape))).view(*shape)


def _channels_first(frames: Frames) -> Tensor:
    """(T, H, W, 3) seen as (T, 3, H, W): the bytes stay as they were decoded until they are on the device."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
