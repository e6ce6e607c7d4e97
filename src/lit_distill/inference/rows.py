"""Predictions as lines of JSON or CSV, in a file that is whole, or beside it as a part to resume from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_distill._files import append_text, expand_home
from lit_distill.inference.predictions import Prediction
from lit_distill.untrusted.budgets import TABLE_BYTES
from lit_distill.untrusted.opening import open_descriptor
from lit_distill.untrusted.showing import cell

SUFFIXES = (".jsonl", ".csv")


class RowFile:
    """Rows in the order of the inputs, written to ``<name>.<key>.part`` and renamed when all of them are there.

    The key is a hash of what makes the rows what they are, so that a part is only gone on from by an equal command.

    Raises:
        ValueError: another suffix, or a part that is not of these inputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        inputs: Sequence[str],
        topk: int,
        made_by: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        self.path = expand_home(path)
        if self.path.suffix not in SUFFIXES:
            raise ValueError(f"output is a file {' or '.join(SUFFIXES)}, got {self.path}")
        self._csv, self._topk = self.path.suffix == ".csv", topk
        settings = json.dumps([list(inputs), topk, dict(made_by)], sort_keys=True)
        key = hashlib.sha256(settings.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        self.part = self.path.with_name(f"{self.path.name}.{key}.part")
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.done, self.failed = self._resumed(inputs) if resume and self.part.is_file() else (0, 0)
        if not self.done:
            self.part.unlink(missing_ok=True)
            append_text(self.part, self._lines([self._header()]) if self._csv else "")

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Add rows, all of these or none."""
        append_text(self.part, self._rows(predictions))

    def finish(self) -> None:
        """Give the file its name."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)

    def _resumed(self, inputs: Sequence[str]) -> tuple[int, int]:
        """How many rows the part holds, and how many of them are errors; a torn last line is cut off."""
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)  # what a link leads to is not cut off
        with open(open_descriptor(self.part, flags, what="the part of a table", limit=TABLE_BYTES), "r+b") as file:
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            counts = self._counted(whole.decode("utf-8", "surrogateescape"), inputs)
            file.truncate(len(whole))
        return counts

    def _counted(self, text: str, inputs: Sequence[str]) -> tuple[int, int]:
        if self._csv:
            rows = [(row[0], row[1]) for row in csv.reader(io.StringIO(text, newline=""))][1:]
        else:
            stored = [json.loads(line) for line in text.splitlines()]
            rows = [(row["input"], row.get("error", "")) for row in stored]
        wanted = [as_utf8(name) if self._csv else name for name in inputs[: len(rows)]]
        if [name for name, _ in rows] != wanted:
            raise ValueError(f"{self.part} does not go on with these inputs: remove it")
        return len(rows), sum(bool(error) for _, error in rows)

    def _header(self) -> list[str]:
        numbers = range(1, self._topk + 1)
        return ["input", "error", *(f"{field}_{k}" for k in numbers for field in ("class", "name", "score"))]

    def _rows(self, predictions: Iterable[Prediction]) -> str:
        if not self._csv:
            return "".join(f"{json.dumps(as_json(p))}\n" for p in predictions)
        empty = ["", "", ""]
        return self._lines(
            [as_utf8(p.input), as_utf8(p.error)]
            + [value for top in p.top for value in (top.label, as_utf8(top.name), rounded(top.score))]
            + empty * (self._topk - len(p.top))
            for p in predictions
        )

    def _lines(self, rows: Iterable[Sequence[Any]]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()


def as_utf8(text: str) -> str:
    """A text, such as a path, as a CSV file in UTF-8 can hold it."""
    return cell(text.encode("utf-8", "backslashreplace").decode())


def as_json(prediction: Prediction) -> dict[str, Any]:
    """A row: ``input``, and ``top`` (class, name, score) or ``error``.

    Example:
        >>> as_json(Prediction("a.mp4", error="it is empty"))
        {'input': 'a.mp4', 'error': 'it is empty'}
    """
    if prediction.error:
        return {"input": prediction.input, "error": prediction.error}
    tops = [{"class": top.label, "name": top.name, "score": rounded(top.score)} for top in prediction.top]
    return {"input": prediction.input, "top": tops}


def rounded(score: float) -> float:
    """A probability to 7 digits, what float32 holds."""
    return float(f"{score:.7g}")
