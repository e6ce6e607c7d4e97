"""The one data set of videos: list entries in, clips of bytes out, each a function of (seed, epoch, index)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lit_distill.data.augment import augmented
from lit_distill.data.cache import ClipCache, content_key
from lit_distill.data.catalogue.archives import Archives, Stamp
from lit_distill.data.catalogue.lists import Format, is_inside
from lit_distill.data.catalogue.quarantine import BadVideo, Batch, OnBad, PartialBatch, reason_for
from lit_distill.data.catalogue.samples import Sample, SampleTable
from lit_distill.data.catalogue.video_index import VideoIndex, stamp_of
from lit_distill.data.decoding.decode import Frames, read_frames, read_images, scan
from lit_distill.data.decoding.layout import Limits, VideoError, VideoLayout, VideoSource
from lit_distill.data.samplers import SampleKey, seeded
from lit_distill.data.sampling import DENSE_CLIPS, FrameSampling, wrap
from lit_distill.data.transforms import ClipTransform

Views: TypeAlias = Literal["train", "center", "dense"]
Item: TypeAlias = tuple[Tensor, int, int]
Resize: TypeAlias = Literal["decoder", "exact"]

_LIMITS = Limits()


class VideoDataset(Dataset[Item | BadVideo]):
    """Clips of listed videos or folders of frames.

    An item is (clip, label, index): the clip (T, 3, H, W), or (V, T, 3, H, W) of V views, in uint8; the class index;
    the position in ``samples``. What is random comes from a generator seeded by (seed, epoch, index) and from nothing
    else: the same key gives the same clip in any process, after any history.

    Args:
        samples: what to read, see :func:`lit_distill.data.read_list`.
        sampling: which frames make a clip; ``"dense"`` views use its ``num_frames`` with dense sampling.
        transform: their geometry.
        augment: what is done to ``"train"`` views after it, bytes (T, 3, H, W) to the same, drawing from torch's
            generator: such as :func:`lit_distill.data.augment.augmentation` gives; none for nothing.
        views: ``"train"``: one random clip; ``"center"``: one clip by the rules for evaluation, cropped in the middle;
            ``"dense"``: 10 clips x 3 crops, clip by clip.
        format: ``"video"`` files or folders of ``"frames"``.
        suffix: pattern of the frames' file names, numbered from 1.
        seed: of all random choices.
        resize: ``"decoder"``: frames of videos are scaled in the pass that converts their colours, and for training
            cropped and mirrored too; ``"exact"``: by :func:`lit_distill.data.transforms.resize` on whole frames, as
            published, at some cost.
        limits: of what may be spent on a video.
        index: where the videos' layouts are kept; without one each read scans its video anew, to the same end.
        on_bad: ``"raise"``, or ``"quarantine"``: a
            :class:`lit_distill.data.catalogue.quarantine.BadVideo` takes the place of an
            item that can't be read.
        inside: folders that links among the images of a folder must not lead out of; none to follow them anywhere.
        cache: where decoded frames are kept, scaled. Parts of them that a multi-scale crop resizes are resized as with
            ``"exact"``; otherwise it changes no clip. None decodes them each time.
        archives: what the samples that are members of archives are read through.
        stamps: size and time of those archives, by their path.

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
        sampling: FrameSampling,
        transform: ClipTransform,
        augment: Callable[[Tensor], Tensor] | None = None,
        views: Views = "train",
        format: Format = "video",
        suffix: str = "img_{:05}.jpg",
        seed: int = 0,
        resize: Resize = "decoder",
        limits: Limits = _LIMITS,
        index: VideoIndex | None = None,
        on_bad: OnBad = "raise",
        inside: Sequence[str | os.PathLike[str]] = (),
        cache: ClipCache | None = None,
        archives: Archives | None = None,
        stamps: Mapping[str, Stamp] | None = None,
    ) -> None:
        if views not in ("train", "center", "dense"):
            raise ValueError(f"views is 'train', 'center' or 'dense', came {views!r}")
        require_known(resize, on_bad)
        if not samples:
            raise ValueError("a VideoDataset needs at least one sample")
        self.samples = SampleTable(samples)
        self.sampling = FrameSampling(num_frames=sampling.num_frames, mode="dense") if views == "dense" else sampling
        self.transform, self.augment = transform, augment
        self.views = views
        self.format = format
        self.suffix = suffix
        self.seed = seed
        self.resize, self.limits, self.index, self.on_bad = resize, limits, index, on_bad
        self.cache, self.archives, self.stamps = cache, archives, dict(stamps or {})
        self._inside = [os.path.realpath(folder) for folder in inside]

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
        source = self._source(sample)  # one for headers and frames: a member of an archive is fetched once
        layout = self._layout(sample, source) if sample.frames is None else None
        length = sample.frames if layout is None else layout.info.frames
        assert length is not None
        if self.views == "train":
            plan = [self.sampling.training(length, seeded("frames", self.seed, epoch, index), self.format)]
        else:
            plan = self.sampling.evaluation(length, self.format, clips=DENSE_CLIPS if self.views == "dense" else 1)
        plan = [wrap(numbers, length, self.format) for numbers in plan]
        if self.in_one_pass and layout is not None:
            if room is None or len(room) != len(plan[0]):
                return self._augmented(self._view(source, layout, plan[0], epoch, index), epoch, index)
            self._view(source, layout, plan[0], epoch, index, out=room.numpy())
            return room.permute(0, 3, 1, 2)
        wanted = sorted({number for numbers in plan for number in numbers})
        frames = self._frames(sample, source, layout, length, wanted)
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
        videos = self.views == "train" and self.format == "video"
        return videos and self.resize == "decoder" and self.cache is None

    def _view(
        self,
        source: VideoSource,
        layout: VideoLayout,
        numbers: Sequence[int],
        epoch: int,
        index: int,
        out: Frames | None = None,
    ) -> Frames:
        """A training view, of which the reader converts what is seen."""
        width, height = layout.info.width, layout.info.height
        view = self.transform.view(*self.transform.scaled_size(width, height), seeded("view", self.seed, epoch, index))
        side = self.transform.size
        return read_frames(
            source, numbers, size=(side, side), crop=view.crop_of(width, height), flip=view.flip, limits=self.limits,
            layout=layout, out=out,
        )  # fmt: skip

    def _frames(
        self, sample: Sample, source: VideoSource, layout: VideoLayout | None, length: int, wanted: Sequence[int]
    ) -> Frames:
        """The wanted frames: decoded, or the same out of the cache, where they are kept scaled."""
        if self.cache is None:
            return self._decode(sample, source, layout, wanted)

        if layout is None:
            self._refuse_links_outside(sample, wanted)

        def decode(numbers: Sequence[int]) -> Frames:
            return self.transform.scaled(self._decode(sample, source, layout, numbers))

        def shape() -> tuple[int, int]:
            if layout is None:
                height, width = decode(wanted[:1]).shape[1:3]
                return height, width
            return self.transform.scaled_size(layout.info.width, layout.info.height)[::-1]

        whole = None
        if self.views == "train" and self.sampling.mode != "linspace":  # other frames in every epoch
            whole = range(1, length + 1) if self.format == "frames" else range(length)
        return self.cache.read(self._content(sample, length), wanted, decode, shape=shape, video=whole)

    def _decode(
        self, sample: Sample, source: VideoSource, layout: VideoLayout | None, numbers: Sequence[int]
    ) -> Frames:
        if layout is None:
            self._refuse_links_outside(sample, numbers)
            return read_images(sample.path, self.suffix, numbers, limits=self.limits)
        return read_frames(source, numbers, size=self._size(layout), limits=self.limits, layout=layout)

    def _content(self, sample: Sample, length: int) -> str:
        """All that the scaled frames of a sample depend on."""
        path = sample.path if sample.path in self.stamps else os.path.abspath(sample.path)
        if self.format == "frames":
            names = (self.suffix.format(number) for number in range(1, length + 1))
            stamps: object = [stamp_of(os.path.join(path, name)) for name in names]
        else:
            stamps = self.stamps.get(path) or stamp_of(path)
        scaling = self.transform.scale, self.transform.aspect, self.resize
        return content_key(path, sample.member, stamps, length, self.suffix, *scaling, self.limits)

    def _refuse_links_outside(self, sample: Sample, numbers: Sequence[int]) -> None:
        for number in numbers if self._inside else ():
            file = os.path.join(sample.path, self.suffix.format(number))
            if os.path.islink(file) and not is_inside(os.path.realpath(file), self._inside):
                raise VideoError(file, "a link that leads out of data.root; admit its folder by data.roots")

    def _layout(self, sample: Sample, source: VideoSource) -> VideoLayout:
        if self.index is None:
            return scan(source, limits=self.limits)
        if sample.member is None:
            return self.index.layout(sample.path, limits=self.limits)
        stamp = self.stamps[sample.path]
        return self.index.layout(sample.name, limits=self.limits, source=source, stamp=stamp)

    def _source(self, sample: Sample) -> VideoSource:
        if sample.member is None:
            return sample.path
        assert self.archives is not None
        return self.archives.source(sample)

    def _size(self, layout: VideoLayout) -> tuple[int, int] | None:
        """(height, width) that the reader scales to, none for the video's own."""
        width, height = layout.info.width, layout.info.height
        scaled = self.transform.scaled_size(width, height)
        return None if self.resize == "exact" or scaled == (width, height) else scaled[::-1]

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
    """Raise ValueError for a resize or a policy that there is not."""
    if resize not in ("decoder", "exact"):
        raise ValueError(f"data.resize is 'decoder' or 'exact', came {resize!r}")
    if on_bad not in ("raise", "quarantine"):
        raise ValueError(f"data.on_bad is 'raise' or 'quarantine', came {on_bad!r}")


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
