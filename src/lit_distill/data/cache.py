"""A cache of decoded clips, of bytes, for sets that are small enough: in memory or on disk, shared by all workers."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import shutil
import struct
import tempfile
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

import av
import numpy as np
import PIL

from lit_distill._files import create_file
from lit_distill.data.decoding.frames import Frames
from lit_distill.data.decoding.layout import VideoError
from lit_distill.untrusted.opening import (
    UntrustedFileError,
    open_descriptor,
    open_untrusted,
    private_folder,
)

try:
    import fcntl
except ModuleNotFoundError:  # Windows: counts may then be off, clips not
    fcntl = None  # type: ignore[assignment]

Decode: TypeAlias = Callable[[Sequence[int]], Frames]
Shape: TypeAlias = Callable[[], tuple[int, int]]

_MAGIC: Final = b"LDCLIP1\n"
_HEAD: Final = struct.Struct("<8sIIII")  # magic; rows, height, width; CRC-32 of them and of the sums
_LEDGER: Final = struct.Struct("<5q")
_HITS, _MISSES, _REMADE, _BYTES, _FULL = range(5)
_ENDING: Final = ".clip"
_PREFIX: Final = "lit_distill-clips-"
_LOCK: Final = "owner"
_SHARED: Final = Path("/dev/shm")
_AT_ONCE: Final = 128  # frames
_LARGEST: Final = 1 << 30  # bytes of an entry


class CacheStats(NamedTuple):
    """What a cache has done and holds, over all processes that share it; ``remade`` were damaged."""

    hits: int
    misses: int
    remade: int
    bytes: int
    full: bool
    limit: int

    def __str__(self) -> str:
        asked = self.hits + self.misses
        share = f"{100 * self.hits / asked:.0f} % of {asked} clips" if asked else "no clips yet"
        notes = (f", {self.remade} damaged entries remade" if self.remade else "") + (", full" if self.full else "")
        return f"{share} from the cache, {self.bytes / 1e9:.2f} of {self.limit / 1e9:.2f} GB{notes}"


class ClipCache:
    """Decoded frames by video, one file an entry, the same bytes that decoding gives.

    Entries are written whole or not at all and never replaced while valid. Each has the CRC-32 of every frame; one that
    is truncated or damaged is decoded and written again. When the limit is reached nothing is added any more, which is
    said once; nothing is evicted. A video of more than 1 GiB of frames is left out.

    All processes that were given this object, by fork or by pickle, share its entries: pages of files, which the system
    keeps once. Reads copy the wanted frames only, and through ``read`` instead of a mapping: a file that is cut short
    under a mapping ends the process.

    Args:
        folder: where the entries are.
        limit: most bytes that they may take.
        check: whether the frames' checksums are compared on each read.

    Example:
        >>> cache = ClipCache.in_memory(10**6)
        >>> calls = []
        >>> def decode(numbers):
        ...     calls.append(list(numbers))
        ...     return np.stack([np.full((2, 2, 3), number, np.uint8) for number in numbers])
        >>> def read():
        ...     return cache.read("a.mp4", [1, 3], decode, shape=lambda: (2, 2), video=range(5))
        >>> [read()[:, 0, 0, 0].tolist() for _ in range(2)]
        [[1, 3], [1, 3]]
        >>> calls, str(cache.stats())
        ([[0, 1, 2, 3, 4]], '50 % of 2 clips from the cache, 0.00 of 0.00 GB')
    """

    def __init__(self, folder: str | os.PathLike[str], *, limit: int, check: bool = True) -> None:
        if limit < 1:
            raise ValueError(f"a cache of clips needs a limit of at least 1 byte, got {limit}: set data.cache_gb")
        self.folder, self.limit, self.check = Path(folder), limit, check
        private_folder(self.folder)
        with self._ledger() as numbers:
            numbers[_BYTES] = sum(map(_size_of, self.folder.glob(f"??/*{_ENDING}")))
            numbers[_FULL] = 0
            self._before = numbers[:3]

    @classmethod
    def in_memory(cls, limit: int) -> ClipCache:
        """A cache in shared memory, or in a temporary folder where there is none; it goes when this process ends."""
        parent = _SHARED if _SHARED.is_dir() and os.access(_SHARED, os.W_OK) else Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = create_file(folder / _LOCK, private=True)  # under another umask it would be taken for someone else's
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        cache = cls(folder, limit=limit, check=False)
        weakref.finalize(cache, _remove, folder, os.getpid(), lock)
        return cache

    def read(
        self, key: str, numbers: Sequence[int], decode: Decode, *, shape: Shape, video: range | None = None
    ) -> Frames:
        """The frames of some numbers, from the cache, or decoded and then kept.

        Args:
            key: what the frames are of, with all that their bytes depend on; see :func:`content_key`.
            numbers: of the wanted frames.
            decode: gives the frames (T, H, W, 3) of numbers.
            shape: (H, W), asked for where nothing is found.
            video: all numbers of the video, if all of it is to be kept because other numbers will be wanted next time;
                none keeps the frames of these ``numbers``, for reads that repeat.

        Returns:
            (T, H, W, 3), uint8: what ``decode(numbers)`` gives.

        Raises:
            Exception: what ``decode(numbers)`` raises. A video of which only these numbers can be decoded is not kept.
        """
        file = self._file(key, numbers if video is None else video)
        rows = range(len(numbers)) if video is None else [number - video.start for number in numbers]
        try:
            frames = _read_entry(file, rows, check=self.check)
        except FileNotFoundError:
            pass
        except _DamagedError:
            self._remove_damaged(file)
        else:
            self._count(_HITS)
            return frames
        self._count(_MISSES)
        kept = numbers if video is None else video
        height, width = shape() if self._has_room() else (0, 0)
        size = _entry_size(len(kept), height, width)
        if not height or size > _LARGEST or not self._reserve(size):
            return decode(numbers)
        written = False
        try:
            try:
                frames = _decode_in_parts(decode, kept, height, width)
            except VideoError:
                return decode(numbers)  # its own error, if it can't be read either
            written = self._write(file, frames)
        finally:
            if not written:
                self._count(_BYTES, -size)
        return frames if video is None else frames[list(rows)]

    def stats(self) -> CacheStats:
        """What has happened since this object was made, and what the cache holds now."""
        with self._ledger() as numbers:
            now = list(numbers)
        hits, misses, remade = (after - before for after, before in zip(now[:3], self._before, strict=True))
        return CacheStats(hits, misses, remade, now[_BYTES], bool(now[_FULL]), self.limit)

    def _file(self, key: str, numbers: Sequence[int]) -> Path:
        kept = repr(numbers) if isinstance(numbers, range) else ",".join(map(str, numbers))
        name = hashlib.sha256(f"{key}\n{kept}".encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}{_ENDING}"

    @contextmanager
    def _ledger(self) -> Iterator[list[int]]:
        """The numbers that all processes share, to be changed by one at a time."""
        descriptor = open_descriptor(self.folder / "ledger", os.O_RDWR | os.O_CREAT, what="a ledger", own=True)
        try:
            if fcntl is not None:
                with suppress(OSError):  # some network file systems have no locks: counts may then be off, clips not
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            stored = os.read(descriptor, _LEDGER.size)
            numbers = list(_LEDGER.unpack(stored) if len(stored) == _LEDGER.size else [0] * 5)
            before = list(numbers)
            yield numbers
            if numbers != before:
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, _LEDGER.pack(*numbers))
        finally:
            os.close(descriptor)

    def _count(self, which: int, by: int = 1) -> None:
        with self._ledger() as numbers:
            numbers[which] += by

    def _has_room(self) -> bool:
        with self._ledger() as numbers:
            return not numbers[_FULL]

    def _reserve(self, size: int) -> bool:
        with self._ledger() as numbers:
            if numbers[_FULL]:
                return False
            if numbers[_BYTES] + size <= self.limit:
                numbers[_BYTES] += size
                return True
            numbers[_FULL] = 1
        self._tell_full(f"its limit of {self.limit / 1e9:.3g} GB is reached", "data.cache_gb=<more>")
        return False

    def _tell_full(self, why: str, remedy: str) -> None:
        warnings.warn(
            f"the cache of clips {self.folder} takes no more: {why}; other videos are decoded in every epoch. "
            f"Set {remedy}, or remove the folder if it holds what is no longer used",
            stacklevel=4,
        )

    def _write(self, file: Path, frames: Frames) -> bool:
        """Write an entry in one stroke; False if it was not to be, or another process was first.

        It is not synchronised to disk: what a crash tears its checksums tell.
        """
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            with create_file(temporary, private=True) as output:
                _write_entry(output, frames)
            if file.exists():
                return False
            os.replace(temporary, file)
        except OSError as error:  # no room on the disk or in shared memory, no permission
            with self._ledger() as numbers:
                told, numbers[_FULL] = numbers[_FULL], 1
            if not told:
                self._tell_full(error.strerror or str(error), "data.cache_gb=<less> or data.cache_dir=<a folder>")
            return False
        finally:
            with suppress(OSError):
                temporary.unlink()
        return True

    def _remove_damaged(self, file: Path) -> None:
        try:
            size = file.stat().st_size
            file.unlink()
        except OSError:  # another process was first, or somebody has put there what cannot be removed
            return
        with self._ledger() as numbers:
            numbers[_BYTES] -= size
            numbers[_REMADE] += 1


def content_key(*parts: object) -> str:
    """A key of frames: what they are of, how they are made, and the versions of what decodes and scales them.

    Example:
        >>> content_key("a.mp4", 1234, (256, 340)).split("\\n")[0]
        "('a.mp4', 1234, (256, 340))"
    """
    return f"{parts!r}\nav {av.__version__}, {sorted(av.library_versions.items())}, pillow {PIL.__version__}"


class _DamagedError(Exception):
    """An entry that is not what was written."""


def _entry_size(rows: int, height: int, width: int) -> int:
    return _HEAD.size + 4 * rows + rows * height * width * 3


def _write_entry(output: io.FileIO, frames: Frames) -> None:
    rows, height, width, _ = frames.shape
    parts = [np.ascontiguousarray(frame).data.cast("B") for frame in frames]
    sums = struct.pack(f"<{rows}I", *map(zlib.crc32, parts))
    shape = struct.pack("<III", rows, height, width)
    head = _HEAD.pack(_MAGIC, rows, height, width, zlib.crc32(shape + sums))
    for part in (memoryview(head + sums), *parts):
        if output.write(part) != len(part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_entry(file: Path, rows: Sequence[int], *, check: bool) -> Frames:
    """The frames in some rows of an entry.

    Raises:
        FileNotFoundError: there is none.
        _DamagedError: it is not what was written.
    """
    with _opened(file) as entry:
        head = entry.read(_HEAD.size)
        if len(head) != _HEAD.size or not head.startswith(_MAGIC):
            raise _DamagedError
        _, count, height, width, checksum = _HEAD.unpack(head)
        if os.fstat(entry.fileno()).st_size != _entry_size(count, height, width):
            raise _DamagedError
        sums = entry.read(4 * count)
        if zlib.crc32(head[len(_MAGIC) : -4] + sums) != checksum or max(rows) >= count:
            raise _DamagedError
        frames = np.empty((len(rows), height, width, 3), np.uint8)
        size, start = height * width * 3, _HEAD.size + 4 * count
        for row, frame in zip(rows, frames, strict=True):
            entry.seek(start + row * size)
            if entry.readinto(frame.data) != size:
                raise _DamagedError
            if check and zlib.crc32(frame) != struct.unpack_from("<I", sums, 4 * row)[0]:
                raise _DamagedError
    return frames


def _opened(file: Path) -> io.FileIO:
    try:
        return open_untrusted(file, what="an entry", own=True, buffering=0)
    except FileNotFoundError:
        raise
    except (OSError, UntrustedFileError) as error:  # somebody else's, or a link: not what was written
        raise _DamagedError from error


def _size_of(file: Path) -> int:
    """Of an entry; 0 where another process has just removed it."""
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _decode_in_parts(decode: Decode, numbers: Sequence[int], height: int, width: int) -> Frames:
    """All frames, decoded so many at a time that those of a large video, before they are scaled, fit into memory."""
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    for start in range(0, len(numbers), _AT_ONCE):
        part = decode(numbers[start : start + _AT_ONCE])
        assert part.shape[1:] == frames.shape[1:], f"expected frames of {height}x{width}, got {part.shape}"
        frames[start : start + _AT_ONCE] = part
    return frames


def _remove(folder: Path, owner: int, lock: BinaryIO) -> None:
    """Remove the folder of a cache in memory, at the end of the process that made it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of processes that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            with open_untrusted(folder / _LOCK, what="a lock", own=True) as lock:
                if fcntl is None or folder.lstat().st_uid != os.geteuid():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, UntrustedFileError):  # in use, not ours, or just being made
            continue
        shutil.rmtree(folder, ignore_errors=True)
