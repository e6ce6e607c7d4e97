"""Names that others gave, where they become file names and addresses."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lit_distill.untrusted.showing import printable

_FILE_NAME = re.compile(r"\w[\w+=-]{0,99}(?:\.[\w+=-]+)*")
_MOST = 120
# \\host in any mixture of slashes, \\?\, \\.\ and \??\: what Windows opens as a share or a device.
_WINDOWS = re.compile(r"\s*[\\/](?:[\\/]|\?\?[\\/])")


def file_name(name: str) -> str:
    """The name of a model, term, run or class where it becomes a part of a file name.

    Raises:
        ValueError: it is more than letters, digits and ``_ - + = .``, or begins with a dot.

    Example:
        >>> file_name("Student")
        'Student'
        >>> file_name("../Student")
        Traceback (most recent call last):
        ...
        ValueError: expected a name of letters, digits, - and _ for a file, got '../Student': rename it in its config
    """
    if len(name) > _MOST or not _FILE_NAME.fullmatch(name):
        raise ValueError(
            f"expected a name of letters, digits, - and _ for a file, got {ascii(name)[:80]}: rename it in its config"
        )
    return name


def inside(folder: str | os.PathLike[str], *parts: str) -> Path:
    """A place to write below a folder that others may have made: no link in it leads out of the folder.

    Args:
        folder: as the user named it; it may be a link itself.
        *parts: below it.

    Raises:
        ValueError: the place lies elsewhere.

    Example:
        >>> inside("/runs/kd", "export", "student.onnx")
        PosixPath('/runs/kd/export/student.onnx')
        >>> inside("/runs/kd", "../dml")
        Traceback (most recent call last):
        ...
        ValueError: expected a file inside /runs/kd, got /runs/kd/../dml, which is /runs/dml: give output=<file>
    """
    place = Path(folder, *parts)
    real, home = os.path.realpath(place), os.path.realpath(folder)
    if not real.startswith(os.path.join(home, "")):
        said = f"expected a file inside {folder}, got {place}, which is {real}: give output=<file>"
        raise ValueError(printable(said))
    return place


def is_address(text: str | os.PathLike[str]) -> bool:
    r"""Whether a text is what fsspec and FFmpeg take for an address, a chain of them included, or a Windows share.

    Untrusted files may name none; where one that the user typed is opened, the opener asks this too.

    Example:
        >>> [is_address(text) for text in ("s3://bucket", "simplecache::http:a", r"\/host\share", "videos/a:b.mp4")]
        [True, True, True, False]
    """
    text = os.fspath(text)
    return "://" in text or "::" in text or _WINDOWS.match(text) is not None
