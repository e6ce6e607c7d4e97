"""The metrics that a run logged while it was trained, from its ``metrics.csv``."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from itertools import pairwise

from lit_distill.runs.artifacts import stage_folders
from lit_distill.runs.metrics_csv import read_numbers
from lit_distill.runs.names import METRICS_FILE
from lit_distill.runs.run import Run


@dataclass(frozen=True)
class History:
    """What was logged: for each metric its points (step, value), finite or not, in the file's order."""

    label: str
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def last(self, name: str) -> float | None:
        """The last finite value of a metric; None where there is none."""
        return next((value for _, value in reversed(self.series.get(name, [])) if math.isfinite(value)), None)


def read_history(file: str | os.PathLike[str], label: str) -> History:
    """Read the ``metrics.csv`` of an untrusted run folder, as numbers and nothing else; empty where there is none.

    Raises:
        ValueError: it is too large, or is no table of numbers.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> _ = file.write_text("step,epoch,train/loss\\n10,0,1.5\\n20,0,\\n30,1,1.25\\n")
        >>> read_history(file, "a").series
        {'train/loss': [(10.0, 1.5), (30.0, 1.25)]}
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for row in read_numbers(file):
        step = row["step"]
        for name, value in row.items():
            if name not in ("step", "epoch"):
                series.setdefault(name, []).append((step, value))
    return History(label, series)


def histories(run: Run, label: str) -> list[History]:
    """What a run logged: of one of several stages, that of each stage that has begun."""
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
