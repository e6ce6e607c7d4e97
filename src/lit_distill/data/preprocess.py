"""From a file, or from pixels, to what a trained network wants: exactly as evaluation does."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_distill._views import InputView
from lit_distill.data import ImageDataset, ImageFolderDataModule, VideoDataModule, VideoDataset, normalize
from lit_distill.data.catalogue.quarantine import BadVideo
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.datasets import Resize
from lit_distill.data.decoding.layout import Limits
from lit_distill.data.images import Transform
from lit_distill.data.sampling import DENSE_CLIPS, FrameSampling, wrap
from lit_distill.data.sources import FrameFolders, Shards, Source, VideoFiles
from lit_distill.data.transforms import ClipTransform

Views: TypeAlias = Literal["center", "dense"]
Given: TypeAlias = str | os.PathLike[str] | Tensor | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What a network wants of a video or an image, and how to make it.

    Called with a file, or with pixels that were decoded elsewhere, it gives a batch of one: the very tensor that
    evaluation gives the network. Another frame rate, length, size or rotation than in training is nothing special:
    frames are sampled over the whole video, turned upright and scaled.

    Raises:
        ValueError: there are no such views, or none but ``"center"`` of images.

    Attributes:
        sampling: which frames make a clip; None for images.
        transform: the geometry: :class:`lit_distill.data.ClipTransform`, or a transform of images.
        size: side of what is read, in pixels; ``input_shape`` is what the network sees.
        scale: shorter side before the crop, in pixels.
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.
        class_names: by class index; empty where they are not known.
        views: of a video: ``"center"``, or ``"dense"``: 10 clips x 3 crops, whose probabilities are to be averaged
            (:func:`lit_distill.data.average_views`).
        suffix: pattern of the frames' names in a folder of frames.
        resize: who scales the frames of a video file, see :class:`lit_distill.data.VideoDataset`. Pixels that were
            decoded elsewhere always are scaled by the published filter.
        limits: of what may be spent on one video.
        video_stream: which video stream of a file; None for the best.
        source: what reads a file of a custom format; None for video files and folders of frames.
        view: what the network sees of such a clip, where that is less; None for all.

    Example:
        >>> from lit_distill.data import VideoDataModule
        >>> data = VideoDataModule(
        ...     root=".", train_list="a", val_list="b", num_classes=3, num_frames=4, size=28, scale=32
        ... )
        >>> preprocess = Preprocess.of(data)
        >>> preprocess(np.zeros((9, 48, 64, 3), np.uint8)).shape, preprocess.frames
        (torch.Size([1, 4, 3, 28, 28]), 4)
    """

    sampling: FrameSampling | None
    transform: ClipTransform | Transform
    size: int
    scale: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    views: Views = "center"
    suffix: str = "img_{:05}.jpg"
    resize: Resize = "decoder"
    limits: Limits = field(default_factory=Limits)
    video_stream: int | None = None
    source: Source | None = None
    view: InputView | None = None

    def __post_init__(self) -> None:
        if self.views not in get_args(Views):
            raise ValueError(f"views are {' or '.join(get_args(Views))}, got {self.views!r}")
        if self.views == "dense" and self.sampling is None:
            raise ValueError("views=dense are 10 clips x 3 crops of a video; images have views=center")

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        class_names: tuple[str, ...] = (),
        views: Views | None = None,
        view: InputView | None = None,
    ) -> Preprocess:
        """What a data module does in evaluation.

        Args:
            data: a :class:`lit_distill.data.VideoDataModule` or :class:`lit_distill.data.ImageFolderDataModule`.
            class_names: by class index; by default those that the data module has read.
            views: None for those of the data module.
            view: what the network sees of the data module's clips; None for all.

        Raises:
            ValueError: a data module of another kind, or dense views of images.
        """
        names = class_names or tuple(getattr(data, "class_names", None) or ())
        common: dict[str, Any] = {
            "mean": tuple(data.mean), "std": tuple(data.std), "class_names": names, "view": view,
        }  # fmt: skip
        if isinstance(data, VideoDataModule):
            return cls(
                sampling=data.sampling,
                transform=data.transform,
                size=data.size,
                scale=data.transform.scale,
                views=views or data.views,
                suffix=data.suffix,
                resize=data.resize,
                limits=data.limits,
                video_stream=data.video_stream,
                source=None if type(data.source) in (VideoFiles, FrameFolders, Shards) else data.source,
                **common,
            )
        if isinstance(data, ImageFolderDataModule):
            common["views"] = views or "center"
            return cls(sampling=None, transform=data.eval_transform, size=data.size, scale=data.scale, **common)
        raise ValueError(
            f"how {type(data).__name__} prepares a sample is not known: expected a VideoDataModule or an "
            "ImageFolderDataModule, or one derived from them"
        )

    @property
    def frames(self) -> int | None:
        """Frames of a clip as the network sees it; None for images."""
        return None if self.sampling is None else self.input_shape[0]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what the network sees: one clip (T, 3, H, W), or one image (3, H, W)."""
        read: tuple[int, ...] = (3, self.size, self.size)
        if self.sampling is not None:
            read = (self.sampling.num_frames * self.sampling.segment_length, *read)
        return read if self.view is None else self.view.shape(read)

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """The bytes of a file as data of the run, not yet normalised; :meth:`normalize` gives what the network sees.

        Args:
            path: a video, a folder of frames, or an image, as the network wants it.

        Returns:
            (T, 3, H, W), (V, T, 3, H, W) for dense views, (3, H, W) for images; uint8.

        Raises:
            VideoError: the video can't be read.
            ValueError: the image can't be read.
        """
        path = os.fspath(path)
        if self.sampling is None:
            return ImageDataset([(path, 0)], transform=self._of_image)[0][0]
        sample = Sample(path, 0)
        source = self.source or VideoFiles(limits=self.limits, stream=self.video_stream)
        if self.source is None and os.path.isdir(path):
            sample = Sample(path, 0, count_images(path, self.suffix))
            source = FrameFolders(suffix=self.suffix, limits=self.limits)
        dataset = VideoDataset(
            [sample],
            source=source,
            sampling=self.sampling,
            transform=self._of_clip,
            views=self.views,
            resize=self.resize,
        )
        item = dataset[0]
        assert not isinstance(item, BadVideo)  # on_bad is "raise"
        return item[0]

    def pixels(self, frames: Tensor | NDArray[np.uint8]) -> Tensor:
        """The same of pixels that were decoded elsewhere.

        Args:
            frames: all frames of a video (T, H, W, 3), or an image (H, W, 3); RGB, uint8.

        Raises:
            ValueError: they have another shape or type.
        """
        array = frames.numpy() if isinstance(frames, Tensor) else np.asarray(frames)
        wanted = "an image (H, W, 3)" if self.sampling is None else "the frames of a video (T, H, W, 3)"
        if array.dtype != np.uint8 or array.ndim != (3 if self.sampling is None else 4) or array.shape[-1] != 3:
            raise ValueError(f"expected {wanted}, RGB of type uint8, got {array.dtype} {array.shape}")
        if self.sampling is None:
            view = self._of_image(Image.fromarray(np.ascontiguousarray(array)))
            return view if isinstance(view, Tensor) else _channels_first(np.asarray(view))
        if not len(array):
            raise ValueError("expected at least one frame, got none")
        dense = self.views == "dense"
        sampling = FrameSampling(num_frames=self.sampling.num_frames, mode="dense") if dense else self.sampling
        plan = sampling.evaluation(len(array), clips=DENSE_CLIPS if dense else 1)
        clips = [array[wrap(numbers, len(array))] for numbers in plan]
        if not dense:
            return _channels_first(self._of_clip.center(clips[0]))
        return torch.stack([_channels_first(view) for clip in clips for view in self._of_clip.three_crops(clip)])

    def __call__(self, source: Given) -> Tensor:
        """A batch of one for the network: floats, normalised.

        Args:
            source: a path as for :meth:`read`, or pixels as for :meth:`pixels`.

        Returns:
            (1, T, 3, H, W), (1, V, T, 3, H, W) for dense views, (1, 3, H, W) for images; float32.
        """
        read = self.read(source) if isinstance(source, (str, os.PathLike)) else self.pixels(source)
        return self.normalize(read[None])

    def normalize(self, batch: Tensor) -> Tensor:
        """Bytes (..., 3, H, W) to normalised float32, and to what the network sees of them."""
        floats = normalize(batch, self.mean, self.std)
        return floats if self.view is None else self.view(floats)

    @property
    def _of_clip(self) -> ClipTransform:
        assert isinstance(self.transform, ClipTransform)
        return self.transform

    @property
    def _of_image(self) -> Transform:
        assert not isinstance(self.transform, ClipTransform)
        return self.transform


def count_images(folder: str | os.PathLike[str], suffix: str) -> int:
    """How many images of a folder are named by ``suffix``, numbered from 1 without a gap."""
    names = set(os.listdir(folder))
    count = next(number for number in itertools.count() if suffix.format(number + 1) not in names)
    if not count:
        raise ValueError(f"{folder}: no frames in this folder, {Path(folder, suffix.format(1))} would be the first")
    return count


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """(..., H, W, 3) to (..., 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)))
