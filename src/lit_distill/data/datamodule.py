"""The one data module of videos: what list files name, sampled and cropped."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Unpack

from lit_distill._files import cache_folder, expand_home
from lit_distill._screen import few
from lit_distill._views import ViewsBatch
from lit_distill.data.augment import Augment, augmentation
from lit_distill.data.cache import ClipCache
from lit_distill.data.catalogue.lists import ListFile, read_class_names, shown
from lit_distill.data.catalogue.quarantine import OnBad, QuarantineList
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.datasets import Resize, VideoDataset, require_known
from lit_distill.data.decoding.layout import Limits
from lit_distill.data.loading import Loading, SampleDataModule, Split
from lit_distill.data.sampling import FrameSampling, Mode
from lit_distill.data.sources import Format, Source, source_of
from lit_distill.data.sources.shards import ShardOrder
from lit_distill.data.transforms import Aspect, ClipTransform
from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.showing import printable


class VideoDataModule(SampleDataModule[VideoDataset]):
    """Videos or folders of frames named by list files, as batches (inputs, target, index).

    Inputs are (B, T, 3, H, W) float32, or (B, V, T, 3, H, W) of V views with dense evaluation, whose batches are
    :class:`lit_distill.data.ViewsBatch`; the target is int64 (B,), or class probabilities (B, num_classes) after
    mixing; the index int64 (B,) is the sample's position in its data set. Workers hand over bytes; conversion,
    normalisation and mixing happen once a batch on the device. Everything random follows from (seed, epoch, sample).

    Training drops the last incomplete batch, as published. Evaluation sees every sample once, under DDP too.

    Args:
        root: folder that the lists' paths, and the lists, are relative to.
        train_list: list file of the training videos.
        val_list: list file of the validation videos.
        test_list: list file of the test videos; none for those of validation.
        num_classes: labels are below it.
        num_frames: T, frames of a clip.
        size: side of the clips, in pixels.
        scale: shorter side that frames are scaled to before they are cropped.
        aspect: ratio of the scaled frames, see :func:`lit_distill.data.transforms.scaled_size`.
        format: ``"video"`` (lines ``path label``), ``"frames"`` (lines ``dir frames label``), or ``"shards"``: tar
            files in WebDataset's layout. A split then is a pattern, ``train-{0000..0063}.tar``, or a file that lists
            them, and the root may be a URL that fsspec opens.
        source: a custom format instead: a :class:`lit_distill.data.Source`.
        suffix: pattern of the frames' file names.
        sampling: which frames make a clip, see :class:`lit_distill.data.FrameSampling`.
        views: of a video in evaluation: ``"center"``, or ``"dense"``: 10 clips x 3 crops.
        multi_scale: whether training crops at several scales.
        flip: probability of a horizontal flip in training.
        augment: ``"autoaugment"``, ``"randaugment"``, ``"trivialaugment"``: after the flip, the same operations on all
            frames of a clip, see :func:`lit_distill.data.augment.augmentation`; none for none.
        batch_size: videos a batch, in each process.
        class_names: a file with their names, relative to the root, or the names; none for none.
        first_label: number of the first class in the lists.
        max_missing: how many listed files may be missing of each list: they are left out, counted and named in a
            warning. More are an error. What becomes of a file that is there but can't be read, ``on_bad`` says.
        resize: ``"decoder"``: frames of videos are scaled in the pass that converts their colours, and of training
            videos only what the crops show is converted; ``"exact"``: whole frames by the published filter, at some
            cost. Folders of frames always are ``"exact"``.
        limits: ``frames``, ``pixels`` and ``seconds`` that a video may take, see :class:`lit_distill.data.Limits`;
            none, or null, for its defaults.
        video_stream: which video stream of each file, from 0, covers and thumbnails not counted; none for the one that
            FFmpeg takes for the best.
        encoding: of the list files and class names, such as ``"gbk"``; those that begin with a byte order mark say it.
        index: whether what is found out about each video is kept in a file in the cache folder
            (``$LIT_DISTILL_CACHE`` or ``~/.cache/lit_distill``), so that headers are read in the first epoch only.
        on_bad: a video that can't be read stops the run (``"raise"``), or is left out of its batch, counted and listed
            (``"quarantine"``, with :class:`lit_distill.callbacks.Quarantine`); later epochs leave it out beforehand.
        max_bad: how many videos may be left out of the run so, over all processes and splits.
        roots: further folders that links in the root, and absolute paths in the lists, may lead to.
        cache: where decoded frames are kept, scaled, so that epochs after the first decode nothing of what it holds:
            ``"memory"``, shared by the workers of a process, or ``"disk"``, which later runs use too. Of training
            videos all frames are kept, of others those that evaluation looks at. Clips are the same as without, but for
            ``resize="decoder"`` in training, where what the crops resize is resized from the kept frames, by the
            published filter.
        cache_gb: most that it holds, in GB (10^9 bytes), in each process (memory) or folder (disk). When it is full
            nothing is added.
        cache_dir: folder of the cache on disk, of this user; none for ``clips`` in the cache folder. Remove it to clear
            the cache.
        shuffle: ``"samples"``: all training samples in any order; ``"shards"``: shards in any order, then samples
            within windows of it, which touches few shards at a time.
        shuffle_window: samples a window.
        **loading: as for every data module, see :class:`lit_distill.data.loading.SampleDataModule`, but for
            ``eval_batch_size``, which is 1 by default with dense views. ``unlabelled`` is a list file of lines ``path``
            or ``dir frames``, relative to the root; not for shards.

    Raises:
        ValueError: a value is out of its range. Files and folders are looked at by :meth:`setup`.

    Example:
        >>> data = VideoDataModule(root="videos", train_list="train.txt", val_list="val.txt", num_classes=3)
        >>> data.num_classes, data.num_frames, data.size
        (3, 16, 224)
    """

    things = "videos"

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        train_list: str | os.PathLike[str],
        val_list: str | os.PathLike[str],
        test_list: str | os.PathLike[str] | None = None,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        scale: int = 256,
        aspect: Aspect = "fixed",
        format: Format = "video",
        source: Source | None = None,
        suffix: str = "img_{:05}.jpg",
        sampling: Mode = "plain",
        views: Literal["center", "dense"] = "center",
        multi_scale: bool = True,
        flip: float = 0.5,
        augment: Augment | None = None,
        batch_size: int = 8,
        class_names: str | os.PathLike[str] | Sequence[str] | None = None,
        first_label: int = 0,
        max_missing: int = 0,
        resize: Resize = "decoder",
        limits: Mapping[str, float | None] | None = None,
        video_stream: int | None = None,
        encoding: str = "utf-8",
        index: bool = True,
        on_bad: OnBad = "raise",
        max_bad: int = 0,
        roots: Sequence[str | os.PathLike[str]] = (),
        cache: Literal["none", "memory", "disk"] = "none",
        cache_gb: float = 4.0,
        cache_dir: str | os.PathLike[str] | None = None,
        shuffle: Literal["samples", "shards"] = "samples",
        shuffle_window: int = 1000,
        **loading: Unpack[Loading],
    ) -> None:
        if views not in ("center", "dense"):
            raise ValueError(f"data.views is 'center' or 'dense', got {views!r}")
        if views == "dense" and loading.get("eval_batch_size") is None:
            loading["eval_batch_size"] = 1
        super().__init__(root=root, num_classes=num_classes, batch_size=batch_size, **loading)
        if max_missing < 0:
            raise ValueError(f"data.max_missing must be at least 0, got {max_missing}")
        self.lists = {"train": train_list, "val": val_list, "test": val_list if test_list is None else test_list}
        self.num_frames, self.size = num_frames, size
        self.sampling = FrameSampling(num_frames=num_frames, mode=sampling)
        self.transform = ClipTransform(size=size, scale=scale, aspect=aspect, multi_scale=multi_scale, flip=flip)
        self.augment = None if augment is None else augmentation(augment)
        self.suffix, self.views = suffix, views
        self.video_stream, self.encoding = video_stream, encoding
        self.first_label, self.max_missing = first_label, max_missing
        self._class_names = class_names
        require_known(resize, on_bad)
        self.resize, self.on_bad = resize, on_bad
        self.roots = [expand_home(folder) for folder in roots]
        self.limits = _limits(limits)
        if cache not in ("none", "memory", "disk"):
            raise ValueError(f"data.cache is 'none', 'memory' or 'disk', got {cache!r}")
        if not cache_gb > 0:
            raise ValueError(f"data.cache_gb must be above 0, got {cache_gb}")
        self.cache, self.cache_gb, self.cache_dir = cache, cache_gb, cache_dir
        self.clip_cache: ClipCache | None = None
        """The cache of decoded frames, made by the first data set that needs it; its ``stats()`` tell of hits."""
        self.source = source or source_of(
            format, root=root if is_address(root) else self.root, roots=self.roots, suffix=suffix, limits=self.limits,
            index=index, stream=video_stream,
        )  # fmt: skip
        given = format if source is None else type(source).__name__
        if shuffle not in ("samples", "shards"):
            raise ValueError(f"data.shuffle is 'samples' or 'shards', got {shuffle!r}")
        if shuffle == "shards" and not self.source.packed:
            raise ValueError(f"data.shuffle=shards goes with data.format=shards, not {given}")
        if self.unlabelled is not None and self.source.packed:
            raise ValueError("data.unlabelled is a list of videos or folders of frames, not of data.format=shards")
        if shuffle == "shards" and self.has_unlabelled:
            raise ValueError("data.shuffle=shards has no order for samples without labels: set data.shuffle=samples")
        if shuffle_window < 1:
            raise ValueError(f"data.shuffle_window must be at least 1, got {shuffle_window}")
        self._is_remote = is_address(root)
        if self._is_remote and not self.source.packed:
            raise ValueError(f"data.root={os.fspath(root)} is a URL, which goes with data.format=shards, not {given}")
        self.shuffle, self.shuffle_window = shuffle, shuffle_window
        quarantine = QuarantineList(max_bad=max_bad, root=self.root)
        self.quarantine = quarantine if on_bad == "quarantine" else None

    @property
    def layout(self) -> str:
        """What the root must hold, in words."""
        return self.source.layout(self.lists.values())

    def _dataset(self, split: Split) -> VideoDataset:
        if self.source.index is not None:
            self.source.index.load()  # before the workers, which then share it
        samples = self._listed_samples(split)
        return VideoDataset(
            self._training_samples(samples) if split == "train" else samples,
            source=self.source,
            sampling=self.sampling,
            transform=self.transform,
            augment=self.augment,
            views="train" if split == "train" else self.views,
            seed=self.seed,
            resize=self.resize,
            on_bad=self.on_bad,
            cache=self._clip_cache(),
        )

    def prepare_data(self) -> None:
        """Look through archives that are not known yet, once a machine; what is missing, :meth:`setup` reports."""
        for split in self.lists if self.source.packed else ():
            with suppress(FileNotFoundError):
                self._listed(split)

    def _order(self, dataset: VideoDataset) -> ShardOrder | None:
        if self.shuffle == "samples":
            return None
        return ShardOrder(dataset.samples.groups, window=self.shuffle_window, seed=self.seed)

    def _require_root(self) -> None:
        if not self._is_remote:
            super()._require_root()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As in any data module; a batch of dense views says so."""
        made = super().on_after_batch_transfer(batch, dataloader_idx)
        training = self.trainer is not None and self.trainer.training
        return made if training or self.views == "center" else ViewsBatch(*made)

    def teardown(self, stage: str) -> None:
        """Tell what the cache of clips was good for."""
        if self.clip_cache is not None and (self.trainer is None or self.trainer.is_global_zero):
            logging.getLogger("lightning.pytorch").info(f"data.cache={self.cache}: {self.clip_cache.stats()}")

    def _clip_cache(self) -> ClipCache | None:
        if self.clip_cache is None and self.cache != "none":
            limit = int(self.cache_gb * 1e9)
            folder = cache_folder("clips", self.cache_dir)
            self.clip_cache = ClipCache.in_memory(limit) if self.cache == "memory" else ClipCache(folder, limit=limit)
        return self.clip_cache

    def listed(self) -> dict[str, list[Sample]]:
        """What each list names, whether it is there or not, by the lists' names.

        Raises:
            FileNotFoundError: the root or a list is missing.
            ValueError: a list is malformed.
        """
        self._require_root()
        self.class_names = self._read_class_names()
        splits: dict[str, str] = {}
        for split, file in self.lists.items():
            splits.setdefault(os.fspath(file), split)
        found = {file: self._listed(split) for file, split in splits.items()}
        if self.unlabelled is not None:
            found.setdefault(os.fspath(self.unlabelled), self._listed_pool())
        return found

    def _listed(self, split: str) -> list[Sample]:
        return self.source.samples(self._list_file(self.lists[split], f"data.{split}_list"))

    def _listed_pool(self) -> list[Sample]:
        assert self.unlabelled is not None
        return self.source.samples(self._list_file(self.unlabelled, "data.unlabelled", labelled=False))

    def _list_file(self, file: str | os.PathLike[str], key: str, *, labelled: bool = True) -> ListFile:
        return ListFile(
            file=file, key=key, root=self.root, num_classes=self.num_classes, first_label=self.first_label,
            class_names=self._read_class_names() or (), roots=self.roots, labelled=labelled,
            encoding=self.encoding,
        )  # fmt: skip

    def _listed_samples(self, split: Split) -> list[Sample]:
        return self._present(self._listed(split), self.lists[split])

    def _pool(self) -> list[Sample]:
        assert self.unlabelled is not None
        return self._present(self._listed_pool(), self.unlabelled)

    def _present(self, samples: list[Sample], listed: str | os.PathLike[str]) -> list[Sample]:
        missing = set(self.source.missing(samples))
        if not missing:
            return samples
        file = self._in_root(listed)
        named = few(sorted(sample.path for sample in missing))
        said = f"{len(missing)} of the {len(samples)} entries of {file} are missing: {named}"
        if len(missing) > self.max_missing or len(missing) == len(samples):
            raise FileNotFoundError(
                f"{said}; set data.root=<folder that they are in>, or data.max_missing to leave them out"
            )
        warnings.warn(printable(f"{said}; they are left out"), stacklevel=3)
        return [sample for sample in samples if sample not in missing]

    def _read_class_names(self) -> tuple[str, ...] | None:
        given = self._class_names
        if given is None:
            return None
        if isinstance(given, str | os.PathLike):
            file = self._in_root(given)
            if not file.is_file():
                raise FileNotFoundError(f"no class names {shown(file)}, set data.class_names=<file>, or null for none")
            return read_class_names(file, self.num_classes, encoding=self.encoding)
        if len(given) != self.num_classes:
            raise ValueError(f"data.class_names has {len(given)} names, data.num_classes is {self.num_classes}")
        return tuple(given)


def _limits(given: Mapping[str, float | None] | None) -> Limits:
    """The limits of a config; what it does not say, or null, is the reader's own."""
    stated = {name: value for name, value in (given or {}).items() if value is not None}
    unknown = stated.keys() - Limits.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(Limits.__dataclass_fields__)
        raise ValueError(f"data.limits has the fields {known}, got {', '.join(sorted(unknown))}")
    return Limits(**stated)  # type: ignore[arg-type]
