"""Pictures of a comparison: gains with their intervals, and validation accuracy over the epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_distill._files import write_text
from lit_distill.reporting.charts import (
    COLOURS,
    GAIN,
    LOSS,
    Chart,
    Interval,
    Line,
    interval_chart,
    line_chart,
    svg_file,
)
from lit_distill.runs.names import CURVES_FILE, GAINS_FILE

_COLOURS = {"better": GAIN, "worse": LOSS, "not shown": "soft"}


def write_plots(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the pictures of a `compare.json` into a folder, and return their names."""
    for name, chart in ((GAINS_FILE, gains(record)), (CURVES_FILE, curves(record))):
        write_text(folder / name, svg_file([chart]))
    return [GAINS_FILE, CURVES_FILE]


def gains(record: Mapping[str, Any]) -> Chart:
    """A line a strategy: the gain of each seed, their mean and its interval."""
    rows = [
        Interval(name, list(s["gains"].values()), s["gain"], s["interval"], _COLOURS[s["verdict"]])
        for name, s in record["strategies"].items()
        if s.get("gain") is not None
    ]
    title = f"test top-1 less that of {record['reference']}, points (seeds, mean, 95 % interval)"
    return interval_chart(rows, title=title)


def curves(record: Mapping[str, Any]) -> Chart:
    """Validation top-1 of the Student over the epochs, the mean of the seeds."""
    lines: list[Line] = []
    for name, strategy in record["strategies"].items():
        runs = [run["val_curve"] for run in strategy["runs"] if run["top1"] is not None and run["val_curve"]]
        if runs:
            points = [(float(n), statistics.fmean(values)) for n, values in enumerate(zip(*runs, strict=False), 1)]
            others = sum(not line.heavy for line in lines)
            lines.append(Line(name, points, others, dashed=others >= COLOURS, heavy=name == record["reference"]))
    return line_chart(lines, title="validation top-1, % (mean of seeds)", x_label="epoch", legend=True)
