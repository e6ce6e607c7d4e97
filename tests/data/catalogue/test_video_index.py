from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_distill.data import Limits, VideoDataModule, VideoError, scan, write_video
from lit_distill.data.catalogue import video_index as module
from lit_distill.data.catalogue.video_index import VideoIndex

from ..conftest import moving_bars
from ..recorder import Recorder, quiet_trainer


@pytest.fixture
def root(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual root, and a cache folder of the test's own."""
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(videos, tmp_path / "root"))


def make(root: Path, **arguments: Any) -> VideoDataModule:
    given = {
        "root": root, "train_list": "train.txt", "val_list": "val.txt", "num_classes": 3, "num_frames": 4, "size": 28,
        "scale": 32, "batch_size": 4, "num_workers": 0,
    }  # fmt: skip
    return VideoDataModule(**{**given, **arguments})


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that has a byte for each scan, in whatever process."""
    file = tmp_path / "scans"
    file.touch()

    def counted(source: Any, **limits: Any) -> Any:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)
        return scan(source, **limits)

    monkeypatch.setattr(module, "scan", counted)
    return file


def fit(root: Path, epochs: int, **arguments: Any) -> Recorder:
    recorder = Recorder()
    quiet_trainer(max_epochs=epochs, limit_val_batches=0).fit(recorder, datamodule=make(root, **arguments))
    return recorder


@pytest.mark.parametrize("workers", [0, 2])
def test_videos_are_scanned_in_the_first_epoch_only(root: Path, scans: Path, workers: int) -> None:
    fit(root, 1, num_workers=workers)
    assert scans.stat().st_size == 12
    fit(root, 2, num_workers=workers)
    assert scans.stat().st_size == 12, "a later run knows what an earlier one found"


@pytest.mark.parametrize("workers", [0, 2])
def test_later_epochs_know_what_other_workers_found(root: Path, scans: Path, workers: int) -> None:
    fit(root, 4, num_workers=workers)
    assert scans.stat().st_size == 12


def clips(root: Path, **arguments: Any) -> list[torch.Tensor]:
    data = make(root, **arguments)
    return [inputs for loader in (data.train_dataloader(), data.val_dataloader()) for inputs, _, _ in loader]


def test_results_are_the_same_without_with_and_with_a_stale_index(root: Path) -> None:
    without = clips(root, index=False)
    assert not list((root.parent / "cache").rglob("*.jsonl"))
    first, again = clips(root), clips(root)
    # other videos of other lengths, under the names of known ones
    write_video(root / "jump/0.mp4", moving_bars(41, seed=50))
    write_video(root / "run/2.mp4", moving_bars(7, seed=51))
    stale, fresh = clips(root), clips(root, index=False)
    for one, *others in zip(without, first, again, strict=True):
        assert all(torch.equal(one, other) for other in others)
    assert all(torch.equal(one, other) for one, other in zip(stale, fresh, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(stale, first, strict=True))


def test_the_same_size_at_another_time_is_another_video(root: Path, scans: Path) -> None:
    index, path = VideoIndex(root), str(root / "run/0.mp4")
    index.layout(path)
    index.layout(path)
    assert scans.stat().st_size == 1
    os.utime(path, ns=(0, 0))
    index.layout(path)
    assert scans.stat().st_size == 2


def test_torn_and_foreign_lines_are_passed_over(root: Path, scans: Path) -> None:
    names = [str(root / name) for name in ("run/0.mp4", "run/1.mp4", "run/2.mp4")]
    index = VideoIndex(root)
    right = [index.layout(name) for name in names]
    content = index.file.read_bytes()
    lines = content.splitlines()
    stamp = [os.stat(names[2]).st_size, os.stat(names[2]).st_mtime_ns]
    foreign = [
        b"\xff\xfe\x00", b"{}", b"[]", b"3", b'["run/2.mp4", 1, 2, "headers", null]', b"null", b'"text"',
        json.dumps(["run/2.mp4", *stamp, "headers", {"info": 3}]).encode(),
        json.dumps(["run/2.mp4", *stamp, "magic", right[2].to_json()]).encode(),
        json.dumps(["run/2.mp4", *stamp, "headers", {**right[2].to_json(), "info": {"frames": -1}}]).encode(),
    ]  # fmt: skip
    index.file.write_bytes(b"\n".join([*lines[:-1], lines[-1][:40], *foreign, lines[-1][:60]]))  # torn at the end
    again = VideoIndex(root)
    again.load()
    assert [again.layout(name) for name in names] == right
    last = VideoIndex(root)  # what was added behind the torn line is whole
    last.load()
    assert [last.layout(name) for name in names] == right
    assert scans.stat().st_size == 3 + 1


def test_a_torn_line_of_every_length(root: Path, scans: Path) -> None:
    index, path = VideoIndex(root), str(root / "run/0.mp4")
    right = index.layout(path)
    content = index.file.read_bytes()
    for length in range(0, len(content), 7):
        index.file.write_bytes(content[:length])
        torn = VideoIndex(root)
        torn.load()
        assert torn.layout(path) == right
        whole = VideoIndex(root)
        whole.load()
        assert whole.find(path) is not None
    assert scans.stat().st_size > len(content) // 8


def _add(root: str, numbers: list[int], count: int) -> None:
    index = VideoIndex(root)
    layout = scan(f"{root}/run/0.mp4")
    for number in numbers:
        for other in range(count):
            index.put(f"{root}/{number}/{other}.mp4", layout, stamp=(number, other))


def test_processes_write_side_by_side(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(str(root), [number], 200)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    index = VideoIndex(root)
    assert index.load() == 600
    for number in range(3):
        for other in range(200):
            assert index.find(f"{root}/{number}/{other}.mp4", stamp=(number, other)) is not None


def test_it_is_not_in_the_data(root: Path) -> None:
    before = set(root.rglob("*"))
    clips(root)
    assert set(root.rglob("*")) == before
    (file,) = (root.parent / "cache" / "index").iterdir()
    assert json.loads(file.read_text().split("\n")[1 if file.read_text()[0] == "\n" else 0])["root"] == str(root)


def test_a_folder_that_cannot_be_written_is_warned_of_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    index = VideoIndex(root, folder=tmp_path / "file")
    with pytest.warns(UserWarning, match=r"the video index .* can't be used .*LIT_DISTILL_CACHE") as told:
        layouts = [index.layout(str(root / f"run/{number}.mp4")) for number in range(3)]
    assert len(told) == 1
    assert [layout.info.frames for layout in layouts] == [20, 5, 12]


def test_limits_hold_for_known_videos_too(root: Path) -> None:
    index, path = VideoIndex(root), str(root / "run/0.mp4")
    with pytest.raises(VideoError) as unknown:
        index.layout(path, limits=Limits(frames=19))
    index.layout(path)
    with pytest.raises(VideoError) as known:
        index.layout(path, limits=Limits(frames=19))
    assert str(known.value) == str(unknown.value)


def test_bad_videos_are_not_kept(root: Path, scans: Path) -> None:
    (root / "run/0.mp4").write_bytes(b"\0" * 99)
    index = VideoIndex(root)
    for _ in range(2):
        with pytest.raises(VideoError, match=r"run/0\.mp4: "):
            index.layout(str(root / "run/0.mp4"))
    assert scans.stat().st_size == 2
    assert index.load() == 0


def test_it_pickles(root: Path) -> None:
    index = VideoIndex(root)
    index.layout(str(root / "run/0.mp4"))
    entry = pickle.loads(pickle.dumps(index)).find(str(root / "run/0.mp4"))
    assert entry is not None
    assert entry.layout.info.frames == 20
