"""Files that are whole or not there: the one way in which this package writes what must not be lost."""

from __future__ import annotations

import errno
import glob
import io
import os
import pickletools
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

try:
    import fcntl
except ModuleNotFoundError:  # Windows: leftovers of killed writers stay there
    fcntl = None  # type: ignore[assignment]

CACHE_VARIABLE = "LIT_DISTILL_CACHE"
_TEMPORARY = ".tmp"
# neither through a link nor for the other end of a pipe that somebody put there
_NO_LINK_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_ARCHIVE_TAIL = (1 << 16) + 256  # bytes at the end of a zip archive that say where its list of records is
_DIRECTORY_BYTES = 4 << 20  # of that list: some hundred bytes for a tensor
_PICKLE_BYTES = 32 << 20  # of what describes the tensors of a checkpoint, with lists and texts that callbacks keep
_ARCHIVE_START = b"PK\x03\x04"
_STEPS = 1_000_000
"""To make its containers; some 35 for a tensor."""
_LONG = 1_000
"""Whole numbers of more than 64 bits, as in the state of a random generator. As keys, their hashes can be chosen."""
_ENCODED = 64 << 20
"""Characters that are made bytes at most: the calls times the longest text."""
_WORK = 16 << 20
"""Characters and entries that calls and keys may go through, each time counted."""
_MUCH = 1 << 40
_ODD_KEYS = 1_000
"""Tuples and complex numbers as keys: their hashes can be chosen to be the same."""
_HASHES = frozenset(f"{module} {name}" for module, name in (
    ("collections", "Counter"), ("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "set"),
    ("__builtin__", "set"),
))  # fmt: skip
_COLLECTS = _HASHES | {"torch Size", "builtins complex", "__builtin__ complex", "_codecs encode"}
# It makes gigabytes of a number.
_REFUSED = ("builtins bytearray", "__builtin__ bytearray")
# encodings that take time with the square of the text, also where other signs stand between the letters of their names
_SLOW = re.compile("|".join("[^a-z0-9]*".join(name) for name in ("idna", "punycode")), re.IGNORECASE)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write whose bytes take ``path``'s place when the block ends, all at once and on disk.

    The bytes go to a temporary file in the same folder, which is synchronised and renamed; then the folder is
    synchronised. Whatever interrupts it, ``path`` holds the old bytes or all of the new ones. Where the block or the
    writing fails the temporary file is removed; one that a killed writer left is removed by the next.

    Args:
        path: the file to write; its folder is made if it is missing.
        private: whether this user alone may read and write it, whatever the umask is.

    Raises:
        OSError: the file cannot be written (no space, no permission, an input/output error); what stood at ``path``
            is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_file(path) as file:
        ...     _ = file.write(b"whole")
        >>> path.read_text(), [p.name for p in path.parent.iterdir()]
        ('whole', ['a.txt'])
    """
    path = Path(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
        opened = io.BufferedWriter(create_file(temporary, private=private))
    try:
        with _named(path), opened as file:
            if fcntl is not None:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells it from a leftover
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _named(path):
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the error at hand is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    _synchronise(path.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, private: bool = False) -> None:
    """Write a file by :func:`atomic_file`."""
    with atomic_file(path, private=private) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str, *, private: bool = False) -> None:
    """Write a file in UTF-8 by :func:`atomic_file`."""
    write_bytes(path, content.encode(), private=private)


def append_text(path: str | os.PathLike[str], content: str) -> None:
    """Add whole lines to a file, or none of them where that fails.

    Raises:
        OSError: they cannot be written; the file is as it was.
    """
    path = Path(path)
    with _named(path), open_log(path) as file:
        size = file.seek(0, os.SEEK_END)
        data = content.encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def create_file(path: Path, *, private: bool) -> io.FileIO:
    """Make a file to write that is not there yet; a ``private`` one is for this user alone, whatever the umask is.

    Raises:
        FileExistsError: there is one, or a link.
        OSError: it cannot be made.
    """
    mode = 0o600 if private else 0o666
    return open(path, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, mode))


def open_log(path: Path) -> io.FileIO:
    """Open a file to add to its end, without waiting; it is made where it is missing.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    file = open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags | _NO_LINK_NO_WAIT, 0o666))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "expected a regular file, got another kind: remove it", str(path))
    return file


def is_archive(file: BinaryIO) -> bool:
    """Whether a file is a zip archive or begins as one."""
    file.seek(0)
    return file.read(4) == _ARCHIVE_START or zipfile.is_zipfile(file)


def archive_damage(file: BinaryIO) -> str:
    """What is wrong with a zip archive such as ``torch.save`` writes, empty for nothing; every record's CRC-32 is read.

    PyTorch's own reader does not look at the checksums that its writer stores.

    Example:
        >>> import io
        >>> archive_damage(io.BytesIO())
        'it is empty'
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        return "it is empty"
    try:
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                return "its records are compressed, which torch.save never does"
            if sum(record.file_size for record in records) > size:
                return "its records claim more bytes than it has"
            if fault := described_fault(archive):
                return fault
            bad = archive.testzip()
    except zipfile.BadZipFile as error:
        if zipfile.is_zipfile(file):
            return f"it is no checkpoint archive: {error}"
        return f"its end is missing, {size} bytes are left" if is_archive(file) else "it is no checkpoint archive"
    # What zipfile raises where a flipped bit asks for a compression (NotImplementedError), a version or a password
    # (RuntimeError) that no checkpoint has.
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"its index is unreadable: {error}"
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to where no file begins
            raise
        return "its index points outside"
    return f"the CRC-32 of its record {bad} is wrong" if bad else ""


def described_fault(archive: zipfile.ZipFile) -> str:
    """Why what describes the tensors of an archive is not handed to torch, empty for nothing."""
    for record in archive.infolist():
        if record.filename.endswith("data.pkl"):
            if record.file_size > _PICKLE_BYTES:
                return f"what describes its tensors has more than {_PICKLE_BYTES:,} bytes, the limit"
            with archive.open(record) as described:  # read at once: a byte at a time takes three times as long
                if fault := pickle_fault(io.BytesIO(described.read())):
                    return fault
    return ""


def pickle_fault(file: IO[bytes], *, pickles: int = 1) -> str:
    """Why a file's pickles are not handed to torch, empty for nothing; none of their steps is taken.

    Args:
        file: at the beginning of the first.
        pickles: one after the other.

    Raises:
        ValueError: something is no pickle.

    Example:
        >>> import io, pickle
        >>> pickle_fault(io.BytesIO(pickle.dumps(bytearray(2), 2)))
        'it asks for builtins bytearray, which no weights need'
    """
    longs = calls = longest = 0
    encodes = is_slow = False
    run = _DryRun()
    steps = (step for _ in range(pickles) for step in pickletools.genops(file))
    for number, (code, argument, _) in enumerate(steps):
        if number >= _STEPS:
            return f"more than {_STEPS:,} steps to make its containers"
        run = _DryRun() if code.name == "PROTO" else run
        try:
            run.step(code.name, argument)
        except _ExcessError as error:
            return str(error)
        except (IndexError, KeyError):
            return "its steps use what none of them has made"
        if code.name == "GLOBAL":
            if argument in _REFUSED:
                return f"it asks for {str(argument).replace('__builtin__', 'builtins')}, which no weights need"
            encodes = encodes or argument == "_codecs encode"
        elif code.name == "REDUCE":
            calls += 1
        elif isinstance(argument, str):
            longest = max(longest, len(argument))
            is_slow = is_slow or bool(_SLOW.search(argument))
        elif isinstance(argument, int) and abs(argument) > 2**64:
            longs += 1
            if longs > _LONG:
                return f"it has more than {_LONG:,} whole numbers of more than 64 bits"
    if encodes and (is_slow or calls * longest > _ENCODED):
        return "its texts take too long, or too much memory, as bytes: store them as tensors"
    return ""


class _ExcessError(ValueError):
    """A pickle whose steps take too long."""


class _DryRun:
    """Adds up what the steps of one pickle would go through, and takes none.

    Texts and containers count each time that a call is given them: a text of four megabytes that a memo holds is one
    step to name. Tuples count as often as they are named in others, and so does their hash.
    """

    def __init__(self) -> None:
        # Of each value: what a call or a hash of it goes through, and how much of that has a hash that can be chosen.
        # A value is its place in both; the first stands for all numbers, so that a million of them take no time.
        self._costs, self._odd = [1], [0]
        self._names: dict[int, str] = {}
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[Any, int] = {}
        self._work = self._odd_keys = 0
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "EMPTY_LIST": self._push, "EMPTY_DICT": self._push, "EMPTY_SET": self._push,
            "EMPTY_TUPLE": lambda _: self._push(1, 1),
            "BINPUT": self._put, "LONG_BINPUT": self._put, "MEMOIZE": self._put,
            "BINGET": lambda place: self._stack.append(self._memo[place]),
            "LONG_BINGET": lambda place: self._stack.append(self._memo[place]),
            "TUPLE": lambda _: self._tuple(self._pop_to_mark()), "TUPLE1": lambda _: self._tuple(self._pop(1)),
            "TUPLE2": lambda _: self._tuple(self._pop(2)), "TUPLE3": lambda _: self._tuple(self._pop(3)),
            "APPEND": lambda _: self._collect(self._pop(1)), "APPENDS": lambda _: self._collect(self._pop_to_mark()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_to_mark()),
            "GLOBAL": self._global, "REDUCE": self._call, "NEWOBJ": self._call, "BUILD": self._build,
            "BINPERSID": self._load, "PROTO": lambda _: None, "FRAME": lambda _: None, "STOP": lambda _: None,
        }  # fmt: skip

    def step(self, name: str, argument: object) -> None:
        """Count one.

        Raises:
            _ExcessError: that is too much.
            IndexError: it takes more values than there are.
            KeyError: it names an unknown value.
        """
        if taken := self._steps.get(name):
            taken(argument)
        elif isinstance(argument, (str, bytes)):
            self._push(1 + len(argument))
        else:
            self._stack.append(0)

    def _push(self, cost: int | None = 1, odd: int = 0) -> None:
        self._stack.append(len(self._costs))
        self._costs.append(cost or 1)
        self._odd.append(odd)

    def _put(self, place: object) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def _tuple(self, parts: list[int]) -> None:
        cost, odd = self._sums(parts)
        self._push(min(_MUCH, 1 + cost), min(_MUCH, 1 + odd))

    def _collect(self, parts: list[int]) -> None:
        into = self._stack[-1]
        if not into:
            raise IndexError
        cost, odd = self._sums(parts)
        self._costs[into] = min(_MUCH, self._costs[into] + cost)
        self._odd[into] = min(_MUCH, self._odd[into] + odd)

    def _sums(self, parts: list[int]) -> tuple[int, int]:
        return sum(map(self._costs.__getitem__, parts)), sum(map(self._odd.__getitem__, parts))

    def _set_items(self, parts: list[int]) -> None:
        keys = parts[::2]
        self._spend(sum(self._costs[key] for key in keys), sum(self._odd[key] > 0 for key in keys))
        self._collect(parts)

    def _global(self, name: object) -> None:
        self._push()
        self._names[self._stack[-1]] = str(name)

    def _call(self, _: object) -> None:
        function, given = self._pop(2)
        name, cost, odd = self._names.get(function, ""), self._costs[given], self._odd[given]
        self._spend(cost, max(0, odd - 1) if name in _HASHES else 0)  # its arguments are a tuple
        self._push(cost if name in _COLLECTS else 1, int(name in _COLLECTS))

    def _build(self, _: object) -> None:
        self._spend(self._costs[self._pop(1)[0]], 0)

    def _load(self, _: object) -> None:
        self._build(_)
        self._push()

    def _spend(self, work: int, odd_keys: int) -> None:
        self._work += work
        self._odd_keys += odd_keys
        if self._work > _WORK:
            raise _ExcessError("its texts and containers are named again so often that they take too long to make")
        if self._odd_keys > _ODD_KEYS:
            raise _ExcessError(f"it has more than {_ODD_KEYS:,} keys that are neither text nor plain numbers")

    def _pop(self, count: int) -> list[int]:
        if len(self._stack) < count:
            raise IndexError
        parts = self._stack[-count:]
        del self._stack[-count:]
        return parts

    def _pop_to_mark(self) -> list[int]:
        mark = self._marks.pop()
        parts = self._stack[mark:]
        del self._stack[mark:]
        return parts


def _check_directory(file: BinaryIO, size: int) -> None:
    """Raise ValueError for an archive with more records than a checkpoint has, before the list of them is read."""
    start = max(0, size - _ARCHIVE_TAIL)
    file.seek(start)
    tail = file.read(_ARCHIVE_TAIL)
    for mark, place, width in ((b"PK\x05\x06", 12, 4), (b"PK\x06\x06", 40, 8)):  # zip's and zip64's own record of it
        found = tail.rfind(mark)
        length = int.from_bytes(tail[found + place : found + place + width], "little") if found >= 0 else 0
        if _DIRECTORY_BYTES < length < (1 << 8 * width) - 1:
            raise ValueError(f"a list of records of {length:,} bytes, the limit is {_DIRECTORY_BYTES:,}")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of an error which file could not be written, and that its old content stands."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        kept = "; the file that stood there is untouched" if path.exists() else ""
        raise OSError(error.errno, f"cannot write {path}: {cause}{kept}") from error


def _synchronise(folder: Path) -> None:
    """Bring a folder's entries to disk, where the system knows how."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what file systems without this say
            raise OSError(error.errno, f"cannot synchronise the folder {folder}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` whose writer is gone: nobody holds their lock."""
    if fcntl is None:
        return
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????{_TEMPORARY}"):
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | _NO_LINK_NO_WAIT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def expand_home(path: str | os.PathLike[str]) -> Path:
    """A path whose leading ``~/`` is the home folder, as shells have it; a name that begins with ``~`` stays.

    Example:
        >>> expand_home("~a/b"), expand_home("~/b") == Path.home() / "b"
        (PosixPath('~a/b'), True)
    """
    first, *rest = Path(path).parts or (".",)
    return Path.home().joinpath(*rest) if first == "~" else Path(path)


def cache_root() -> Path:
    """Where all caches are, and the embedded data set: ``$LIT_DISTILL_CACHE``, or ``~/.cache/lit_distill``."""
    named = os.environ.get(CACHE_VARIABLE)
    return expand_home(named) if named else Path.home() / ".cache" / "lit_distill"


def cache_folder(
    kind: Literal["clips", "index", "shards", "teachers"], named: str | os.PathLike[str] | None = None
) -> Path:
    """The folder of one kind of cache below :func:`cache_root`, or the one that the user has ``named``."""
    return cache_root() / kind if named is None else expand_home(named)
