"""Charts as SVG, inside a page whose colours they follow, dark mode too, or as files: no script, no font."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lit_distill.untrusted.showing import printable

COLOURS = 6
LIGHT: Mapping[str, str] = {
    "page": "#fff", "text": "#1c2330", "soft": "#5c6675", "rule": "#dde2ea", "card": "#f6f8fb", "tint": "37 99 235",
    "c0": "#2563eb", "c1": "#d9480f", "c2": "#12805c", "c3": "#c02b3c", "c4": "#7c3aed", "c5": "#8a6d00",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#12161d", "text": "#e6eaf1", "soft": "#9aa5b5", "rule": "#2c3440", "card": "#1a202a", "tint": "96 150 255",
    "c0": "#6ea8ff", "c1": "#ff9457", "c2": "#4cc79a", "c3": "#ff7a86", "c4": "#b794ff", "c5": "#e0c04a",
}  # fmt: skip
STYLE = """
svg text{font-size:10.5px;fill:var(--soft)}svg text.label{font-size:11.5px;fill:var(--text)}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}.dashed{stroke-dasharray:4 3}.heavy{stroke-width:2.6}
.mesh{stroke:var(--rule);stroke-width:.6}.axis{stroke:var(--soft);stroke-width:.9}
.cell{fill:rgb(var(--tint))}.frame{fill:none;stroke:var(--rule);stroke-width:.3%}
""" + "".join(
    f".line.{name}{{stroke:var(--{name})}}.dot.{name},.bar.{name}{{fill:var(--{name})}}"
    for name in ("text", "soft", *(f"c{number}" for number in range(COLOURS)))
)
GAIN, LOSS = "c2", "c3"
_LARGEST = 1e100
_NOTHING = '<text x="0" y="14">no finite value was logged</text>'
_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 32


@dataclass(frozen=True)
class Line:
    """A line of a chart, broken where a point cannot be drawn; a heavy one is thick and before all others."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False
    heavy: bool = False

    @property
    def style(self) -> str:
        """Its classes."""
        colour = "text heavy" if self.heavy else f"c{self.colour % COLOURS}"
        return f"{colour} dashed" if self.dashed else colour


@dataclass(frozen=True)
class Chart:
    """A chart that has been drawn: its marks are SVG, untrusted text escaped by :func:`shown`."""

    title: str
    width: int
    height: int
    marks: str
    legend: tuple[Line, ...] = ()

    @property
    def html(self) -> str:
        """A figure for a page with :data:`STYLE`."""
        picture = (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{shown(self.title)}">'
            f"{self.marks}</svg>"
        )
        items = "".join(f'<li><span class="key {line.style}"></span>{shown(line.name)}</li>' for line in self.legend)
        legend = f'<ul class="legend">{items}</ul>' if items else ""
        return f"<figure><figcaption>{shown(self.title)}</figcaption>{picture}{legend}</figure>"


@dataclass(frozen=True)
class Interval:
    """A row of an :func:`interval_chart`: values, their mean, and its interval where there is one.

    ``beside`` is another mean, as a ring.
    """

    name: str
    values: Sequence[float]
    mean: float
    interval: Sequence[float] | None
    colour: str = "soft"
    beside: float | None = None

    @property
    def all_values(self) -> tuple[float, ...]:
        """Whatever has a place on the axis."""
        return (*self.values, self.mean, *(self.interval or ()), *(() if self.beside is None else (self.beside,)))


def shown(text: object) -> str:
    """An untrusted text as HTML shows it: nothing of it is markup, nothing turns the direction of writing.

    Example:
        >>> shown('<b onload="x">')
        '&lt;b onload=&quot;x&quot;&gt;'
    """
    return escape(printable(str(text)), quote=True)


def number(value: float) -> str:
    """A number in few characters.

    Example:
        >>> number(0.012345), number(12345678.0), number(30.0), number(float("nan"))
        ('0.0123', '1.23e+07', '30', '–')
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e5 else f"{value:.3g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range, at most so many steps of it apart.

    Example:
        >>> ticks(0.0, 1.0), ticks(-3.0, 24.0)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 10.0, 20.0])
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) + 0.0 for place in range(first, last + 1)]


def line_chart(lines: Sequence[Line], *, title: str, x_label: str = "step", legend: bool = False) -> Chart:
    """Lines, at least one, over a common x axis; one without a finite point is in the legend alone."""
    finite = [point for line in lines for point in line.points if _is_drawn(*point)]
    if not finite:
        return Chart(title, _WIDTH, 20, _NOTHING, tuple(lines))
    x_low, x_high = _range([x for x, _ in finite], pad=0.0)
    y_low, y_high = _range([y for _, y in finite], pad=0.05)
    x_of = _scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    y_of = _scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(_marked(ticks(x_low, x_high)), ticks(y_low, y_high), x_of, y_of, x_label)]
    for line in sorted(lines, key=lambda line: line.heavy):  # what is drawn later is before the others
        for piece in _pieces(line.points):
            where = [f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in piece]
            if len(where) == 1:
                at_x, at_y = where[0].split(",")
                parts.append(f'<circle class="dot {line.style}" cx="{at_x}" cy="{at_y}" r="2.5"/>')
            else:
                parts.append(f'<polyline class="line {line.style}" points="{" ".join(where)}"/>')
    return Chart(title, _WIDTH, _HEIGHT, "".join(parts), tuple(lines) if legend or len(lines) > 1 else ())


def dot_chart(points: Sequence[tuple[float | str, float]], *, title: str, x_label: str, log: bool = False) -> Chart:
    """Values over settings: numbers (positive on a logarithmic axis), or texts, each with a place."""
    names = list(dict.fromkeys(str(x) for x, _ in points if isinstance(x, str)))
    scaled = [
        (float(names.index(x)) if isinstance(x, str) else math.log10(x) if log else float(x), y) for x, y in points
    ]
    scaled = [point for point in scaled if _is_drawn(*point)]
    if not scaled:
        return Chart(title, _WIDTH, 20, _NOTHING)
    low, high = _range([x for x, _ in scaled], pad=0.05)
    if names:
        marks = [(float(place), name) for place, name in enumerate(names)]
    elif log:
        tens = range(math.floor(low), math.ceil(high))
        marks = [(math.log10(x), number(x)) for ten in tens for x in (10.0**ten, 2 * 10.0**ten, 5 * 10.0**ten)]
        marks = [(x, said) for x, said in marks if low <= x <= high]
    else:
        marks = _marked(ticks(low, high))
    y_low, y_high = _range([y for _, y in scaled], pad=0.05)
    x_of, y_of = _scale(low, high, _LEFT, _WIDTH - _RIGHT), _scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    dots = [f'<circle class="dot c0" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"/>' for x, y in scaled]
    return Chart(title, _WIDTH, _HEIGHT, "".join([_axes(marks, ticks(y_low, y_high), x_of, y_of, x_label), *dots]))


def interval_chart(rows: Sequence[Interval], *, title: str) -> Chart:
    """A line a row: single values, their mean and its interval, beside a line at zero. Rows that are not finite are
    left out."""
    height, width = 24, 480
    rows = [row for row in rows if _is_drawn(*row.all_values)]
    names = [_cut(row.name) for row in rows]
    ends = [x for row in rows for x in row.all_values]
    low, high = _range([0.0, *ends], pad=0.04)
    x_of = _scale(low, high, 20 + 6.5 * max(map(len, names), default=0), width - _RIGHT)
    bottom = height * len(rows)
    parts = []
    for x in ticks(low, high, 8):
        parts += [
            f'<line class="mesh" x1="{x_of(x):.1f}" y1="0" x2="{x_of(x):.1f}" y2="{bottom}"/>',
            f'<text class="tick" x="{x_of(x):.1f}" y="{bottom + 14}" text-anchor="middle">{number(x)}</text>',
        ]
    parts.append(f'<line class="axis" x1="{x_of(0):.1f}" y1="0" x2="{x_of(0):.1f}" y2="{bottom}"/>')
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        y, dot = height * place + height / 2, f'<circle class="dot {row.colour}"'
        parts.append(f'<text class="label" x="{x_of(low) - 8:.1f}" y="{y + 4}" text-anchor="end">{shown(name)}</text>')
        parts += [f'{dot} cx="{x_of(x):.1f}" cy="{y}" r="2.5" fill-opacity="0.4"/>' for x in row.values]
        if row.interval is not None:
            left, right = row.interval
            parts.append(
                f'<line class="line {row.colour}" x1="{x_of(left):.1f}" y1="{y}" x2="{x_of(right):.1f}" y2="{y}"/>'
            )
        if row.beside is not None:
            parts.append(f'<circle class="line text" cx="{x_of(row.beside):.1f}" cy="{y}" r="3.5"/>')
        parts.append(f'{dot} cx="{x_of(row.mean):.1f}" cy="{y}" r="4.5"/>')
    return Chart(title, width, bottom + 20, "".join(parts))


def svg_file(charts: Sequence[Chart], *, scale: float = 2.0, dark: bool = False, below: bool = False) -> str:
    """Charts side by side as a file of its own, with their titles and legends, in the light colours.

    With ``dark`` also in the dark ones, where the reader's system asks for them; with ``below`` one below the other.
    """
    gap, title, row = 16, 22, 16
    parts, left, above, width, height = [], gap, 0, 0, 0
    for chart in charts:
        top = above + gap + title
        parts.append(
            f'<text class="label" x="{left}" y="{above + gap + 10}">{shown(chart.title)}</text>'
            f'<g transform="translate({left},{top})">{chart.marks}</g>'
        )
        column = 44 + 6 * max((len(_cut(line.name)) for line in chart.legend), default=0)
        columns = max(1, chart.width // column)
        for place, line in enumerate(chart.legend):
            x, y = left + column * (place % columns), top + chart.height + row * (place // columns + 1)
            parts.append(
                f'<line class="line {line.style}" x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}"/>'
                f'<text x="{x + 28}" y="{y}">{shown(_cut(line.name))}</text>'
            )
        height = max(height, top + chart.height + row * math.ceil(len(chart.legend) / columns) + gap)
        width = max(width, left + chart.width + gap)
        left, above = (left, height) if below else (width, 0)
    style, page = _style(LIGHT), ""
    if dark:
        style += f"@media(prefers-color-scheme:dark){{{_style(DARK)}.page{{fill:{DARK['page']}}}}}"
        page = ' class="page"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{scale * width:.0f}" height="{scale * height:.0f}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif"><style>{style}</style>'
        f'<rect{page} width="{width}" height="{height}" fill="{LIGHT["page"]}"/>{"".join(parts)}</svg>\n'
    )


def _style(colours: Mapping[str, str]) -> str:
    return re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], STYLE)  # viewers know no variables


def reliability_chart(bins: Sequence[dict[str, Any]], *, title: str, colour: int = 0) -> Chart:
    """Accuracy over confidence: bars the share that is right, the dashed diagonal what it would be if calibrated."""
    x_of, y_of = _scale(0, 1, _LEFT, _WIDTH - _RIGHT), _scale(0, 1, _HEIGHT - _BOTTOM, _TOP)
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [_axes(_marked(marks), marks, x_of, y_of, "confidence")]
    for one in bins:
        left, right, top = x_of(one["above"]), x_of(one["up_to"]), y_of(one["accuracy"])
        said = f"{one['samples']} samples: confidence {one['confidence']:.3f}, accuracy {one['accuracy']:.3f}"
        parts.append(
            f'<rect class="bar c{colour % COLOURS}" x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" '
            f'height="{max(y_of(0) - top, 0.8):.1f}"><title>{said}</title></rect>'
        )
    parts.append(f'<line class="line dashed axis" x1="{x_of(0)}" y1="{y_of(0)}" x2="{x_of(1)}" y2="{y_of(1)}"/>')
    return Chart(title, _WIDTH, _HEIGHT, "".join(parts))


def bar_chart(rows: Sequence[tuple[str, float, str]], *, title: str) -> Chart:
    """Horizontal bars from zero to either side, each with its name and a text; gains and losses differ in colour."""
    height, middle = 20, 170
    rows = [(name, value if _is_drawn(value) else 0.0, said) for name, value, said in rows]
    longest = max((abs(value) for _, value, _ in rows), default=0.0) or 1.0
    signed = any(value < 0 for _, value, _ in rows)
    beside = 12 + 6.5 * max((len(said) for _, _, said in rows), default=0)  # no bar reaches what is written there
    room = max(20.0, _WIDTH - middle - beside) / (2 if signed else 1)
    zero = middle + (room if signed else 0)
    parts = []
    for place, (name, value, said) in enumerate(rows):
        top, length = place * height, abs(value) / longest * room
        left = zero if value >= 0 else zero - length
        parts += [
            f'<text class="label" x="{middle - 8}" y="{top + 14}" text-anchor="end">{shown(_cut(name))}</text>',
            f'<rect class="bar {GAIN if value >= 0 else LOSS}" x="{left:.1f}" y="{top + 4}" width="{length:.1f}" '
            f'height="{height - 8}"/>',
            f'<text class="label" x="{_WIDTH - 2}" y="{top + 14}" text-anchor="end">{shown(said)}</text>',
        ]
    parts.append(f'<line class="axis" x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="{len(rows) * height}"/>')
    return Chart(title, _WIDTH, max(1, len(rows)) * height, "".join(parts))


def shade_map(values: Sequence[Sequence[float]], *, title: str) -> Chart:
    """A matrix of shares from 0 to 1 as shades, without numbers: of many classes. Zeros are left blank."""
    size = len(values)
    cells = [
        f'<rect class="cell" x="{column}" y="{row}" width="1" height="1" fill-opacity="{value:.2f}"/>'
        for row, shares in enumerate(values)
        for column, value in enumerate(shares)
        if value >= 0.005
    ]
    frame = f'<rect class="frame" x="0" y="0" width="{size}" height="{size}"/>'
    return Chart(title, size, size, "".join([frame, *cells]))


def _marked(values: Iterable[float]) -> list[tuple[float, str]]:
    return [(value, number(value)) for value in values]


def _cut(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def _axes(xs: Sequence[tuple[float, str]], ys: Sequence[float], x_of: Any, y_of: Any, x_label: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for y in ys:
        parts.append(f'<line class="mesh" x1="{_LEFT}" y1="{y_of(y):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 5}" y="{y_of(y) + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x, said in xs:
        end = "end" if x_of(x) > _WIDTH - 24 else "middle"
        parts.append(f'<text class="tick" x="{x_of(x):.1f}" y="{bottom + 14}" text-anchor="{end}">{shown(said)}</text>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{bottom + 27}" text-anchor="end">{shown(x_label)}</text>'
    )
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}"/>')
    return "".join(parts)


def _is_drawn(*values: float) -> bool:
    """Whether numbers, which others may have logged, are within what an axis can be divided by."""
    return all(abs(value) <= _LARGEST for value in values)  # False for nan


def _range(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1 / _LARGEST):
        room = abs(low) * 0.1 if abs(low) > 1e12 / _LARGEST else 1.0
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _is_drawn(x, y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]
