"""What `input=` names: a file, a folder or a list, as paths in a fixed order."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lit_distill._files import expand_home
from lit_distill.data.catalogue.lists import is_blank, unquoted
from lit_distill.data.preprocess import Preprocess
from lit_distill.untrusted.budgets import lines_of
from lit_distill.untrusted.folders import files_below
from lit_distill.untrusted.images import SUFFIXES
from lit_distill.untrusted.opening import UntrustedFileError

VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
LIST_SUFFIXES = (".txt", ".list", ".lst", ".csv")
_LABELS = re.compile(r"(?<![\s,])(?:[\s,]+\d+){1,2}$")  # behind a path: its label, or number of frames and label


class Inputs(NamedTuple):
    """Files to classify, and how many of a folder are not what the network wants."""

    paths: list[str]
    passed_over: int = 0


def find_inputs(path: str | os.PathLike[str], preprocess: Preprocess) -> Inputs:
    """The files that a path names.

    Args:
        path: a video or image; a folder, of which all files below it are taken that are videos (or images, as the
            network wants them; of a custom format, all), ordered by their paths, and every folder of frames; or a list
            (.txt .list .lst .csv). A line of a list is a path, relative to the list; empty lines are left out, and so
            are labels behind a path where no file has the whole line as its name.
        preprocess: of the network.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: nothing in it is to be classified.
    """
    path = expand_home(path)
    if path.is_dir():
        return _of_folder(path, preprocess)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}, set input=<a file, a folder or a list>")
    return _of_list(path) if path.suffix.lower() in LIST_SUFFIXES else Inputs([str(path)])


def _of_folder(folder: Path, preprocess: Preprocess) -> Inputs:
    images, custom = preprocess.sampling is None, preprocess.source is not None
    suffixes = SUFFIXES if images else VIDEO_SUFFIXES
    first = preprocess.suffix.format(1)
    paths: list[str] = []
    passed_over = 0
    for place, files in files_below(folder):
        if not images and not custom and first in files:  # a video as a folder of frames
            paths.append(place)
            continue
        chosen = [
            name for name in files if (custom or os.path.splitext(name)[1].lower() in suffixes) and name[0] != "."
        ]
        passed_over += len(files) - len(chosen)
        paths += [os.path.join(place, name) for name in chosen]
    if not paths:
        things = "images" if images else "videos"
        raise ValueError(f"{folder} holds no {things}: {passed_over} files with other suffixes; a list may name them")
    return Inputs(sorted(paths), passed_over)


def _of_list(file: Path) -> Inputs:
    paths = []
    for number, line in enumerate(lines_of(file, what="a list of inputs", errors="surrogateescape"), 1):
        if is_blank(line):
            continue
        quoted = unquoted(line)
        text = line.strip() if quoted is None else quoted[0]
        whole = os.path.join(file.parent, text)
        if quoted is None and not os.path.exists(whole):
            whole = os.path.join(file.parent, _LABELS.sub("", text))
        if not (whole.isprintable() or os.path.exists(whole)) and any("\udc80" <= c <= "\udcff" for c in text):
            raise UntrustedFileError(
                f"{file}:{number}", "expected text in UTF-8, got another encoding: save it as UTF-8"
            )
        paths.append(whole)
    if not paths:
        raise ValueError(f"{file} is an empty list, expected a path a line")
    return Inputs(paths)
