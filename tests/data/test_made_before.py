"""Shards, cached frames and indexes that earlier releases made are still used: tests/fixtures/make_shards.py."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fixtures import make_shards
from lit_distill.data import VideoDataModule
from lit_distill.data.catalogue import video_index as index_module
from lit_distill.data.catalogue.video_index import VideoIndex
from lit_distill.data.sources import shards as shards_module

RELEASES = sorted(path for path in make_shards.HERE.iterdir() if path.is_dir())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a release made, in another folder: its videos are those in its shards."""
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(request.param, tmp_path / "root")
    names = iter(("a.mp4", "b.mp4", "c.mp4"))
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as content:
            for member in content.getmembers():
                if member.name.endswith(".mp4"):
                    file = content.extractfile(member)
                    assert file is not None
                    (folder / next(names)).write_bytes(file.read())
    (folder / "videos.txt").write_text("a.mp4 0\nb.mp4 1\nc.mp4 2\n")
    (folder / "frames.txt").write_text("frames 4 1\n")
    make_shards.touch(folder)
    return folder


def known(root: Path) -> Any:
    return json.loads((root / "known.json").read_text().replace("{root}", str(root)))


@pytest.mark.parametrize("format", make_shards.FORMATS)
def test_cached_frames_are_asked_for_by_the_same_keys(root: Path, format: str) -> None:
    expected = json.loads((root / "known.json").read_text())["keys"][format]
    assert make_shards.keys_of(root, format) == expected


def test_shards_are_read_and_their_index_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = VideoDataModule(
        root=root, train_list="train.txt", val_list="train.txt", num_classes=3, num_frames=2, size=24, scale=24,
        format="shards", num_workers=0, eval_batch_size=3,
    )  # fmt: skip
    (batch,) = data.val_dataloader()
    inputs, target, _ = batch
    assert target.tolist() == [0, 1, 2]
    for label, (first, second) in enumerate(inputs.float().mean((2, 3, 4)).tolist()):
        frames = make_shards.grey(6 + label, 8 + label).mean((1, 2, 3)).tolist()
        assert min(abs(first - level) for level in frames) < 4
        assert 20 < second - first < 40
    scanned: list[str] = []
    folder = Path(os.environ["LIT_DISTILL_CACHE"], "shards")
    shutil.rmtree(folder)
    folder.mkdir()
    for record in known(root)["shards"]:
        name = hashlib.sha256(record["shard"].encode()).hexdigest()[:32]
        (folder / f"{name}.json").write_text(json.dumps(record))
    monkeypatch.setattr(shards_module, "scan_shard", lambda _, path, __: scanned.append(path))
    data.datasets.clear()
    data.setup("validate")
    assert len(data.datasets["val"]) == 3
    assert not scanned


def test_the_index_of_videos_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = VideoIndex(root)
    index.file.parent.mkdir(parents=True)
    lines = [{"lit_distill": "video index"}, *known(root)["videos"]]
    index.file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    monkeypatch.setattr(index_module, "scan", None)
    index.load()
    assert index.layout(str(root / "a.mp4")).info.frames == 6
