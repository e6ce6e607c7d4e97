"""Folders of others: links in circles, and folders in folders without end, are walked to an end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from lit_distill.data.sources.images import ImageFolders
from lit_distill.inference.inputs import find_inputs
from lit_distill.untrusted import folders
from lit_distill.untrusted.folders import MAX_DEPTH, files_below

IMAGES: Any = SimpleNamespace(sampling=None, source=None, suffix="img_{:05}.jpg")


def picture(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)
    return file


def sources(root: Path) -> ImageFolders:
    return ImageFolders(root=root, folders={"train": "train"}, num_classes=2)


def nested(folder: Path, depth: int) -> None:
    """No deeper than pytest can remove."""
    folder.mkdir(parents=True)
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


def test_links_in_circles_are_walked_once(tmp_path: Path) -> None:
    """Two links to the folder above are a million ways after twenty steps, each of which has pictures."""
    for name in ("cat", "dog"):
        picture(tmp_path / "train" / name / "a.png")
        for link in ("x", "y"):
            (tmp_path / "train" / name / link).symlink_to("..")
    begun = time.process_time()
    found = sources(tmp_path).samples("train")
    assert time.process_time() - begun < 1
    assert [Path(sample.path).parent.name for sample in found if sample.label == 0].count("cat") == 1


def test_chains_of_links_are_walked_once(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.png")
    picture(tmp_path / "train" / "dog" / "a.png")
    for number in range(30):
        (tmp_path / f"d{number}").mkdir()
        for link in ("x", "y"):
            (tmp_path / f"d{number}" / link).symlink_to(tmp_path / f"d{number + 1}")
    (tmp_path / "d30").mkdir()
    (tmp_path / "train" / "dog" / "z").symlink_to(tmp_path / "d0")
    assert len(sources(tmp_path).samples("train")) == 2


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 400])
def test_folders_nest_to_a_depth(depth: int, tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.png")
    nested(tmp_path / "train" / "dog", depth)
    for act in (
        lambda: sources(tmp_path).samples("train"),
        lambda: sources(tmp_path).unlabelled("train"),
        lambda: find_inputs(tmp_path, IMAGES),
    ):
        with pytest.raises(ValueError, match="at most 100 folders in each other"):
            act()


def test_entries_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LIST_LINES", 9)
    for number in range(9):
        (tmp_path / str(number)).touch()
    assert len(next(files_below(tmp_path))[1]) == 9
    (tmp_path / "more").mkdir()
    with pytest.raises(ValueError, match="at most 9 entries"):
        list(files_below(tmp_path))


def test_the_order_is_that_of_torchvision(tmp_path: Path) -> None:
    """Labels and the order of samples are part of what is trained."""
    for name in ("b.png", "a.PNG", "sub/c.jpg", "sub-1/d.jpeg", "sub/deep/e.webp", "Z/f.png", "note.txt"):
        file = tmp_path / "train" / "dog" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(file) if not name.endswith("txt") else file.touch()
    elsewhere = picture(tmp_path / "other" / "g.png").parent
    (tmp_path / "train" / "cat").mkdir()
    (tmp_path / "train" / "cat" / "linked").symlink_to(elsewhere)
    found = [(sample.path, sample.label) for sample in sources(tmp_path).samples("train")]
    assert found == ImageFolder(tmp_path / "train").samples


def test_a_folder_that_cannot_be_read_has_no_files(tmp_path: Path) -> None:
    assert list(files_below(tmp_path / "none")) == [(str(tmp_path / "none"), [])]
