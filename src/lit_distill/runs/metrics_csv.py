"""``metrics.csv``: its one reader and its one writer.

Whole lines are written, or none; a last line without an end is what a writer left that was killed, or is still being
written. Every reader leaves it out.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from lit_distill._files import append_text, write_text
from lit_distill.untrusted.budgets import TABLE_BYTES
from lit_distill.untrusted.opening import open_untrusted

_LINE_CHARACTERS = 1 << 18
_COLUMNS = 2_000
_NUMBERS: Final = 2_000_000
_FIELDS: Final = 10_000_000
"""Empty ones included."""


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a file, as text by column; none of one that is not there.

    Args:
        path: of a file that may have come with an untrusted run folder.

    Raises:
        ValueError: it is no table with the column ``step``; the message names the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> _ = file.write_text("step,epoch,train/loss\\n10,0,1.5\\n20,0,\\n30,1,1.")
        >>> list(read_rows(file))
        [{'step': '10', 'epoch': '0', 'train/loss': '1.5'}, {'step': '20', 'epoch': '0', 'train/loss': ''}]
    """
    if not Path(path).exists():
        return
    with open_untrusted(path, what="a table of metrics", limit=TABLE_BYTES) as file:
        stream = io.TextIOWrapper(file, "utf-8", newline="")
        try:
            lines = iter(lambda: stream.readline(_LINE_CHARACTERS), "")
            rows = csv.reader(line for line in lines if line.endswith("\n") or len(line) == _LINE_CHARACTERS)
            columns = next(rows, ["step"])
            if len(set(columns)) < len(columns) or "step" not in columns or len(columns) > _COLUMNS:
                raise ValueError(f"expected different columns, at most {_COLUMNS:,}, one of them step")
            for row in rows:
                if len(row) != len(columns):
                    raise ValueError(f"line {rows.line_num} has {len(row)} fields, the header {len(columns)}")
                yield dict(zip(columns, row, strict=True))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is no table of logged metrics: {error}") from error


def read_numbers(path: str | os.PathLike[str]) -> Iterator[dict[str, float]]:
    """Yield the rows as numbers, each without its empty fields.

    Raises:
        ValueError: as :func:`read_rows`, or a field is no number, a row has no step, or there are too many fields,
            which is known before the first row.
    """
    _check_size(path)
    for row in read_rows(path):
        try:
            yield {name: float(text) for name, text in row.items() if text or name == "step"}
        except ValueError as error:
            raise ValueError(f"{path} is no table of logged metrics: {str(error)[:200]}") from error


def _check_size(path: str | os.PathLike[str]) -> None:
    """Count what ends a field and what ends a value, a block at a time; quoted commas count as well."""
    fields = values = 0
    was_end = True
    if not Path(path).exists():
        return
    with open_untrusted(path, what="a table of metrics", limit=TABLE_BYTES) as file:
        while block := file.read(1 << 20):
            data = np.frombuffer(block, np.uint8)
            is_end = (data == ord(",")) | (data == ord("\n")) | (data == ord("\r"))
            fields += int(is_end.sum())
            values += int((is_end[1:] & ~is_end[:-1]).sum()) + int(is_end[0] and not was_end)
            was_end = bool(is_end[-1])
            if fields > _FIELDS or values > _NUMBERS:
                raise ValueError(
                    f"{path} is refused: it has more than {_NUMBERS:,} numbers or {_FIELDS:,} fields, the limits"
                )


def read_metric(path: str | os.PathLike[str], name: str) -> list[float]:
    """The logged values of one metric, in the file's order; empty where there is no such file or column."""
    return [row[name] for row in read_numbers(path) if name in row]


def write_rows(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Replace a file by a header and rows, all at once; what a row lacks is left empty."""
    write_text(path, _text(columns, [dict(zip(columns, columns, strict=True)), *rows]))


def append_row(path: str | os.PathLike[str], columns: Sequence[str], row: Mapping[str, str]) -> None:
    """Add a row to a file that has these columns."""
    append_text(path, _text(columns, [row]))


def ordered(columns: Iterable[str]) -> list[str]:
    """Columns in the order that every file has: stage, step and epoch lead, the rest is in alphabetical order.

    Example:
        >>> ordered({"val/loss", "epoch", "train/loss", "step"})
        ['step', 'epoch', 'train/loss', 'val/loss']
    """
    known = set(columns)
    lead = [name for name in ("stage", "step", "epoch") if name in known]
    return [*lead, *sorted(known.difference(lead))]


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()
