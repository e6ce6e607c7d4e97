"""Folders of images, a folder a class: what is in them, and how one is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, has_file_allowed_extension

from lit_distill._files import expand_home
from lit_distill._screen import few
from lit_distill.data.catalogue.lists import read_list, shown
from lit_distill.data.catalogue.samples import UNLABELLED, Sample
from lit_distill.untrusted.budgets import IMAGE_BYTES
from lit_distill.untrusted.folders import files_below
from lit_distill.untrusted.images import open_image
from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted

_WIDER_THAN_BYTES: Final = ("I", "F")  # Pillow's modes of 16 and 32 bits, which its conversion to RGB would clip at 255


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decode an image file to RGB, as torchvision's ``ImageFolder`` does: no turning by EXIF, transparency dropped.

    Args:
        path: a JPEG, PNG, WebP, BMP, PPM or TIFF file, of 8 bits a channel and at most 64 million pixels.

    Raises:
        ValueError: it is missing, unreadable, truncated or of more than 8 bits; the message names the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 3), 7).save(f"{folder}/a.png")
        ...     image = read_image(f"{folder}/a.png")
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (4, 3), (7, 7, 7))
    """
    try:
        with open_untrusted(path, what="an image", limit=IMAGE_BYTES) as file, open_image(file) as image:
            if not image.mode.startswith(_WIDER_THAN_BYTES):
                rgb: Image.Image = image.convert("RGB")
                return rgb
            reason = f"mode {image.mode} has more than 8 bits a channel, convert it first"
    except UntrustedFileError as error:
        raise ValueError(f"can't read the image {error}") from error
    except Exception as error:  # a decoder of damaged data raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"can't read the image {os.fspath(path)}: {reason}") from error
    raise ValueError(f"can't read the image {os.fspath(path)}: {reason}")


@dataclass(frozen=True, kw_only=True)
class ImageFolders:
    """Images in ``root/<split>/<class>/``, as torchvision's ``ImageFolder`` has them, or named by list files.

    Args:
        root: the folder.
        folders: of each split, in the root; or a list file of lines ``path label``.
        num_classes: how many classes there are.
        encoding: of list files.
    """

    root: Path
    folders: Mapping[str, str]
    num_classes: int
    encoding: str = "utf-8"

    @property
    def layout(self) -> str:
        """What the root must hold, in words."""
        folders = " and ".join(f"{folder}/<class>/<image>" for folder in dict.fromkeys(self.folders.values()))
        return f"{folders}, with the same classes"

    def samples(self, split: str) -> list[Sample]:
        """The images of a split, labels by the order of their folders' names."""
        folder = self._in_root(self.folders[split])
        if folder.is_file():
            return read_list(folder, root=self.root, num_classes=self.num_classes, encoding=self.encoding)
        if not folder.is_dir():
            given = f"data.{split}=<its name> or data.root=<folder>"
            raise FileNotFoundError(f"no folder {shown(folder)}, set {given}; the root must hold {self.layout}")
        samples: list[Sample] = []
        empty = []
        for label, name in enumerate(self._classes(folder)):
            found = sorted((place, sorted(files)) for place, files in files_below(folder / name, links=True))
            images = [os.path.join(place, file) for place, files in found for file in files if _is_image(file)]
            samples += [Sample(path, label) for path in images]
            empty += [] if images else [name]
        if empty:
            raise FileNotFoundError(
                f"{shown(folder)}: found no image for the classes {few(empty)}; the root must hold {self.layout}, with "
                f"the endings {' '.join(IMG_EXTENSIONS)}"
            )
        return samples

    def unlabelled(self, given: str | os.PathLike[str]) -> list[Sample]:
        """The images without labels: of a folder in the order of their paths, or as a file lists them."""
        place = self._in_root(given)
        if place.is_file():
            return read_list(
                place, root=self.root, num_classes=self.num_classes, labelled=False, encoding=self.encoding
            )
        found = sorted(Path(folder, name) for folder, names in files_below(place) for name in names if _is_image(name))
        if not found:
            raise FileNotFoundError(
                f"no images without labels in {shown(place)}, set data.unlabelled=<folder or list file>"
            )
        return [Sample(str(path), UNLABELLED) for path in found]

    def class_names(self) -> tuple[str, ...] | None:
        """The names of the class folders, which must be the same in every split that is there; None without folders."""
        folders = (self._in_root(name) for name in self.folders.values())
        found = {folder: self._classes(folder) for folder in folders if folder.is_dir()}
        for folder, classes in found.items():
            first, wanted = next(iter(found.items()))
            if classes != wanted:
                differing = [f"lacks {few(sorted(set(wanted) - set(classes)))}"] if set(wanted) - set(classes) else []
                if set(classes) - set(wanted):
                    differing.append(f"has {few(sorted(set(classes) - set(wanted)))} besides")
                raise ValueError(
                    f"{folder} must hold the classes of {first}, since labels number the folders' names in order: "
                    f"it {' and '.join(differing)}"
                )
            if len(classes) != self.num_classes:
                raise ValueError(
                    f"data.num_classes is {self.num_classes}, but {folder} holds {len(classes)} classes "
                    f"({few(classes)}): set data.num_classes={len(classes)}"
                )
        return next(iter(found.values()), None)

    def _in_root(self, name: str | os.PathLike[str]) -> Path:
        return self.root / expand_home(name)

    def _classes(self, folder: Path) -> tuple[str, ...]:
        try:
            return tuple(find_classes(folder)[0])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no class folders in {shown(folder)}; the root must hold {self.layout}") from error


def _is_image(name: str) -> bool:
    return bool(has_file_allowed_extension(name, IMG_EXTENSIONS))
