"""Pictures of a comparison: gains with their intervals, and validation accuracy over the epochs."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_distill._files import write_bytes
from lit_distill.runs.names import CURVES_FILE, GAINS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"better": "#1a7f4b", "worse": "#b3261e", "not shown": "#6b7280"}


def can_plot() -> bool:
    """Whether matplotlib is there (extra ``lit-distill[report]``)."""
    return find_spec("matplotlib") is not None


def write_plots(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the pictures, and return their names.

    Args:
        record: content of `compare.json`.
        folder: where to.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    if not can_plot():
        raise ModuleNotFoundError("plots need matplotlib: pip install 'lit-distill[report]'")
    for name, figure in ((GAINS_FILE, _gains(record)), (CURVES_FILE, _curves(record))):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
        write_bytes(folder / name, content.getvalue())
    return [GAINS_FILE, CURVES_FILE]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _gains(record: Mapping[str, Any]) -> Figure:
    """A line a strategy: the gain of each seed, their mean and its interval."""
    strategies = {name: s for name, s in record["strategies"].items() if s.get("gain") is not None}
    figure = _figure(7, 1.2 + 0.42 * max(1, len(strategies)))
    axes = figure.subplots()
    for place, strategy in enumerate(strategies.values()):
        colour = _COLOURS[strategy["verdict"]]
        gains = list(strategy["gains"].values())
        axes.scatter(gains, [place] * len(gains), s=14, color=colour, alpha=0.35, linewidths=0)
        if strategy["interval"] is not None:
            axes.plot(strategy["interval"], [place, place], color=colour, linewidth=2)
        axes.scatter([strategy["gain"]], [place], s=44, color=colour, zorder=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(strategies)), list(strategies))
    axes.set_ylim(len(strategies) - 0.4, -0.6)  # the first on top
    axes.set_xlabel(f"test top-1 less that of {record['reference']}, points (seeds, mean, 95 % interval)")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curves(record: Mapping[str, Any]) -> Figure:
    """Validation top-1 of the Student over the epochs, the mean of the seeds."""
    figure = _figure(7, 4)
    axes = figure.subplots()
    for name, strategy in record["strategies"].items():
        runs = [run["val_curve"] for run in strategy["runs"] if run["top1"] is not None and run["val_curve"]]
        if runs:
            means = [statistics.fmean(values) for values in zip(*runs, strict=False)]
            heavy = name == record["reference"]
            axes.plot(
                range(1, len(means) + 1), means, label=name, linewidth=2.2 if heavy else 1.3,
                color="black" if heavy else None,
            )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation top-1, % (mean of seeds)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(fontsize=8, ncols=2)
    return figure
