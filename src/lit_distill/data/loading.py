"""What all data modules share: splits, deterministic loaders, and what happens to a batch on the device."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar, cast

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_distill._cores import available_cores
from lit_distill._files import expand_home
from lit_distill.data.catalogue.lists import shown
from lit_distill.data.catalogue.quarantine import Admission, BadVideo, QuarantineList
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.datasets import Item, collate
from lit_distill.data.digests import InputKeys, KeyedInputs, collate_with_digests
from lit_distill.data.mixing import Mix, Mixer, MixName, class_probabilities, mixer_of
from lit_distill.data.pool import PoolSampler, batch_share, hide_labels, labelled_count, within_kinds
from lit_distill.data.resumable import ResumableLoader
from lit_distill.data.samplers import EpochSampler, EvalSampler, Excluded, SampleKey, seeded, view_of
from lit_distill.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize

Split = Literal["train", "val", "test"]


class SampleDataset(Protocol):
    """Items (bytes, label, index), each a function of its key alone."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, key: SampleKey | int) -> Item | BadVideo:
        """The item of a key, or of an index in epoch 0."""


SampleDatasetT = TypeVar("SampleDatasetT", bound=SampleDataset)


class Loading(TypedDict, total=False):
    """The arguments that every data module of this library takes; :class:`SampleDataModule` has what they mean."""

    mix: Mixer | MixName | None
    label_smoothing: float
    eval_batch_size: int | None
    num_workers: int | None
    prefetch: int
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    views_per_sample: int | None
    unlabelled: str | os.PathLike[str] | None
    unlabelled_share: float | None
    labelled_share: float


class SampleDataModule(LightningDataModule, ABC, Generic[SampleDatasetT]):
    """A folder with the splits train, val and test, as batches (inputs, target, index).

    A subclass says what the samples are: :meth:`_dataset`, :meth:`_read_class_names`, :attr:`layout`, :attr:`things`.
    Training drops the last incomplete batch. Evaluation sees every sample once, under DDP too. Order and mixing follow
    from (seed, epoch, sample), whatever the number of workers and processes.

    Args:
        root: the folder.
        num_classes: labels are below it.
        batch_size: samples a batch, in each process.
        mix: how training batches are mixed: ``"mixup"``, ``"cutmix"``, ``"videomix"``, or such as
            :class:`lit_distill.data.Mixup` with values of its own; none to leave them.
        label_smoothing: ε from 0 to below 1; above 0 training targets are class probabilities, smoothed, see
            :func:`lit_distill.data.mixing.class_probabilities`. Evaluation is on the labels as they are.
        eval_batch_size: samples a batch in evaluation; none for ``batch_size``.
        num_workers: worker processes in each process; none for as many as there are cores for each, at most 8.
        prefetch: batches that each worker prepares ahead; more evens out uneven samples, at the price of memory.
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.
        seed: of everything random here.
        views_per_sample: k: epoch e of training is epoch e mod k over again, with the same views, order and mixing, so
            that what is computed of a batch once can be read back (:class:`lit_distill.callbacks.TeacherCache`); none
            draws new ones in every epoch.
        unlabelled: where training samples without labels are; batches then hold both kinds, see
            :class:`lit_distill.data.pool.PoolSampler`; none for none.
        unlabelled_share: of each training batch, see :func:`lit_distill.data.pool.batch_share`; none for that of all
            training samples.
        labelled_share: of the training labels that are used, above 0 to 1: the others are hidden, see
            :func:`lit_distill.data.pool.hide_labels`; with ``unlabelled_share=0`` their samples are left out.

    Raises:
        ValueError: a value is out of its range. Files and folders are looked at by :meth:`setup`.
    """

    things = "samples"
    """What the samples are called in messages."""

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        num_classes: int,
        batch_size: int,
        mix: Mixer | MixName | None = None,
        label_smoothing: float = 0.0,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        prefetch: int = 2,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        views_per_sample: int | None = None,
        unlabelled: str | os.PathLike[str] | None = None,
        unlabelled_share: float | None = None,
        labelled_share: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_classes", num_classes, 1),
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch", prefetch, 1),
            ("views_per_sample", views_per_sample, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"data.mean and data.std are 3 numbers, std above 0, got {list(mean)} and {list(std)}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"data.label_smoothing must be from 0 to below 1, got {label_smoothing}")
        self.root = expand_home(root)
        self.num_classes, self.mix, self.seed = num_classes, mixer_of(mix), seed
        self.label_smoothing = label_smoothing
        if unlabelled_share is not None and not 0.0 <= unlabelled_share <= 1.0:
            raise ValueError(f"data.unlabelled_share is a share of a batch from 0 to 1, got {unlabelled_share}")
        if not 0.0 < labelled_share <= 1.0:
            raise ValueError(f"data.labelled_share must be above 0, to 1, got {labelled_share}")
        if unlabelled_share and unlabelled is None and labelled_share == 1.0:
            raise ValueError(
                f"data.unlabelled_share={unlabelled_share}, but no sample is without a label: set "
                "data.unlabelled=<list>, or data.labelled_share to hide labels"
            )
        self.unlabelled, self.unlabelled_share, self.labelled_share = unlabelled, unlabelled_share, labelled_share
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers, self.prefetch, self.views_per_sample = num_workers, prefetch, views_per_sample
        self.mean, self.std = tuple(mean), tuple(std)
        self.class_names: tuple[str, ...] | None = None
        self.datasets: dict[str, SampleDatasetT] = {}
        self.quarantine: QuarantineList | None = None
        """What is left out and how much may be; None where what can't be read stops the run."""
        self.admissions: dict[str, Admission] = {}
        self.with_keys = False
        """Whether batches come with keys of their inputs, see :meth:`keys_of`."""
        self._keyed: KeyedInputs | None = None

    # For subclasses ---------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def layout(self) -> str:
        """What the root must hold, in words."""

    @abstractmethod
    def _dataset(self, split: Split) -> SampleDatasetT:
        """The samples of a split, their files looked for."""

    @abstractmethod
    def _read_class_names(self) -> tuple[str, ...] | None:
        """The classes' names, where there are any."""

    @property
    def has_unlabelled(self) -> bool:
        """Whether training batches hold samples without labels: -1 in a target, a row of zeros in probabilities."""
        return self.unlabelled_share != 0 and (self.unlabelled is not None or self.labelled_share < 1)

    # Only data.unlabelled, data.labelled_share and `select` ask for these two: data that have no files need not tell.

    def _listed_samples(self, split: Split) -> list[Sample]:
        """What a split lists with labels; for what is without, and for :meth:`kinds`."""
        raise ValueError(f"{type(self).__name__} has no list of its samples, which training without labels goes by")

    def _pool(self) -> list[Sample]:
        """The samples that ``unlabelled`` names."""
        raise ValueError(f"{type(self).__name__} reads no data.unlabelled={self.unlabelled}: leave it out")

    def kinds(self) -> tuple[list[Sample], list[Sample]]:
        """The training samples with a label that is used, and those without, whatever batches are made of.

        Raises:
            FileNotFoundError: the root or something in it is missing.
            ValueError: what is found there is malformed.
        """
        self._require_root()
        self.class_names = self._read_class_names()
        return self._kinds(self._listed_samples("train"))

    def evaluated(self) -> list[Sample]:
        """The samples of validation and test; errors are those of :meth:`kinds`."""
        self._require_root()
        self.class_names = self._read_class_names()
        return [*self._listed_samples("val"), *self._listed_samples("test")]

    def _kinds(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        kept = hide_labels(samples, self.labelled_share) if self.labelled_share < 1 else list(samples)
        count = labelled_count(kept)
        return kept[:count], [*kept[count:], *(self._pool() if self.unlabelled is not None else ())]

    def _training_samples(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples of training: the labelled ones first, then those whose label is hidden, then the pool."""
        if self.unlabelled_share == 0:  # a pool that is not used need not be there
            samples = hide_labels(samples, self.labelled_share)
            return samples[: labelled_count(samples)]
        labelled, unlabelled = self._kinds(samples)
        return [*labelled, *unlabelled]

    def _order(self, dataset: SampleDatasetT) -> Callable[[int], list[int]] | None:
        """The order of an epoch of training; None for all samples shuffled."""
        return None

    def _require_root(self) -> None:
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {shown(self.root)}, set data.root=<folder>; it must hold {self.layout}")

    def _in_root(self, file: str | os.PathLike[str]) -> Path:
        return self.root / expand_home(file)

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Look for the files that ``stage`` needs.

        Raises:
            FileNotFoundError: the root or something in it is missing.
            ValueError: what is found there is malformed.
        """
        splits: dict[str | None, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": ("test",),
        }
        self._require_root()
        self.class_names = self._read_class_names()
        for split in splits.get(stage, ("train", "val", "test")):
            if split not in self.datasets:
                self.datasets[split] = self._dataset(split)

    def train_dataloader(self) -> DataLoader[Item]:
        """Shuffled training batches."""
        dataset = self._ready("train")
        replicas, rank = self._replicas()
        admission = self._admission("train")
        sampler = self._sampler(dataset, replicas, rank, None if admission is None else admission.excluded)
        if len(sampler) < self.batch_size:
            raise ValueError(
                f"{len(dataset)} training {self.things} on {replicas} processes give no batch of {self.batch_size} "
                f"each: set data.batch_size to at most {max(1, len(sampler))}"
            )
        loader = self._loader(dataset, sampler, self.batch_size, drop_last=True, admission=admission)
        if self.trainer is not None:
            loader.follow(self.trainer)
        return loader

    def val_dataloader(self) -> DataLoader[Item]:
        """Validation batches in the order of the samples."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Item]:
        """Test batches in the order of the samples."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[Item]:
        """The test batches."""
        return self._evaluation("test")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw how a training batch is mixed, on the CPU, from (seed, epoch or view, the batch's first sample)."""
        inputs, target, index, *digests = batch
        parts: list[Any] = [inputs, target, index]
        mix = None
        if self.mix is not None and self.trainer is not None and self.trainer.training:
            view = view_of(self.trainer.current_epoch, self.views_per_sample)
            rng = seeded("mix", self.seed, view, int(index[0]))
            mix = within_kinds(self.mix.draw(len(inputs), inputs.shape[-2], inputs.shape[-1], rng), target)
            parts.append(mix)
        if digests:
            parts.append(InputKeys.of(digests[0], mix, self.mean, self.std))
        return tuple(parts)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Bytes to normalised floats, and labels smoothed; then the mixing drawn before."""
        inputs, target, index, *more = batch
        keys = next((part for part in more if isinstance(part, InputKeys)), None)
        if self.label_smoothing and self.trainer is not None and self.trainer.training:
            target = class_probabilities(target, self.num_classes, smoothing=self.label_smoothing)
        with nullcontext() if keys is None else torch.inference_mode(False):  # a tensor that counts its changes
            inputs = normalize(inputs, self.mean, self.std)
            for part in more:
                if isinstance(part, tuple):
                    inputs, target = Mix(*part)(inputs, target, self.num_classes)
        self._keyed = None if keys is None else KeyedInputs(inputs, keys)
        return inputs, target, index

    def keys_of(self, inputs: Tensor) -> InputKeys | None:
        """Keys of the rows of the newest batch's inputs, if this is that very tensor and nothing has changed it."""
        return None if self._keyed is None else self._keyed.keys_of(inputs)

    # Loaders ----------------------------------------------------------------------------------------------------------

    def _ready(self, split: Split) -> SampleDatasetT:
        if split not in self.datasets:
            self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        return self.datasets[split]

    def _sampler(self, dataset: SampleDatasetT, replicas: int, rank: int, excluded: Excluded | None) -> EpochSampler:
        given: dict[str, Any] = {
            "num_replicas": replicas, "rank": rank, "seed": self.seed, "excluded": excluded,
            "views": self.views_per_sample,
        }  # fmt: skip
        if not self.has_unlabelled:
            return EpochSampler(dataset, order=self._order(dataset), **given)
        labelled = labelled_count(cast("Any", dataset).samples)
        share = batch_share(self.batch_size, labelled, len(dataset) - labelled, self.unlabelled_share)
        return PoolSampler(dataset, labelled=labelled, batch_size=self.batch_size, unlabelled=share, **given)

    def _evaluation(self, split: Split) -> DataLoader[Item]:
        dataset = self._ready(split)
        replicas, rank = self._replicas()
        admission = self._admission(split)
        excluded = None if admission is None else admission.excluded
        sampler = EvalSampler(dataset, num_replicas=replicas, rank=rank, excluded=excluded)
        return self._loader(dataset, sampler, self.eval_batch_size, admission=admission)

    def _admission(self, split: Split) -> Admission | None:
        """What stands between a split's loader and the loop under quarantine."""
        if self.quarantine is None:
            return None
        if self.trainer is not None and not self.quarantine.collected:
            raise ValueError(
                "data.on_bad=quarantine needs the callback lit_distill.callbacks.Quarantine in the Trainer, which "
                "brings the processes' lists together"
            )
        if split not in self.admissions:
            samples = cast("Any", self.datasets[split]).samples
            self.admissions[split] = Admission(self.quarantine, split=split, samples=samples, training=split == "train")
        return self.admissions[split]

    def _replicas(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _loader(
        self,
        dataset: SampleDatasetT,
        sampler: EpochSampler | EvalSampler,
        batch_size: int,
        *,
        drop_last: bool = False,
        admission: Admission | None = None,
    ) -> _Loader:
        workers = self._default_workers() if self.num_workers is None else self.num_workers
        loader = _Loader(
            cast("Dataset[Item]", dataset),
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            prefetch_factor=self.prefetch if workers else None,
            collate_fn=collate_with_digests if self.with_keys else collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(self.seed),  # the global one belongs to the networks
        )
        loader.admission = admission
        return loader

    def _default_workers(self) -> int:
        processes = 1 if self.trainer is None else self.trainer.num_devices
        return min(8, available_cores() // processes)


class _Loader(ResumableLoader[Item]):
    """Under quarantine lets through what could be read."""

    admission: Admission | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        if self.admission is not None:
            batches = self.admission(batches, cast("EpochSampler | EvalSampler", self.sampler).epoch)
        yield from batches
