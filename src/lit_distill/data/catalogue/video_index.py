"""What was found out about each video of a data set, kept in one small file, so that headers are read once only."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import av

from lit_distill._files import CACHE_VARIABLE, cache_folder
from lit_distill.data.decoding.decode import scan
from lit_distill.data.decoding.layout import Limits, VideoLayout, VideoSource
from lit_distill.untrusted.budgets import INDEX_BYTES
from lit_distill.untrusted.opening import UntrustedFileError, open_descriptor, open_untrusted, private_folder

Check: TypeAlias = Literal["headers", "decode"]
Stamp: TypeAlias = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds: another one is another video."""

_FORMAT: Final = 2  # 1: of several video streams the first
_WHAT: Final = "an index of videos"
_LIMITS: Final = Limits()


class Entry(NamedTuple):
    """The layout of a video, and whether its headers were read or all its frames decoded without a fault."""

    layout: VideoLayout
    check: Check


class VideoIndex:
    """Layouts of the videos below a root, in a file that only grows: processes add lines to it side by side.

    The file is in the cache folder (``$LIT_DISTILL_CACHE`` or ``~/.cache/lit_distill``), never in the root. Its name is
    a hash of the root, the format and FFmpeg's versions; its first line says what it is. Each other line is one video:
    path, size, time of the last change, layout. A line counts if it is whole and of that form, the last one of a video
    if there are several, and only for a file of that size and time: what is stale, torn or foreign is passed over, and
    the video scanned again.

    Args:
        root: folder that paths are relative to.
        folder: where the file is; by default ``index`` in the cache folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from lit_distill.data.decoding.encode import write_video
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", np.zeros((9, 32, 48, 3), np.uint8))
        ...     VideoIndex(folder, folder=f"{folder}/cache").layout(f"{folder}/a.mp4").info.frames
        ...     again = VideoIndex(folder, folder=f"{folder}/cache")
        ...     again.load(), again.find(f"{folder}/a.mp4").check
        9
        (1, 'headers')
    """

    def __init__(self, root: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> None:
        self.root = os.path.abspath(root)
        of = json.dumps([self.root, _FORMAT, sorted(av.library_versions.items())])
        name = f"{hashlib.sha256(of.encode()).hexdigest()[:20]}.jsonl"
        self.file = cache_folder("index", folder) / name
        self._lines: dict[str, bytes] = {}  # parsed when asked for: most of a large set is another process's
        self._read_to = 0
        self._writable = True

    def load(self) -> int:
        """Read what was added to the file since the last time; how many videos are known now."""
        try:
            with open_untrusted(self.file, what=_WHAT, limit=INDEX_BYTES, own=True) as file:
                file.seek(self._read_to)
                added = file.read()
        except FileNotFoundError:
            return len(self._lines)
        except (OSError, UntrustedFileError) as error:
            self._give_up(error)
            return len(self._lines)
        whole = added.rfind(b"\n") + 1  # a line that another process is writing comes next time
        self._read_to += whole
        for line in added[:whole].splitlines():
            path = _path_of(line)
            if path is not None:
                self._lines[path] = line
        return len(self._lines)

    def find(self, path: str, *, stamp: Stamp | None = None, stream: int | None = None) -> Entry | None:
        """What is known of a video as it is now, by default as the file at ``path`` is; None where nothing is.

        What is known of another of its video streams than ``stream`` (none for the best) is not it.
        """
        stamp = stamp or stamp_of(path)
        entry = None if stamp is None else self._entry(self._lines.get(self._name(path)), stamp)
        return None if entry is None or entry.layout.stream != stream else entry

    def put(self, path: str, layout: VideoLayout, *, check: Check = "headers", stamp: Stamp | None = None) -> None:
        """Add what was found of a video; ``stamp`` is what it had *before* it was scanned.

        A folder that can't be written is warned of once; nothing else depends on the index.
        """
        stamp = stamp or stamp_of(path)
        if stamp is None:
            return
        name = self._name(path)
        line = json.dumps([name, *stamp, check, layout.to_json()], separators=(",", ":")).encode()
        self._lines[name] = line
        if self._writable:
            try:
                self._append(line)
            except (OSError, UntrustedFileError) as error:
                self._give_up(error)

    def layout(
        self,
        path: str,
        *,
        limits: Limits = _LIMITS,
        source: VideoSource | None = None,
        stamp: Stamp | None = None,
        stream: int | None = None,
    ) -> VideoLayout:
        """The layout of a video: the known one, or that of a scan, which then is known to all processes.

        A known video that is beyond the ``limits`` is scanned, for the same error as ever. Of a video inside an archive
        ``source`` is what is scanned, and ``stamp`` that of the archive. Of several video streams, the ``stream``.

        Raises:
            VideoError: it can't be read within the limits.
        """
        stamp = stamp or stamp_of(path)
        entry = None if stamp is None else self.find(path, stamp=stamp, stream=stream)
        if entry is None and stamp is not None and self._has_grown():
            self.load()
            entry = self.find(path, stamp=stamp, stream=stream)
        if entry is not None and entry.layout.info.frames <= limits.frames:
            return entry.layout
        layout = scan(path if source is None else source, limits=limits, stream=stream)
        if entry is None:
            self.put(path, layout, stamp=stamp)
        return layout

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root)

    def _entry(self, line: bytes | None, stamp: Stamp) -> Entry | None:
        if line is None:
            return None
        _, size, changed, check, record = json.loads(line)
        if (size, changed) != stamp or check not in ("headers", "decode"):
            return None
        try:
            layout = VideoLayout.from_json(record)
        except ValueError:
            return None
        return Entry(layout, check) if isinstance(layout.info.frames, int) and layout.info.frames > 0 else None

    def _has_grown(self) -> bool:
        try:
            return os.stat(self.file).st_size > self._read_to
        except OSError:
            return False

    def _append(self, line: bytes) -> None:
        """One write of one line: on a local file system no other process's line comes between."""
        try:
            file = open_descriptor(self.file, os.O_WRONLY | os.O_APPEND, what=_WHAT, own=True)
        except FileNotFoundError:
            private_folder(self.file.parent)
            file = open_descriptor(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, what=_WHAT, own=True)
            head = {"lit_distill": "video index", "format": _FORMAT, "root": self.root}
            line = json.dumps(head).encode() + b"\n" + line
        try:
            # the first line feed ends a line that a killed process or a full disk tore
            os.write(file, b"\n" + line + b"\n")
        finally:
            os.close(file)

    def _give_up(self, error: OSError | UntrustedFileError) -> None:
        self._writable = False
        reason = error.reason if isinstance(error, UntrustedFileError) else error.strerror or error
        warnings.warn(
            f"the video index {self.file} can't be used ({reason}): headers are read in every epoch; "
            f"set {CACHE_VARIABLE} to a writable folder",
            stacklevel=3,
        )


def stamp_of(path: str) -> Stamp | None:
    """Size and time of the last change of a file, or None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _path_of(line: bytes) -> str | None:
    """The path that a line is about; None for one that is not a video's."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):  # also for bytes that are not UTF-8
        return None
    of_a_video = (
        isinstance(record, list) and len(record) == 5 and [type(part) for part in record] == [str, int, int, str, dict]
    )
    return record[0] if of_a_video else None
