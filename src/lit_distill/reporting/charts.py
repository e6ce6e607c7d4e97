"""Charts as SVG inside a page: no script, no font, and the page's colours, so that they follow its dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lit_distill._screen import printable

COLOURS = 6
_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 32


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend.
        points: (x, y); it is broken where y is not finite.
        colour: number of one of the page's colours, taken modulo :data:`COLOURS`.
        dashed: or solid.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def shown(text: object) -> str:
    """A text of others as HTML shows it: nothing of it is markup, nothing turns the direction of writing.

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
    """Round numbers within a range, at least a so-manieth part of it apart.

    Example:
        >>> ticks(0.0, 1.0), ticks(-3.0, 24.0)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 10.0, 20.0])
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) + 0.0 for place in range(first, last + 1)]


def line_chart(lines: Sequence[Line], *, title: str, x_label: str = "step", legend: bool = False) -> str:
    """Lines over a common x axis, with a legend where there are several.

    Args:
        lines: at least one; those without a finite point are in the legend alone.
        title: of the figure.
        x_label: under the axis.
        legend: for a single line too.
    """
    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return _figure(title, '<p class="note">no finite value was logged</p>', _legend(lines))
    x_low, x_high = _range([x for x, _ in finite], pad=0.0)
    y_low, y_high = _range([y for _, y in finite], pad=0.05)
    x_of = _scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    y_of = _scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(ticks(x_low, x_high), ticks(y_low, y_high), x_of, y_of, x_label)]
    for line in lines:
        style = f'class="line c{line.colour % COLOURS}{" dashed" if line.dashed else ""}"'
        for piece in _pieces(line.points):
            where = [f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in piece]
            if len(where) == 1:
                at_x, at_y = where[0].split(",")
                parts.append(f'<circle class="dot c{line.colour % COLOURS}" cx="{at_x}" cy="{at_y}" r="2.5"/>')
            else:
                parts.append(f'<polyline {style} points="{" ".join(where)}"/>')
    return _figure(title, _svg(_WIDTH, _HEIGHT, parts, title), _legend(lines) if legend or len(lines) > 1 else "")


def reliability_chart(bins: Sequence[dict[str, Any]], *, title: str, colour: int = 0) -> str:
    """Accuracy over confidence: bars the share that is right, the dashed diagonal what it would be if calibrated.

    Args:
        bins: of :meth:`lit_distill.inference.evaluation.ClassificationReport.compute`.
        title: of the figure.
        colour: of the bars.
    """
    x_of, y_of = _scale(0, 1, _LEFT, _WIDTH - _RIGHT), _scale(0, 1, _HEIGHT - _BOTTOM, _TOP)
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [_axes(marks, marks, x_of, y_of, "confidence")]
    for one in bins:
        left, right, top = x_of(one["above"]), x_of(one["up_to"]), y_of(one["accuracy"])
        said = f"{one['samples']} samples: confidence {one['confidence']:.3f}, accuracy {one['accuracy']:.3f}"
        parts.append(
            f'<rect class="bar c{colour % COLOURS}" x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" '
            f'height="{max(y_of(0) - top, 0.8):.1f}"><title>{said}</title></rect>'
        )
    parts.append(f'<line class="line dashed axis" x1="{x_of(0)}" y1="{y_of(0)}" x2="{x_of(1)}" y2="{y_of(1)}"/>')
    return _figure(title, _svg(_WIDTH, _HEIGHT, parts, title), "")


def bar_chart(rows: Sequence[tuple[str, float, str]], *, title: str) -> str:
    """Horizontal bars from zero to either side; a gain has one colour, a loss another.

    Args:
        rows: name, length, and what is written beside it.
        title: of the figure.
    """
    height, middle = 20, 170
    longest = max((abs(value) for _, value, _ in rows), default=0.0) or 1.0
    signed = any(value < 0 for _, value, _ in rows)
    beside = 12 + 6.5 * max((len(said) for _, _, said in rows), default=0)  # no bar reaches what is written there
    room = max(20.0, _WIDTH - middle - beside) / (2 if signed else 1)
    zero = middle + (room if signed else 0)
    parts = []
    for place, (name, value, said) in enumerate(rows):
        top, length = place * height, abs(value) / longest * room
        name = name if len(name) <= 26 else f"{name[:25]}…"
        left = zero if value >= 0 else zero - length
        parts += [
            f'<text class="label" x="{middle - 8}" y="{top + 14}" text-anchor="end">{shown(name)}</text>',
            f'<rect class="bar {"c2" if value >= 0 else "c3"}" x="{left:.1f}" y="{top + 4}" width="{length:.1f}" '
            f'height="{height - 8}"/>',
            f'<text class="label" x="{_WIDTH - 2}" y="{top + 14}" text-anchor="end">{shown(said)}</text>',
        ]
    parts.append(f'<line class="axis" x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="{len(rows) * height}"/>')
    return _figure(title, _svg(_WIDTH, max(1, len(rows)) * height, parts, title), "")


def shade_map(values: Sequence[Sequence[float]], *, title: str) -> str:
    """A matrix of shares from 0 to 1 as shades, without numbers: of many classes.

    Args:
        values: rows of shares; zeros are left blank.
        title: of the figure.
    """
    size = len(values)
    cells = [
        f'<rect class="cell" x="{column}" y="{row}" width="1" height="1" fill-opacity="{value:.2f}"/>'
        for row, shares in enumerate(values)
        for column, value in enumerate(shares)
        if value >= 0.005
    ]
    frame = f'<rect class="frame" x="0" y="0" width="{size}" height="{size}"/>'
    return _figure(title, _svg(size, size, [frame, *cells], title), "")


def _figure(title: str, picture: str, legend: str) -> str:
    return f"<figure><figcaption>{shown(title)}</figcaption>{picture}{legend}</figure>"


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{shown(title)}">{"".join(parts)}</svg>'


def _legend(lines: Sequence[Line]) -> str:
    keys = (f"key c{line.colour % COLOURS}{' dashed' if line.dashed else ''}" for line in lines)
    items = "".join(
        f'<li><span class="{key}"></span>{shown(line.name)}</li>' for key, line in zip(keys, lines, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def _axes(xs: Sequence[float], ys: Sequence[float], x_of: Any, y_of: Any, x_label: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for y in ys:
        parts.append(f'<line class="mesh" x1="{_LEFT}" y1="{y_of(y):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 5}" y="{y_of(y) + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x in xs:
        end = "end" if x_of(x) > _WIDTH - 24 else "middle"
        parts.append(f'<text class="tick" x="{x_of(x):.1f}" y="{bottom + 14}" text-anchor="{end}">{number(x)}</text>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{bottom + 27}" text-anchor="end">{shown(x_label)}</text>'
    )
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{bottom}"/>')
    return "".join(parts)


def _range(values: Sequence[float], *, pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]
