from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lit_distill.data import VideoDataModule, VideoError, write_video
from lit_distill.data import cache as cache_module
from lit_distill.data.cache import ClipCache
from lit_distill.data.sources import videos as videos_module

from .conftest import grey, moving_bars, write_images, write_lines
from .test_datamodule import make
from .test_loading import epochs

MB = 10**6
SHAPE = (4, 6)


class Decoder:
    """Frames that are a function of their number, counted."""

    def __init__(self, fails: Callable[[Sequence[int]], bool] = lambda numbers: False) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        self.calls += 1
        if self.fails(numbers):
            raise VideoError("a.mp4", "damaged")
        rng = [np.random.default_rng(number) for number in numbers]
        return np.stack([generator.integers(0, 256, (*SHAPE, 3), np.uint8) for generator in rng])


def read(cache: ClipCache, decode: Decoder, numbers: Sequence[int], video: range | None, key: str = "a") -> None:
    frames = cache.read(key, numbers, decode, shape=lambda: SHAPE, video=video)
    np.testing.assert_array_equal(frames, Decoder()(numbers))


def entries(cache: ClipCache) -> list[Path]:
    return sorted(cache.folder.glob("??/*"))


@pytest.mark.parametrize("video", [None, range(9), range(1, 10)], ids=["clip", "video", "from 1"])
@pytest.mark.parametrize("memory", [True, False])
def test_what_it_gives_is_what_decoding_gives(tmp_path: Path, video: range | None, memory: bool) -> None:
    cache = ClipCache.in_memory(MB) if memory else ClipCache(tmp_path, limit=MB)
    decode = Decoder()
    wanted = [[1, 3, 8]] * 3 if video is None else [[1, 3, 8], [2, 4, 8], [1, 2, 3, 4, 5]]
    for numbers in wanted:
        read(cache, decode, numbers, video)
    assert decode.calls == 1
    assert cache.stats()[:3] == (2, 1, 0)
    assert cache.stats().bytes == sum(file.stat().st_size for file in entries(cache))
    read(cache, decode, [1, 3, 8], video, key="b")
    assert decode.calls == 2


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: b"X" + content[1:],
        lambda content: content[:8] + b"\1" + content[9:],
        lambda content: content[:26] + bytes([content[26] ^ 1]) + content[27:],
        lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
    ],
    ids=["cut", "cut in the head", "empty", "longer", "magic", "rows", "sum", "frame"],
)
def test_a_damaged_entry_is_remade(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    cache, decode = ClipCache(tmp_path, limit=MB), Decoder()
    read(cache, decode, [3, 8], range(9))
    (file,) = entries(cache)
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    read(cache, decode, [3, 8], range(9))
    assert (decode.calls, cache.stats().remade) == (2, 1)
    assert file.read_bytes() == whole
    read(cache, decode, [0, 1], range(9))
    assert decode.calls == 2


@pytest.mark.parametrize(
    "plant",
    [
        lambda entry: entry.symlink_to("nowhere"),
        lambda entry: entry.symlink_to(entry.name),
        lambda entry: entry.mkdir(),
        lambda entry: os.mkfifo(entry),
        lambda entry: (entry.parent.rmdir(), entry.parent.write_text("x")),
    ],
    ids=["a link to nothing", "a link to itself", "a folder", "a pipe", "a file in place of the folder"],
)
def test_what_others_put_into_an_open_folder_ends_no_run(tmp_path: Path, plant: Callable[[Path], Any]) -> None:
    entry = ClipCache(tmp_path, limit=MB)._file("a", range(9))
    entry.parent.mkdir()
    plant(entry)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*takes no more")
        read(ClipCache(tmp_path, limit=MB), Decoder(), [3, 8], range(9))


def test_a_full_cache_takes_no_more_and_says_so_once(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path, limit=1000)
    with pytest.warns(UserWarning, match=r"takes no more: its limit of 1e-06 GB .* Set data\.cache_gb=<more>") as told:
        _fill(cache, 20)
    assert len(told) == 1
    assert cache.stats().full
    held = len(entries(cache))
    assert held == 1000 // (24 + 4 + 4 * 6 * 3)
    assert cache.stats().bytes <= 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fill(cache, 20)
    assert cache.stats().hits == held
    assert len(entries(cache)) == held


def test_a_full_disk_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, decode = ClipCache(tmp_path, limit=MB), Decoder()

    def full(output: object, frames: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "_write_entry", full)
    with pytest.warns(UserWarning, match="takes no more: No space left on device"):
        read(cache, decode, [1], range(9))
    read(cache, decode, [1], range(9))
    assert entries(cache) == []
    assert cache.stats().bytes == 0


def test_the_disk_is_used_by_the_next_run_within_its_limit(tmp_path: Path) -> None:
    decode = Decoder()
    for _ in range(2):
        cache = ClipCache(tmp_path, limit=MB)
        read(cache, decode, [1, 2], range(9))
    assert decode.calls == 1
    assert cache.stats()[:2] == (1, 0)
    assert ClipCache(tmp_path, limit=MB).stats().bytes == cache.stats().bytes > 0


def test_a_video_of_which_only_a_part_decodes_is_not_kept(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path, limit=MB)
    for _ in range(2):
        read(cache, Decoder(lambda numbers: 7 in numbers), [1, 2], range(9))
    assert entries(cache) == []
    assert cache.stats().bytes == 0
    with pytest.raises(VideoError, match="damaged"):
        cache.read("a", [7], Decoder(lambda numbers: True), shape=lambda: SHAPE, video=range(9))
    with pytest.raises(VideoError, match="damaged"):
        cache.read("a", [7], Decoder(lambda numbers: True), shape=lambda: SHAPE)
    assert entries(cache) == []


def _fill(cache: ClipCache, clips: int = 30) -> None:
    decode = Decoder()
    for number in range(clips):
        read(cache, decode, [number], None)


@pytest.mark.parametrize("other", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_fill_one_cache(other: Any) -> None:
    cache = ClipCache.in_memory(MB)
    contexts: list[Any] = [multiprocessing.get_context(method) for method in ("fork", other)]
    processes = [context.Process(target=_fill, args=(cache,)) for context in contexts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(cache.stats()[:2]) == 60
    assert len(entries(cache)) == 30
    calls = Decoder()
    read(cache, calls, [29], None)
    assert calls.calls == 0
    assert cache.folder.is_dir()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_memory_goes_with_its_owner_and_after_it(umask: int) -> None:
    """Where files of a group are written by default, as most systems have it, leftovers stayed for ever."""
    before = os.umask(umask)
    try:
        _check_memory_goes()
    finally:
        os.umask(before)


def _check_memory_goes() -> None:
    cache = ClipCache.in_memory(MB)
    folder = cache.folder
    other = ClipCache.in_memory(MB)
    assert folder.is_dir()  # another cache leaves one in use alone
    del cache
    assert not folder.exists()
    read, write = multiprocessing.Pipe(duplex=False)
    killed = multiprocessing.get_context("fork").Process(target=_make_and_die, args=(write,))
    killed.start()
    abandoned = Path(read.recv())
    killed.join()
    assert abandoned.is_dir()
    ClipCache.in_memory(MB)
    assert not abandoned.exists()
    assert other.folder.is_dir()


def _make_and_die(told: Any) -> None:
    cache = ClipCache.in_memory(MB)
    told.send(str(cache.folder))
    os._exit(9)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("views", "given"),
    [
        ("center", {"resize": "decoder", "scale": 48, "multi_scale": False}),  # nothing is resized
        ("center", {"resize": "exact"}),
        ("dense", {"resize": "exact"}),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_batches_are_those_of_reading_without_it(
    videos: Path, tmp_path: Path, kind: str, views: str, given: dict[str, Any], workers: int
) -> None:
    given = {**given, "views": views, "num_frames": 4, "eval_batch_size": 4}
    plain = epochs(make(videos, **given))
    data = make(videos, **given, cache=kind, cache_dir=tmp_path, num_workers=workers)
    for one, other in zip(plain, epochs(data), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert data.clip_cache is not None
    hits, misses, *_ = data.clip_cache.stats()
    assert hits + misses == 2 * (12 + 7)
    assert misses == 12 + 7


def test_a_clip_is_the_same_whether_its_video_found_room_or_not(videos: Path, tmp_path: Path) -> None:
    roomy = epochs(make(videos, cache="disk", cache_dir=tmp_path / "roomy"))
    with pytest.warns(UserWarning, match="takes no more"):
        full = list(epochs(make(videos, cache="disk", cache_dir=tmp_path / "full", cache_gb=1e-6)))
    for one, other in zip(roomy, full, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_epochs_after_the_first_decode_nothing(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(videos, cache="memory", views="dense")
    reads = epochs(data)
    for _ in range(3 + 7):
        next(reads)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a video was decoded")

    monkeypatch.setattr(videos_module, "read_frames", refuse)
    assert len(list(reads)) == 3 + 7


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.txt", ["a.mp4 0", "b.mp4 1"])
    write_video(tmp_path / "b.mp4", moving_bars(9))
    cached = make(tmp_path, val_list="train.txt", cache="disk", cache_dir=tmp_path / "cache", batch_size=2)
    for seed in (1, 2):
        write_video(tmp_path / "a.mp4", moving_bars(9, seed=seed))
        plain = make(tmp_path, val_list="train.txt", batch_size=2)  # the same in evaluation
        for one, other in zip(plain.val_dataloader(), cached.val_dataloader(), strict=True):
            assert torch.equal(one[0], other[0])


def test_folders_of_frames(tmp_path: Path) -> None:
    write_images(tmp_path / "a", grey(9, 20))
    write_images(tmp_path / "b", grey(5, 40))
    write_lines(tmp_path / "list.txt", ["a 9 0", "b 5 1"])

    def loaded(**arguments: Any) -> Iterator[Any]:
        data = make(tmp_path, train_list="list.txt", val_list="list.txt", format="frames", batch_size=2, **arguments)
        return epochs(data)

    for _ in range(2):
        both = zip(loaded(), loaded(cache="disk", cache_dir=tmp_path / "cache"), strict=True)
        for one, other in both:
            assert torch.equal(one[0], other[0])
        write_images(tmp_path / "b", grey(5, 45))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": "ram"}, r"data\.cache is 'none', 'memory' or 'disk', got 'ram'"),
        ({"cache_gb": 0}, r"data\.cache_gb must be above 0, got 0"),
    ],
)
def test_arguments_are_checked(videos: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(videos, **arguments)


def test_without_it_nothing_is_kept(videos: Path, tmp_path: Path) -> None:
    data: VideoDataModule = make(videos, cache_dir=tmp_path)
    list(epochs(data))
    assert data.clip_cache is None
    assert list(tmp_path.iterdir()) == []
