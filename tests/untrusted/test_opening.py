"""What others made is opened without waiting, as a regular file, within a limit; what is this user's is private."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lit_distill import _files
from lit_distill.checkpoints import read_checkpoint
from lit_distill.data import VideoError, read_frames, read_images
from lit_distill.data.cache import ClipCache
from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.lists import ListFile, read_class_names, read_list
from lit_distill.data.catalogue.video_index import VideoIndex
from lit_distill.data.preprocess import Preprocess
from lit_distill.data.sources.images import read_image
from lit_distill.data.sources.shards import Shards, shard_names
from lit_distill.inference.inputs import find_inputs
from lit_distill.inference.onnx_files import OnnxNetwork
from lit_distill.models.state_files import file_sha256, read_state
from lit_distill.paddlevideo.yaml_lines import Source
from lit_distill.runs.artifacts import read_json
from lit_distill.runs.metrics_csv import append_row, read_numbers
from lit_distill.runs.opened import load_run
from lit_distill.runs.processes import alone_in
from lit_distill.teacher_cache.shards import Budget, Shard, write_shard
from lit_distill.training.start_from import start_from
from lit_distill.untrusted.budgets import lines_of
from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted, private_folder, read_untrusted
from lit_distill.untrusted.plain import read_plain

NOBODY = 65534


@pytest.fixture(autouse=True)
def in_a_second() -> Iterator[None]:
    """Whatever waits for the other end of a pipe fails after a second."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def start_the_second() -> None:
    signal.setitimer(signal.ITIMER_REAL, 1)


def given_away(path: Path) -> None:
    """Make it another user's."""
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(path, NOBODY, NOBODY)


def shard_of(file: Path) -> object:
    listed = ListFile(file=file.name, key="data.train_list", root=file.parent, num_classes=2)
    return Shards(archives=Archives(file.parent)).samples(listed)


def listed(file: Path) -> object:
    return read_list(file, root=file.parent, num_classes=2)


def entered(block: AbstractContextManager[object]) -> None:
    with block:
        pass


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "list": ("train.txt", listed),
    "class names": ("names.txt", lambda file: read_class_names(file, 2)),
    "inputs": ("inputs.txt", lambda file: find_inputs(file, cast("Preprocess", None))),
    "list of shards": ("train.txt", lambda file: shard_names(file.name, Archives(file.parent))),
    "shard": ("train-0.tar", shard_of),
    "archive": ("train-0.tar", lambda file: Archives(file.parent).read(str(file), 0, 1)),
    "config": ("config.yaml", read_plain),
    "run": ("config.yaml", lambda file: load_run(file.parent)),
    "config of PaddleVideo": ("config.yaml", Source),
    "results": ("results.json", read_json),
    "quarantine": ("quarantine.json", read_json),
    "metrics": ("metrics.csv", lambda file: list(read_numbers(file))),
    "metrics to add to": ("metrics.csv", lambda file: append_row(file, ["step"], {"step": "1"})),
    "safetensors": ("a.safetensors", read_state),
    "pdparams": ("a.pdparams", read_state),
    "pth": ("a.pth", read_state),
    "checkpoint": ("a.ckpt", read_checkpoint),
    "start": ("a.safetensors", lambda file: start_from(torch.nn.Linear(1, 1), file.name, name="a", folder=file.parent)),
    "ONNX": ("a.onnx", OnnxNetwork),
    "video": ("a.mp4", lambda file: read_frames(file, [0])),
    "image": ("a.png", read_image),
    "frame": ("img_00001.jpg", lambda file: read_images(file.parent, "img_{:05}.jpg", [1])),
    "teacher cache": ("a.shard", lambda file: Shard(file, 1)),
    "teacher cache's lock": ("lock", lambda file: entered(Budget(file.parent, 1).room())),
    "clip cache's ledger": ("ledger", lambda file: ClipCache(file.parent, limit=1)),
    "comparison's lock": (".lock", lambda file: entered(alone_in(file.parent))),
}


def linked_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "link to a pipe": linked_pipe,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    KINDS[kind](tmp_path / name)
    start_the_second()
    with pytest.raises((ValueError, OSError, VideoError)) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_refusal_says_what_was_expected_what_was_given_and_what_to_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.txt")
    reason = "expected a list, a regular file, got a named pipe: give a file that holds the content"
    with pytest.raises(UntrustedFileError) as caught:
        open_untrusted(tmp_path / "train.txt", what="a list")
    assert str(caught.value) == f"{tmp_path / 'train.txt'}: {reason}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a"))
        with pytest.raises(UntrustedFileError, match="got a socket"):
            open_untrusted(tmp_path / "a", what="a list")
    with pytest.raises(UntrustedFileError, match="got a folder"):
        open_untrusted(tmp_path, what="a list")
    with pytest.raises(FileNotFoundError):
        open_untrusted(tmp_path / "b", what="a list")


def test_too_many_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert read_untrusted(file, what="a list", limit=5) == b"12345"
    with pytest.raises(UntrustedFileError, match="at most 4 bytes, got 5"):
        read_untrusted(file, what="a list", limit=4)
    with file.open("r+b") as hollow:
        hollow.truncate(1 << 40)
    with pytest.raises(UntrustedFileError, match="sparse"):
        open_untrusted(file, what="a list")


def test_own_files_are_this_users_and_written_by_nobody_else(tmp_path: Path) -> None:
    file, link, other = tmp_path / "a", tmp_path / "link", tmp_path / "other"
    file.touch(mode=0o600)
    link.symlink_to(file)
    other.touch()
    open_untrusted(file, what="a lock", own=True).close()
    with pytest.raises(UntrustedFileError, match="a symbolic link"):
        open_untrusted(link, what="a lock", own=True)
    file.chmod(0o620)
    with pytest.raises(UntrustedFileError, match="mode 0620"):
        open_untrusted(file, what="a lock", own=True)
    given_away(other)
    with pytest.raises(UntrustedFileError, match=f"of user {NOBODY}"):
        open_untrusted(other, what="a lock", own=True)


def test_folders_of_caches_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "new" / "clips")
        (tmp_path / "old").mkdir()
        private_folder(tmp_path / "old")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "new/clips", "old")]
    assert modes == [0o700, 0o700, 0o777]
    given_away(tmp_path / "old")
    with pytest.raises(UntrustedFileError, match="of this user"):
        private_folder(tmp_path / "old")


def test_what_caches_write_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = ClipCache(tmp_path / "clips", limit=10**6)
        cache.read("a", [0], lambda numbers: np.zeros((len(numbers), 2, 2, 3), np.uint8), shape=lambda: (2, 2))
        write_shard(tmp_path / "teachers" / "a.shard", [b"k" * 16], np.zeros((1, 1), np.uint8))
        _files.write_text(tmp_path / "shared.json", "{}")
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 4
    assert {path.name for path in made if path.stat().st_mode & 0o077} == {"shared.json"}, "outputs follow the umask"


def test_entries_of_another_user_are_not_believed(tmp_path: Path) -> None:
    def decode(numbers: object) -> np.ndarray:
        return np.ones((1, 2, 2, 3), np.uint8)

    cache = ClipCache(tmp_path / "clips", limit=10**6)
    cache.read("a", [0], decode, shape=lambda: (2, 2))
    (entry,) = tmp_path.rglob("*.clip")
    write_shard(tmp_path / "a.shard", [b"k" * 16], np.zeros((1, 1), np.uint8))
    given_away(entry)
    given_away(tmp_path / "a.shard")
    assert cache.read("a", [0], decode, shape=lambda: (2, 2)).all()
    assert cache.stats().remade == 1
    with pytest.raises(UntrustedFileError, match=f"of user {NOBODY}"):
        Shard(tmp_path / "a.shard", 1)
    index = VideoIndex(tmp_path, folder=tmp_path / "index")
    index.file.parent.mkdir()
    index.file.touch()
    given_away(index.file)
    with pytest.warns(UserWarning, match="can't be used"):
        assert index.load() == 0


@pytest.mark.parametrize("kind", ["pipe", "link", "foreign"])
def test_a_foreign_folder_in_shared_memory_hangs_nobody(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lit_distill-clips-foreign"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "owner")
    elif kind == "link":
        os.mkfifo(tmp_path / "pipe")
        (folder / "owner").symlink_to(tmp_path / "pipe")
    else:
        (folder / "owner").touch()
        given_away(folder)
    monkeypatch.setattr("lit_distill.data.cache._SHARED", tmp_path)
    start_the_second()
    cache = ClipCache.in_memory(10**6)
    assert folder.is_dir()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_leftovers_that_are_pipes_hang_no_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.json.01234567.tmp")
    start_the_second()
    _files.write_text(tmp_path / "a.json", "{}")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert read_state(tmp_path / "a.safetensors")["a"].item() == 1


def test_a_limit_costs_no_memory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "student.onnx").write_bytes(b"abc")
    assert read_untrusted(tmp_path / "student.onnx", what="an ONNX file", limit=2**50) == b"abc"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a file whose content is longer than its size")
def test_a_file_that_gives_more_than_its_size_is_refused() -> None:
    with pytest.raises(UntrustedFileError, match="a list, got 0 bytes, but it grows"):
        read_untrusted("/proc/self/status", what="a list", limit=10**6)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="a file of no size and of terabytes")
def test_a_file_of_no_size_that_never_ends_is_refused_at_once() -> None:
    for read in (lambda path: list(lines_of(path, what="a list")), file_sha256):
        start_the_second()
        with pytest.raises(UntrustedFileError, match="got 0 bytes, but it grows"):
            read(Path("/proc/self/pagemap"))
