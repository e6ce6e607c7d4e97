"""The figures that a run logged while it was trained, from its ``metrics.csv``."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lit_distill.runs.opened import Run
from lit_distill.runs.resume import stage_folders

METRICS_FILE = "metrics.csv"
MAX_BYTES = 500_000_000
MAX_COLUMNS = 2_000


@dataclass(frozen=True)
class History:
    """What was logged.

    Attributes:
        label: of the run, or of its stage.
        series: for each figure its points (step, value), finite or not, in the file's order.
    """

    label: str
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def last(self, name: str) -> float | None:
        """The last finite value of a figure; None where there is none."""
        return next((value for _, value in reversed(self.series.get(name, [])) if math.isfinite(value)), None)


def read_history(file: str | os.PathLike[str], label: str) -> History:
    """Read a ``metrics.csv``; a line that a killed writer left unfinished is left out, as a resumed run does.

    Args:
        file: of a received run folder: it is read as numbers and nothing else.
        label: for the legend.

    Raises:
        ValueError: it is too large, or is no table of numbers.
        FileNotFoundError: it is not there.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> _ = file.write_text("step,epoch,train/loss\\n10,0,1.5\\n20,0,\\n30,1,1.25\\n")
        >>> read_history(file, "a").series
        {'train/loss': [(10.0, 1.5), (30.0, 1.25)]}
    """
    path = Path(file)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is refused: it has more than {MAX_BYTES:,} bytes")
    series: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        try:
            rows = csv.reader(line for line in stream if line.endswith("\n"))
            columns = next(rows, ["step"])
            if len(columns) > MAX_COLUMNS or len(set(columns)) < len(columns) or "step" not in columns:
                raise ValueError(f"expected different columns, at most {MAX_COLUMNS:,}, one of them step")
            place = columns.index("step")
            for row in rows:
                if len(row) != len(columns):
                    raise ValueError(f"line {rows.line_num} has {len(row)} fields, the header {len(columns)}")
                step = float(row[place])
                for name, text in zip(columns, row, strict=True):
                    if text and name not in ("step", "epoch"):
                        series.setdefault(name, []).append((step, float(text)))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is no table of logged figures: {error}") from error
    return History(label, series)


def histories(run: Run, label: str) -> list[History]:
    """What a run logged: of one of several stages, that of each stage that has begun.

    Args:
        run: opened by its folder.
        label: of the run.
    """
    folders = (
        {label: run.folder} if run.stage is None else {f"{label} · {s.name}": s for s in stage_folders(run.folder)}
    )
    found = {name: folder / METRICS_FILE for name, folder in folders.items() if (folder / METRICS_FILE).is_file()}
    return [read_history(file, name) for name, file in found.items()]


def thinned(points: list[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """At most so many points: neighbours averaged, a group with a value that is not finite is not finite.

    Example:
        >>> thinned([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0)], 2)
        [(0.5, 2.0), (2.5, 6.0)]
    """
    if len(points) <= most:
        return points
    edges = [place * len(points) // most for place in range(most + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
