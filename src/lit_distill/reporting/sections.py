"""The sections of a report, each from what was looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_distill._screen import percent
from lit_distill.diagnosis.cost import Cost
from lit_distill.inference.evaluation import class_rows
from lit_distill.reporting.charts import (
    Chart,
    Line,
    bar_chart,
    line_chart,
    number,
    reliability_chart,
    shade_map,
    shown,
)
from lit_distill.reporting.clips import changed, clip_figures
from lit_distill.reporting.evidence import Judged, Pair, RunEvidence
from lit_distill.reporting.history import History, thinned
from lit_distill.reporting.page import Section, grid, note, shaded, table
from lit_distill.runs.names import METRICS_FILE

_SHOWN_CLASSES = 15
_WRITTEN_OUT = 24  # classes of a confusion matrix with numbers
_GRADIENTS = ("grad/", "grad_cos/")


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a report is made of; a cost that could not be measured is the reason."""

    runs: Sequence[RunEvidence]
    logged: Sequence[History]
    pairs: Sequence[Pair]
    notes: Sequence[str]
    costs: Mapping[str, Cost | str]
    clips: int

    @property
    def judged(self) -> list[Judged]:
        """All models of all runs."""
        return [judged for run in self.runs for judged in run.judged.values()]


def sections(material: Material) -> list[Section]:
    """All sections that have content."""
    made = [
        Section("summary", "Summary", _summary(material)),
        Section("curves", "Curves", _curves(material)),
        Section("agreement", "Agreement", _agreement(material)),
        Section("calibration", "Calibration", _calibration(material)),
        Section("classes", "Classes: gains and losses", _classes(material)),
        Section("confusion", "Confusion", _confusion(material)),
        Section("clips", "Changed clips", _clips(material)),
        Section("similarity", "Similarity of layers", _similarity(material)),
        Section("gradients", "Gradients of the terms", _gradients(material)),
        Section("cost", "Time and memory", _cost(material)),
    ]
    return [section for section in made if section.body]


def _summary(material: Material) -> str:
    rows = [
        (j.label, percent(j.figures["top1"]), percent(j.figures["top5"]), f"{j.figures['loss']:.4g}",
         percent(j.figures["ece"]), j.figures["samples"], f"{j.parameters:,}")
        for j in material.judged
    ]  # fmt: skip
    parts = [table(("model", "top-1", "top-5", "loss", "ECE", "samples", "parameters"), rows)]
    facts = []
    for run in material.runs:
        results = run.run.results
        facts.append(
            (run.label, results.get("experiment") or "–", results.get("epochs", "–"), results.get("steps", "–"),
             results.get("seed", "–"), (results.get("versions") or {}).get("torch", "–"), run.run.folder)
        )  # fmt: skip
    parts.append(table(("run", "experiment", "epochs", "steps", "seed", "torch", "folder"), facts))
    parts += [
        note(f"{run.label} · {name} is left out: {why}") for run in material.runs for name, why in run.left_out.items()
    ]
    return "".join([*parts, *map(note, material.notes)])


def _curves(material: Material) -> str:
    by_stage = len(material.logged) == 1  # colours distinguish the stages of one run, or the runs
    charts: dict[str, list[Line]] = {}
    for place, history in enumerate(material.logged):
        for name, points in history.series.items():
            if name.startswith(_GRADIENTS):
                continue
            stage, _, rest = name.partition("/")
            known = stage in ("train", "val", "test") and bool(rest)
            chart, said = (rest, stage) if known else (name, "")
            colour = (1 if stage == "val" else 0) if by_stage else place
            label = " ".join(part for part in ("" if by_stage else history.label, said) if part) or name
            line = Line(label, thinned(points), colour, dashed=known and stage == "train" and not by_stage)
            charts.setdefault(chart, []).append(line)
    if not charts:
        return note(f"the runs have no {METRICS_FILE}, so there are no curves")
    first = sorted(charts, key=lambda name: (name != "loss", not name.endswith("top1"), name))
    means = note("of long runs each point is the mean of its neighbours, at most 300 a line")
    return grid([line_chart(charts[name], title=name) for name in first]) + means


def _agreement(material: Material) -> str:
    if not material.pairs:
        return ""
    rows = []
    for pair in material.pairs:
        right_a, right_b = pair.right
        rows.append(
            (pair.a.label,
                pair.b.label, percent(pair.agreement), number(pair.kl),
             percent(float((right_a & right_b).double().mean())), percent(float((right_b & ~right_a).double().mean())),
             percent(float((right_a & ~right_b).double().mean())),
             percent(float((~right_a & ~right_b).double().mean())), len(pair.target))
        )  # fmt: skip
    head = ("a", "b", "same class", "KL(a || b)", "both right", "only b", "only a", "neither", "samples")
    words = (
        "Share of the samples that both take for the same class, and the mean Kullback-Leibler divergence of b's class "
        "probabilities from a's, in nats."
    )
    return note(words) + table(head, rows)


def _calibration(material: Material) -> str:
    charts = [
        reliability_chart(
            judged.figures["bins"], title=f"{judged.label}: ECE {percent(judged.figures['ece'])}", colour=place
        )
        for place, judged in enumerate(material.judged)
    ]
    words = (
        "Bars are the share that is right among samples of that confidence; on the dashed line it would be what the "
        "network promises. ECE: the mean distance of the two over 15 bins, weighed by their samples."
    )
    return note(words) + grid(charts)


def _classes(material: Material) -> str:
    parts = []
    for pair in material.pairs:
        names = pair.home.class_names
        changes = sorted(pair.class_changes(), key=lambda change: (-change[2], change[0]))
        ups = [change for change in changes if change[2] > 0]
        downs = [change for change in changes if change[2] < 0]
        title = f"{pair.b.label} less {pair.a.label}"
        parts.append(f"<h3>{shown(title)}</h3>")
        parts.append(note(f"{len(ups)} classes gain, {len(downs)} lose, {len(changes) - len(ups) - len(downs)} stay"))
        most = [*ups[:_SHOWN_CLASSES], *downs[-_SHOWN_CLASSES:]]
        if most:
            rows = [(names[c], gain, f"{100 * gain:+.1f}") for c, _, gain in most]
            parts.append(grid([bar_chart(rows, title="top-1 of each class, points")]))
    return "".join(parts)


def _confusion(material: Material) -> str:
    parts = []
    for run in material.runs:
        judged, names = run.student, run.class_names
        counts = judged.figures["confusion"]
        shares = [[count / max(1, sum(row)) for count in row] for row in counts]
        parts.append(f"<h3>{shown(judged.label)}</h3>")
        if len(names) <= _WRITTEN_OUT:
            said = [[str(count) if count else "" for count in row] for row in counts]
            parts.append(shaded(names, names, shares, said, corner="true \\ predicted"))
        else:
            parts.append(grid([shade_map(shares, title="rows: true class, columns: predicted, by number")]))
        worst = sorted(
            ((row["confused"], row) for row in class_rows(counts, names) if row["confused"]), key=lambda pair: -pair[0]
        )[:_SHOWN_CLASSES]
        rows = [
            (row["name"], row["samples"], percent(row["top1"]), row["confused_with"], f"{times}x")
            for times, row in worst
        ]
        if rows:
            parts.append(table(("class", "samples", "top-1", "most often taken for", "how often"), rows))
    return "".join(parts)


def _clips(material: Material) -> str:
    if not material.clips:
        return ""
    parts = []
    for pair in material.pairs:
        if not pair.home.names:
            parts.append(note(f"the data of {pair.home.label} does not name its samples, so none are shown"))
            continue
        for title, places in changed(pair, material.clips):
            parts.append(f"<h3>{shown(title)}</h3>")
            parts.append(grid(clip_figures(pair, places)) if places else note("no such sample"))
    return "".join(parts)


def _similarity(material: Material) -> str:
    parts = []
    for pair in material.pairs:
        if not pair.within or not pair.a.features:
            continue
        rows, columns, values = pair.cka()
        samples = len(next(iter(pair.a.features.values())))
        said = [["–" if math.isnan(value) else f"{value:.2f}" for value in row] for row in values]
        parts.append(f"<h3>{shown(f'{pair.a.label} (rows) and {pair.b.label} (columns)')}</h3>")
        parts.append(shaded(rows, columns, values, said, corner=f"{samples} samples"))
    words = (
        "Linear CKA of what the layers give for the same samples, averaged over positions: 1 for the same features up "
        "to rotation and scale, around 0 for unrelated ones. The estimate is the unbiased one of HSIC, so it may be "
        "below 0."
    )
    return note(words) + "".join(parts) if parts else ""


def _gradients(material: Material) -> str:
    parts = []
    for history in material.logged:
        norms = {name: points for name, points in history.series.items() if name.startswith("grad/")}
        cosines = {name: points for name, points in history.series.items() if name.startswith("grad_cos/")}
        if not norms:
            continue
        parts.append(f"<h3>{shown(history.label)}</h3>")
        charts = [_terms(norms, "grad/", "norm of each weighted term's gradient")]
        if cosines:
            charts.append(_terms(cosines, "grad_cos/", "cosine of each pair of terms"))
        parts.append(grid(charts))
    words = (
        "Over the student's parameters, as callbacks=gradients measured it. Below 0 two terms work against each other."
    )
    return (
        note(words) + "".join(parts)
        if parts
        else note("no run logged them: train with callbacks=gradients to have them here")
    )


def _terms(series: Mapping[str, list[tuple[float, float]]], prefix: str, title: str) -> Chart:
    lines = [
        Line(name.removeprefix(prefix).replace("/", " and "), thinned(points), place)
        for place, (name, points) in enumerate(series.items())
    ]
    return line_chart(lines, title=title, legend=True)


def _cost(material: Material) -> str:
    rows = [
        (j.label, f"{1e3 * j.seconds / j.figures['samples']:.2f} ms", f"{4 * j.parameters / 2**20:.1f} MiB")
        for j in material.judged
    ]
    parts = [table(("model", "forward pass a sample, here", "parameters in float32"), rows)]
    trained = [
        (run.label, f"{float(seconds):,.0f} s") for run in material.runs
        if isinstance(seconds := run.run.results.get("seconds"), (int, float))
    ]  # fmt: skip
    if trained:
        parts.append(table(("run", "its training took"), trained))
    for label, cost in material.costs.items():
        parts.append(f"<h3>{shown(f'{label}: a training step')}</h3>")
        if isinstance(cost, str):
            parts.append(note(f"not measured: {cost}"))
            continue
        whole = sum(cost.seconds.values()) or 1.0
        bars = [(part, s, f"{1e3 * s:.1f} ms, {100 * s / whole:.0f} %") for part, s in cost.seconds.items()]
        kept = {"optimizer state" if part == "optimizer" else part: size for part, size in cost.bytes.items()}
        kept |= {f"kept of {part.removeprefix('forward ')}": size for part, size in cost.kept_bytes.items()}
        sizes = [(part, float(size), f"{size / 2**20:.1f} MiB") for part, size in kept.items()]
        parts.append(
            grid([bar_chart(bars, title="time of a batch, measured here"), bar_chart(sizes, title="memory of a batch")])
        )
    return "".join(parts)
