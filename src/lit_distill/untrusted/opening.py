"""The one way to open a name that others may have made: a regular file, without waiting, within a limit of bytes."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Final, Literal, TypeAlias, overload

from lit_distill.untrusted.showing import printable

_Path: TypeAlias = "str | os.PathLike[str]"

_FLAGS: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_KINDS: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
}
_LARGE: Final = 1 << 20  # bytes of a read from which on it is held against what the file has
_SPARSE_FROM: Final = 256 << 20  # bytes of a file from which on its holes are looked at
_SPARSE: Final = 16  # times the bytes on disk


class UntrustedFileError(ValueError):
    """A file that is not opened: what was expected, what it is, and what to do, in one line.

    Args:
        path: of the file.
        reason: why it is refused.
    """

    def __init__(self, path: _Path, reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(printable(f"{self.path}: {reason}"))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason)


class _Reader(io.BufferedReader):
    """Makes room for what a file has, not for what a length in it says: a pickle asks for 4 GB in five bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@overload
def open_untrusted(path: _Path, *, what: str, limit: int | None = ..., own: bool = ...) -> io.BufferedReader: ...


@overload
def open_untrusted(
    path: _Path, *, what: str, limit: int | None = ..., own: bool = ..., buffering: Literal[0]
) -> io.FileIO: ...


def open_untrusted(
    path: _Path, *, what: str, limit: int | None = None, own: bool = False, buffering: Literal[-1, 0] = -1
) -> io.BufferedReader | io.FileIO:
    """Open a file for reading that somebody else may have made, or put in the place of this user's.

    Nothing but a regular file is opened, and nothing is waited for: a named pipe, a device, a socket or a folder is
    refused, also one that a link leads to. Process substitution (``<(…)``) and a piped ``/dev/stdin`` are pipes too.

    Args:
        path: of the file; links are followed, unless it is to be an ``own`` one.
        what: it is to be, for messages, such as "a list of videos".
        limit: most bytes that it may have.
        own: whether it must be a file of this user (or of root) that nobody else may write, and no link: for caches,
            locks, and all else that only this library writes.
        buffering: 0 for none.

    Raises:
        UntrustedFileError: it is another kind of file, too large, or not an own one.
        OSError: it cannot be opened.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = file.write_text("a.mp4 0")
        >>> with open_untrusted(file, what="a list", limit=10) as opened:
        ...     opened.read()
        b'a.mp4 0'
    """
    descriptor = open_descriptor(path, os.O_RDONLY, what=what, limit=limit, own=own)
    return open(descriptor, "rb", buffering=0) if buffering == 0 else _Reader(io.FileIO(descriptor))


def read_untrusted(path: _Path, *, what: str, limit: int, own: bool = False) -> bytes:
    """The bytes of such a file.

    Raises:
        UntrustedFileError: as :func:`open_untrusted`; also where it grows while it is read.
        OSError: it cannot be read.
    """
    with open_untrusted(path, what=what, limit=limit, own=own) as file:
        expected = os.fstat(file.fileno()).st_size  # a buffer for the whole limit would be allocated at once
        content = file.read(expected) or b""
        if file.read(1):
            raise UntrustedFileError(path, f"expected {what} of {expected:,} bytes, but it grows while it is read")
    return content


def open_descriptor(
    path: _Path, flags: int, *, what: str, limit: int | None = None, own: bool = False, mode: int = 0o600
) -> int:
    """A descriptor of such a file, also for writing, as :func:`os.open` gives it.

    Args:
        path: as for :func:`open_untrusted`.
        flags: as for :func:`os.open`.
        what: as for :func:`open_untrusted`.
        limit: as there.
        own: as there.
        mode: of a file that is made, before the umask.

    Raises:
        UntrustedFileError: as there.
        OSError: it cannot be opened.
    """
    try:
        before = os.lstat(path) if own else os.stat(path)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    else:  # opening a device may already do something
        _check_kind(path, before, what)
    try:
        descriptor = os.open(path, flags | _FLAGS | (_NO_LINK if own else 0), mode)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ELOOP):
            raise
        kind = "a symbolic link" if error.errno == errno.ELOOP else "a named pipe or socket"
        raise UntrustedFileError(path, _another_kind(what, kind)) from error
    try:
        status = os.fstat(descriptor)
        _check(path, status, what, limit, own)
        if flags == os.O_RDONLY and not status.st_size and _is_endless(descriptor):
            raise UntrustedFileError(path, f"expected {what}, got 0 bytes, but it grows while it is read")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def private_folder(folder: _Path) -> Path:
    """Make a folder, and what is missing above it, for this user alone; of one that is there, see whose it is.

    One of this user that others may write stays as the user made it: its files are held one by one to be their own.

    Raises:
        UntrustedFileError: it is another user's, no folder, or one of the system that anyone may write.
        OSError: it cannot be made.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if not folder.parent.is_dir():
            private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    status = os.stat(folder)
    if not _is_own(status):
        raise UntrustedFileError(
            folder,
            f"expected a folder of this user for what is kept, got one of user {status.st_uid}: name another, or one "
            "below it",
        )
    if status.st_mode & _BY_OTHERS and os.name != "nt" and status.st_uid != os.geteuid():
        raise UntrustedFileError(
            folder, "expected a folder that only this user may write, got one that others may: name one below it"
        )
    return folder


def _check(path: _Path, status: os.stat_result, what: str, limit: int | None, own: bool) -> None:
    _check_kind(path, status, what)
    if limit is not None and status.st_size > limit:
        raise UntrustedFileError(path, _too_large(what, limit, f"{status.st_size:,}"))
    on_disk = 512 * getattr(status, "st_blocks", 0)  # 0 on file systems that do not say
    if status.st_size > _SPARSE_FROM and 0 < on_disk < status.st_size // _SPARSE:
        raise UntrustedFileError(
            path,
            f"expected {what}, got a sparse file, {on_disk:,} of its {status.st_size:,} bytes are on disk: if it is "
            "the one you mean, copy it by cp --sparse=never",
        )
    if not own or os.name == "nt":
        return
    if not _is_own(status):
        raise UntrustedFileError(
            path,
            f"expected {what} of this user, got one of user {status.st_uid}: remove it, or name another folder",
        )
    if status.st_mode & _BY_OTHERS:
        raise UntrustedFileError(
            path,
            f"expected {what} that only this user may write, got mode {stat.S_IMODE(status.st_mode):04o}: remove it",
        )


def _check_kind(path: _Path, status: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(path, _another_kind(what, _KINDS.get(stat.S_IFMT(status.st_mode), "another")))


def _is_endless(descriptor: int) -> bool:
    """Whether a file of no size has content all the same, as those of /proc do: some have terabytes."""
    return hasattr(os, "pread") and bool(os.pread(descriptor, 8, 0)) and not os.fstat(descriptor).st_size


def _is_own(status: os.stat_result) -> bool:
    return os.name == "nt" or status.st_uid in (os.geteuid(), 0)


def _another_kind(what: str, kind: str) -> str:
    return f"expected {what}, a regular file, got {kind}: give a file that holds the content"


def _too_large(what: str, limit: int, got: str) -> str:
    return f"expected {what} of at most {limit:,} bytes, got {got}: see that it is the file you mean"
