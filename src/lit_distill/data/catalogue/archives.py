"""Byte ranges of archives, in a local folder or on an object store: what a shard's videos are read through."""

from __future__ import annotations

import hashlib
import io
import os
from typing import Any, BinaryIO, Final, cast

from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.decoding.layout import VideoError
from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted

_AT_ONCE: Final = 64 << 20  # bytes of a member up to which it is read in one request

Stamp = tuple[int, int]


class Archives:
    """The archives below a root; a root that is a URL is opened by fsspec.

    A worker process opens the store itself, at its first read: connections don't survive a fork.

    Args:
        root: a local folder, or a URL such as ``s3://bucket/folder`` that the user gave; never one out of a file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pathlib import Path
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.bin").write_bytes(b"0123456789")
        ...     Archives(folder).read(f"{folder}/a.bin", 3, 4)
        b'3456'
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.remote = is_address(root)

    def join(self, name: str) -> str:
        """The path of something below the root."""
        return f"{self.root.rstrip('/')}/{name}" if self.remote else os.path.join(self.root, name)

    def stamp(self, path: str) -> Stamp:
        """Size in bytes, and a number that another content has otherwise: the time of the last change, or a tag's hash.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not self.remote:
            with open_untrusted(path, what="an archive", buffering=0) as file:
                status = os.fstat(file.fileno())
            return status.st_size, status.st_mtime_ns
        files, inside = self._files(path)
        files.invalidate_cache()
        tag = hashlib.sha256(str(files.ukey(inside)).encode()).digest()[:7]
        return int(files.info(inside)["size"]), int.from_bytes(tag, "big")

    def open(self, path: str) -> BinaryIO:
        """A seekable binary file."""
        if not self.remote:
            return open_untrusted(path, what="an archive")
        files, inside = self._files(path)
        return cast("BinaryIO", files.open(inside, "rb"))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A range of bytes, in one request; shorter where the file ends before."""
        if not self.remote:
            with open_untrusted(path, what="an archive", buffering=0) as file:
                file.seek(offset)
                return file.read(size) or b""
        files, inside = self._files(path)
        return cast("bytes", files.cat_file(inside, start=offset, end=offset + size))

    def source(self, sample: Sample) -> MemberFile:
        """The video of a sample as a file, which is read when it is first looked into."""
        return MemberFile(self, sample)

    def _files(self, path: str) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"data.root={self.root} is a URL, which fsspec opens: pip install 'lit-distill[shards]'"
            ) from error
        try:
            files, inside = url_to_fs(path)  # fsspec keeps one object a process
        except ImportError as error:
            raise ModuleNotFoundError(
                f"data.root={self.root}: {error}; or pip install 'lit-distill[shards]'"
            ) from error
        return files, inside


class MemberFile(io.RawIOBase):
    """A member of an archive as a seekable file: read in one request at its first use, unless it is large."""

    def __init__(self, archives: Archives, sample: Sample) -> None:
        super().__init__()
        assert sample.member is not None
        self.name = sample.name
        self._archives, self._path, self._member = archives, sample.path, sample.member
        self._position = 0
        self._file: BinaryIO | None = None
        self._start = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Position in the member."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the member."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Bytes from the position on.

        Raises:
            VideoError: the archive ends within the member.
        """
        left = max(0, self._member.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.seek(self._start + self._position)
        content = self._file.read(size)
        if len(content) != size:
            raise VideoError(self.name, f"its archive ends within it: expected {size} bytes, got {len(content)}")
        self._position += size
        return content

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _open(self) -> None:
        try:
            if self._member.size > _AT_ONCE:
                self._file, self._start = self._archives.open(self._path), self._member.offset
            else:
                content = self._archives.read(self._path, self._member.offset, self._member.size)
                self._file = io.BytesIO(content)
        except (OSError, UntrustedFileError) as error:
            raise VideoError(self.name, " ".join(str(error).split()) or type(error).__name__) from error
