"""compare.md: the table, and what has to be known to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_distill.runs.names import COMPARE_FILE
from lit_distill.training.preset import describe_weight

_GAP = "gap closed"
_HEAD = (
    "strategy", "teacher", "top-1, %", "paired gain [95 %]", _GAP, "p", "verdict", "minutes (CPU)", "memory, MiB",
)  # fmt: skip


def markdown(record: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The whole file of a `compare.json`, with the names of the pictures beside it."""
    machine = record["machine"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts = [
        "# Comparison",
        f"    {record['command']}",
        "\n".join(table(record)),
        "\n".join(f"- {note}" for note in notes(record)),
        f"Made on {machine['cores']} cores ({machine['processor']}{gpus}), {versions}, {record['date']}; every figure "
        f"of every run is in {COMPARE_FILE}.",
        *(f"![{name}]({name})" for name in plots),
    ]
    return "\n\n".join(parts) + "\n"


def table(record: Mapping[str, Any]) -> list[str]:
    """The lines of the table alone."""
    names = head(record)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows(record))]


def head(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the columns: that of the Teacher's gap only where a strategy learns from a trained Teacher."""
    return tuple(name for name in _HEAD if name != _GAP or _has_gap(record))


def _has_gap(record: Mapping[str, Any]) -> bool:
    return any(strategy.get("gap_closed") is not None for strategy in record["strategies"].values())


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells of every strategy, as texts."""
    wanted = len(record["seeds"])
    found = []
    for name, strategy in record["strategies"].items():
        done = sum(run["top1"] is not None for run in strategy["runs"])
        few = f" ({done} of {wanted} seeds)" if done < wanted else ""
        gain = strategy.get("gain")
        ends = strategy.get("interval")
        p = strategy.get("p_adjusted")
        found.append(
            [
                name,
                strategy["teacher"] or "-",
                _mean(strategy) + few,
                "-" if gain is None else f"{gain:+.2f}" + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else ""),
                *([_share(strategy.get("gap_closed"))] if _has_gap(record) else []),
                "-" if p is None else p_text(p),
                "the reference" if name == record["reference"] else _verdict(strategy),
                _minutes(strategy),
                "-" if strategy["peak_mib"] is None else _memory(strategy),
            ]
        )
    return found


def notes(record: Mapping[str, Any]) -> list[str]:
    """What the numbers are, the teacher, and all that is missing."""
    statistics = record["statistics"]
    reference = record["strategies"][record["reference"]]
    steps = {run["steps"] for s in record["strategies"].values() for run in s["runs"] if run["top1"] is not None}
    samples = next((run["test_samples"] for run in reference["runs"] if run["top1"] is not None), None)
    lines = [
        f"Student: {record['student']}. Figures: {record['figure']}"
        + (f" ({samples} samples)" if samples else "")
        + f"; mean ± standard deviation over seeds {', '.join(map(str, record['seeds']))}.",
        f"Gain: {statistics['gain']}; interval: {statistics['interval']}; p: {statistics['p']}, adjusted by "
        f"{statistics['p_adjusted']}. Verdict: {statistics['verdict']}. "
        "The spread is that over seeds, of one test split and one teacher.",
    ]
    if len(steps) == 1:
        lines.append(
            f"Checked of every pair: the same samples in the same order, the same pixels at the start of each epoch, "
            f"{steps.pop()} updates of the Student."
        )
    if record["teacher"] is not None:
        lines.append(_teacher(record["teacher"], record["data"].get("labelled_share", 1.0)))
    if _has_gap(record):
        lines.append("Gap closed: the gain as a share of the way from the reference's mean to this Teacher's accuracy.")
    used = {name: value for name, value in record["preset_weights"].items() if _is_used(name, value, record)}
    if used:
        lines.append(f"Weights that the data's preset has in place of the published: {_weights(used)}.")
    lines += [
        f"{name}: {' '.join(strategy['overrides'])}"
        for name, strategy in record["strategies"].items()
        if strategy["overrides"]
    ]
    lines += [f"**{name} is not paired**: {text}" for name, s in record["strategies"].items() for text in _unpaired(s)]
    for name, strategy in record["strategies"].items():
        seeds: dict[str, list[int]] = {}
        for run in strategy["runs"]:
            if run["fault"]:
                seeds.setdefault(run["fault"], []).append(run["seed"])
        lines += [f"**{name}, seed {', '.join(map(str, these))}**: {fault}" for fault, these in seeds.items()]
    return lines


def p_text(p: float) -> str:
    """A p-value as it is shown.

    Example:
        >>> p_text(0.0312), p_text(0.00021), p_text(0.0000001), p_text(1.0)
        ('0.031', '0.0002', '< 0.0001', '1')
    """
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.4f}".rstrip("0") if p < 1e-3 else f"{p:.3f}".rstrip("0").rstrip(".")


def _is_used(term: str, weight: Any, record: Mapping[str, Any]) -> bool:
    return any(strategy["weights"].get(term) == weight for strategy in record["strategies"].values())


def _weights(weights: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {describe_weight(value)}" for name, value in weights.items())


def _share(closed: float | None) -> str:
    return "-" if closed is None else f"{100 * closed:.0f} %"


def _mean(strategy: Mapping[str, Any]) -> str:
    if strategy["mean"] is None:
        return "-"
    return f"{strategy['mean']:.2f}" + ("" if strategy["std"] is None else f" ± {strategy['std']:.2f}")


def _verdict(strategy: Mapping[str, Any]) -> str:
    if strategy["gain"] is None:
        return "-"
    text = str(strategy["verdict"])
    return text if text == "not shown" else f"**{text}**"


def _minutes(strategy: Mapping[str, Any]) -> str:
    if strategy["seconds"] is None:
        return "-"
    return f"{strategy['seconds'] / 60:.1f} ({strategy['cpu_seconds'] / 60:.1f})"


def _memory(strategy: Mapping[str, Any]) -> str:
    gpu = strategy["peak_cuda_mib"]
    return f"{strategy['peak_mib']:.0f}" + ("" if gpu is None else f", GPU {gpu:.0f}")


def _unpaired(strategy: Mapping[str, Any]) -> list[str]:
    return list(strategy.get("unpaired", []))


def _teacher(teacher: Mapping[str, Any], of_runs: float) -> str:
    if "network" not in teacher:
        return f"Frozen Teacher: {teacher['weights']}."
    if teacher["top1"] is None:
        return f"**Frozen Teacher**: {teacher['fault']}"
    share = teacher.get("labelled_share", of_runs)
    labels = (
        f" on {100 * share:.4g} % of the labels (the strategies: {100 * of_runs:.4g} %)" if share != of_runs else ""
    )
    return (
        f"Frozen Teacher: {teacher['network']}, trained once (seed {teacher['seed']}) for {teacher['epochs']} epochs"
        f"{labels}: {teacher['top1']:.2f} % on test, {teacher['val_top1']:.2f} % on validation; "
        f"{teacher['seconds'] / 60:.1f} minutes ({teacher['cpu_seconds'] / 60:.1f} CPU)."
    )
