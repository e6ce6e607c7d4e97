"""Folders that others made, walked once: links in circles, depth and number of entries have an end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from lit_distill.untrusted.budgets import LIST_LINES
from lit_distill.untrusted.opening import UntrustedFileError

MAX_DEPTH: Final = 100
"""Folders in folders."""


def files_below(folder: str | os.PathLike[str], *, links: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Each folder at or below one, and the names of the files in it; folders that cannot be read have none.

    A folder is looked at once, however many links lead to it.

    Args:
        folder: to begin with; it may be a link itself.
        links: whether links to folders are followed.

    Raises:
        UntrustedFileError: folders nest too deep, or hold more entries than a list may have lines.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as name:
        ...     Path(name, "a.png").touch()
        ...     Path(name, "again").symlink_to(name)
        ...     [files for _, files in files_below(name, links=True)]
        [['a.png']]
    """
    waiting, seen, count = [(os.fspath(folder), 0)], set(), 0
    while waiting:
        place, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UntrustedFileError(folder, f"expected at most {MAX_DEPTH} folders in each other, got more: move it")
        files: list[str] = []
        with suppress(OSError):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in entries:
                    count += 1
                    if count > LIST_LINES:
                        raise UntrustedFileError(folder, f"expected at most {LIST_LINES:,} entries, got more: split it")
                    if not entry.is_dir():
                        files.append(entry.name)
                    elif links or not entry.is_symlink():
                        waiting.append((entry.path, depth + 1))
        yield place, files
