"""Shards: files of rows with their keys and checksums, written whole or not at all, read by mapping them."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lit_distill._files import atomic_file
from lit_distill.data.digests import DIGEST_BYTES
from lit_distill.teacher_cache.codec import Rows
from lit_distill.untrusted.opening import open_descriptor, open_untrusted

try:
    import fcntl
except ModuleNotFoundError:  # Windows: two processes may then pass the limit by a shard each
    fcntl = None  # type: ignore[assignment]

ENDING: Final = ".shard"
_MAGIC: Final = b"LDTEACH1"
_HEAD: Final = struct.Struct("<8sQQI4x")  # magic, rows, bytes a row, CRC-32 of keys and sums
_ABANDONED_AFTER: Final = 3600.0  # seconds that a temporary file may be older than any writing of one takes


class DamagedShardError(Exception):
    """A file that is not what was written."""


def shard_size(rows: int, row_bytes: int) -> int:
    """Bytes of a shard's file."""
    return _HEAD.size + rows * (DIGEST_BYTES + 4 + row_bytes)


def rows_within(size: int, row_bytes: int) -> int:
    """How many rows a shard's file of so many bytes may have."""
    return max(0, (size - _HEAD.size) // (DIGEST_BYTES + 4 + row_bytes))


def write_shard(path: Path, keys: list[bytes], rows: Rows) -> None:
    """Write a file of rows (n, bytes) under their keys.

    Raises:
        OSError: it cannot be written; nothing is there then.
    """
    sums = np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in rows], "<u4").tobytes()
    named = b"".join(keys)
    with atomic_file(path, private=True) as file:
        file.write(_HEAD.pack(_MAGIC, len(rows), rows.shape[1], zlib.crc32(named + sums)))
        file.write(named + sums)
        file.write(np.ascontiguousarray(rows).data)


class Shard:
    """A shard, its rows mapped into memory: processes that read it share its pages.

    Attributes:
        path: of its file.
        keys: (n, 2), the halves of each key.

    Args:
        path: of its file.
        row_bytes: what a row must have.

    Raises:
        DamagedShardError: the file is not what was written.
        UntrustedFileError: it is another user's, or no regular file.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / f"a{ENDING}"
        >>> write_shard(path, [b"k" * 16, b"l" * 16], np.array([[1, 2], [3, 4]], np.uint8))
        >>> Shard(path, 2).row(1).tolist(), path.stat().st_size == shard_size(2, 2)
        ([3, 4], True)
    """

    def __init__(self, path: Path, row_bytes: int) -> None:
        self.path = path
        with open_untrusted(path, what="a shard", own=True) as file:
            head = file.read(_HEAD.size)
            if len(head) != _HEAD.size or not head.startswith(_MAGIC):
                raise DamagedShardError("it does not begin as one")
            _, count, stored_bytes, checksum = _HEAD.unpack(head)
            size = os.fstat(file.fileno()).st_size
            if stored_bytes != row_bytes or not count or size != shard_size(count, row_bytes):
                raise DamagedShardError(f"it has {size} bytes")
            named = file.read(count * (DIGEST_BYTES + 4))
            self._rows: Rows = np.memmap(file, np.uint8, "r", _HEAD.size + len(named), (count, row_bytes))
        if zlib.crc32(named) != checksum:
            raise DamagedShardError("the checksum of its keys is wrong")
        self.keys: NDArray[np.uint64] = np.frombuffer(named, "<u8", 2 * count).reshape(count, 2)
        self._sums = np.frombuffer(named, "<u4", count, DIGEST_BYTES * count)

    def row(self, number: int) -> Rows:
        """One row.

        Raises:
            DamagedShardError: its checksum is wrong.
        """
        row: Rows = self._rows[number]
        if zlib.crc32(row.data) != self._sums[number]:
            raise DamagedShardError(f"the checksum of its row {number} is wrong")
        return row


class Budget:
    """How many bytes the shards below a folder may take, over all processes and runs that write there."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit

    def used(self) -> int:
        """Bytes that the shards take now."""
        total = 0
        for path in self.root.rglob(f"*{ENDING}"):
            with suppress(OSError):
                total += path.stat().st_size
        return total

    @contextmanager
    def room(self) -> Iterator[int]:
        """How many bytes may be written within the block; other writers wait meanwhile.

        Raises:
            OSError: the folder is not there or cannot be written.
        """
        descriptor = open_descriptor(self.root / "lock", os.O_RDWR | os.O_CREAT, what="a lock", own=True)
        try:
            if fcntl is not None:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield max(0, self.limit - self.used())
        finally:
            os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left."""
    for path in folder.glob(f".*{ENDING}.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                path.unlink()
