"""The embedded images: real scans, each in one split, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_distill.data import DigitsImages
from lit_distill.data.moving_digits.making import load_sources


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the set's folder is in."""
    folder = tmp_path_factory.mktemp("digits") / "not there yet"
    DigitsImages(root=folder).prepare_data()
    return folder


def files(root: Path, split: str) -> list[Path]:
    return sorted((root / "digits_images" / split).rglob("*.png"))


def test_files_are_the_scans_each_in_one_split(root: Path) -> None:
    assert [len(files(root, split)) for split in ("train", "val", "test")] == [1000, 250, 547]
    written = [[np.asarray(Image.open(file)) for file in files(root, split)] for split in ("train", "val", "test")]
    scans = (load_sources().scans * 255).round().astype("uint8")
    assert sorted(scan.tobytes() for scan in scans) == sorted(scan.tobytes() for part in written for scan in part)
    assert {scan.shape for part in written for scan in part} == {(8, 8)}


def test_batches_have_few_labels_and_images_as_they_are(root: Path) -> None:
    data = DigitsImages(root=root, batch_size=64, num_workers=0, labelled_share=0.08, unlabelled_share=0.75)
    data.setup("fit")
    images, labels, indices = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert (labels >= 0).tolist() == [True] * 16 + [False] * 48
    assert len(data.train_dataloader()) == 5
    sample = data.datasets["train"].samples[int(indices[0])]
    assert torch.equal(images[0, 1], torch.from_numpy(np.asarray(Image.open(sample.name)).copy()))
    assert data.class_names == tuple("0123456789")


def test_an_image_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DigitsImages(root=root)
    data.setup("validate")
    first = data.datasets["val"][7]
    monkeypatch.setattr("lit_distill.data.images.read_image", lambda path: pytest.fail("decoded again"))
    assert data.datasets["val"][7] is first


def test_what_is_there_is_not_written_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_distill.data.digits_images.load_sources", lambda: pytest.fail("written again"))
    DigitsImages(root=root).prepare_data()
    with pytest.raises(ValueError, match="of the digits is 10, got 4"):
        DigitsImages(root=root, num_classes=4)
