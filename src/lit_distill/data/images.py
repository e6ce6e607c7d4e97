"""Folders of images, a folder a class: decoded with Pillow, transformed by torchvision v2, loaded as videos are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias, Unpack

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_distill.data.augment import Augment, augmentation, interpolation_mode, torch_seeded
from lit_distill.data.catalogue.samples import Sample, SampleTable
from lit_distill.data.datasets import Item
from lit_distill.data.loading import Loading, SampleDataModule, Split
from lit_distill.data.samplers import SampleKey
from lit_distill.data.sources.images import ImageFolders, read_image

Transform: TypeAlias = Callable[[Image.Image], Image.Image | Tensor]


def training_transform(
    *,
    size: int,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    augment: Augment | None = None,
    interpolation: str = "bilinear",
) -> v2.Transform:
    """The usual training view of an image: random resized crop, horizontal flip, and one automatic augmentation.

    Args:
        size: side of what comes out, in pixels.
        crop_scale: least and most share of the image's area in the crop.
        flip: probability of the flip.
        augment: see :func:`lit_distill.data.augment.augmentation`; none for none.
        interpolation: such as ``"bilinear"`` or ``"bicubic"``, of the crop and the augmentation.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> transform = training_transform(size=24, augment="randaugment")
        >>> transform(Image.new("RGB", (40, 30))).size
        (24, 24)
    """
    if len(crop_scale) != 2 or not 0.0 < crop_scale[0] <= crop_scale[1] <= 1.0:
        raise ValueError(f"data.crop_scale is two shares of the area, 0 < low <= high <= 1, got {list(crop_scale)}")
    if not 0.0 <= flip <= 1.0:
        raise ValueError(f"data.flip is a probability from 0 to 1, got {flip}")
    mode = interpolation_mode(interpolation)
    steps = [v2.RandomResizedCrop(size, scale=tuple(crop_scale), interpolation=mode), v2.RandomHorizontalFlip(flip)]
    if augment is not None:
        steps.append(augmentation(augment, interpolation=interpolation))
    return v2.Compose(steps)


def evaluation_transform(*, size: int, scale: int, interpolation: str = "bilinear") -> v2.Transform:
    """The usual view in evaluation: the shorter side to ``scale``, then the middle ``size`` x ``size`` pixels.

    Args:
        size: side of what comes out, in pixels.
        scale: at least ``size``.
        interpolation: such as ``"bilinear"`` or ``"bicubic"``.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> evaluation_transform(size=24, scale=32)(Image.new("RGB", (40, 30))).size
        (24, 24)
    """
    if not 1 <= size <= scale:
        raise ValueError(f"data.size must be from 1 to data.scale={scale}, got {size}: set data.size or data.scale")
    return v2.Compose([v2.Resize(scale, interpolation=interpolation_mode(interpolation)), v2.CenterCrop(size)])


class ImageDataset(Dataset[Item]):
    """Images with their labels, each view a function of (seed, epoch, index).

    An item is (image (3, H, W) uint8, label, index). torchvision's transforms draw from torch's global generator: for
    each item it is seeded again and given back as it was, so the same key gives the same view in any process, after any
    history, and nothing else notices.

    Args:
        samples: path and label of each image.
        transform: from an RGB image of Pillow to another one, or to bytes (3, H, W).
        seed: of all random choices.

    Raises:
        ValueError: there are no samples.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/a.jpg")
        ...     dataset = ImageDataset([(f"{folder}/a.jpg", 2)], transform=training_transform(size=24))
        ...     image, label, index = dataset[0]
        >>> image.shape, image.dtype, label, index
        (torch.Size([3, 24, 24]), torch.uint8, 2, 0)
    """

    def __init__(self, samples: Sequence[tuple[str, int]], *, transform: Transform, seed: int = 0) -> None:
        if not samples:
            raise ValueError("an ImageDataset needs at least one sample")
        self.samples = SampleTable(Sample(*sample) for sample in samples)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey | int) -> Item:
        """The item of a key, or of an index in epoch 0.

        Raises:
            ValueError: the image can't be read (it is never replaced by another), or the transform does not give bytes.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        path, label, *_ = self.samples[index]
        image = read_image(path)
        with torch_seeded("image", self.seed, epoch, index):
            view = self.transform(image)
        pixels = v2.functional.pil_to_tensor(view) if isinstance(view, Image.Image) else view
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != 3:
            raise ValueError(
                f"the transform must give an image or bytes (3, H, W) uint8, got {tuple(pixels.shape)} "
                f"{str(pixels.dtype).removeprefix('torch.')}: leave floats and normalisation to data.mean "
                "and data.std, they come on the device"
            )
        return pixels, label, index


class ImageFolderDataModule(SampleDataModule[ImageDataset]):
    """Images in ``root/train/<class>/`` and ``root/val/<class>/``, as batches (inputs, target, index).

    The layout is that of torchvision's ``ImageFolder``: a class is a folder, labels number the folders' names in their
    order. Inputs are (B, 3, H, W) float32; the target is int64 (B,), or class probabilities (B, num_classes) after
    mixing; the index int64 (B,) is the sample's position in its data set. Workers hand over bytes; conversion,
    normalisation and mixing happen once a batch on the device. Everything random follows from (seed, epoch, sample).

    Training drops the last incomplete batch. Evaluation sees every sample once, under DDP too.

    Args:
        root: the folder.
        num_classes: how many classes there are; checked against the folders.
        train: folder of the training images in the root; or a list file of them, lines ``path label`` relative to the
            root, such as :mod:`lit_distill.select` writes.
        val: folder of the validation images, with the same classes.
        test: folder of the test images, with the same classes; none for those of validation.
        size: side of the images that the networks see, in pixels.
        scale: shorter side in evaluation, before the middle is cropped; none for ``size`` times 256 / 224.
        crop_scale: see :func:`training_transform`, as are the next three.
        flip: probability of a horizontal flip in training.
        augment: ``"autoaugment"``, ``"randaugment"``, ``"trivialaugment"``, or none.
        interpolation: such as ``"bilinear"`` or ``"bicubic"``.
        train_transform: instead of that training view: any transform, or Compose, of torchvision v2 from an RGB image
            to an image or bytes. Random ones must draw from torch's generator, as torchvision's do.
        eval_transform: instead of the view in evaluation.
        batch_size: images a batch, in each process.
        **loading: as for every data module, see :class:`lit_distill.data.loading.SampleDataModule`. ``unlabelled`` is a
            folder of images, in subfolders or not, or a file that lists some, a path a line relative to the root.

    Raises:
        ValueError: a value is out of its range. Files and folders are looked at by :meth:`setup`, which raises where
            the classes are not ``num_classes``, or not the same in all splits.

    Example:
        >>> data = ImageFolderDataModule(root="images", num_classes=10, size=192)
        >>> data.num_classes, data.size, data.scale
        (10, 192, 219)
    """

    things = "images"

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        num_classes: int,
        train: str = "train",
        val: str = "val",
        test: str | None = None,
        size: int = 224,
        scale: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        augment: Augment | None = None,
        interpolation: str = "bilinear",
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        batch_size: int = 32,
        encoding: str = "utf-8",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(root=root, num_classes=num_classes, batch_size=batch_size, **loading)
        self.size = size
        self.scale = size * 256 // 224 if scale is None else scale
        usual = evaluation_transform(size=size, scale=self.scale, interpolation=interpolation)
        self.eval_transform: Transform = eval_transform or usual
        self.train_transform: Transform = train_transform or training_transform(
            size=size, crop_scale=crop_scale, flip=flip, augment=augment, interpolation=interpolation
        )
        folders = {"train": train, "val": val, "test": val if test is None else test}
        self.source = ImageFolders(root=self.root, folders=folders, num_classes=num_classes, encoding=encoding)

    @property
    def layout(self) -> str:
        """What the root must hold, in words."""
        return self.source.layout

    def _dataset(self, split: Split) -> ImageDataset:
        samples = self._listed_samples(split)
        if split == "train":
            samples = self._training_samples(samples)
        transform = self.train_transform if split == "train" else self.eval_transform
        return ImageDataset([sample[:2] for sample in samples], transform=transform, seed=self.seed)

    def _listed_samples(self, split: Split) -> list[Sample]:
        return self.source.samples(split)

    def _pool(self) -> list[Sample]:
        assert self.unlabelled is not None
        return self.source.unlabelled(self.unlabelled)

    def _read_class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names()
