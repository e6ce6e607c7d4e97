"""Charts place values where they belong, tables shade them, and what was logged is read as it was written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lit_distill.reporting.charts import (
    DARK,
    LIGHT,
    Interval,
    Line,
    bar_chart,
    dot_chart,
    interval_chart,
    line_chart,
    reliability_chart,
    shade_map,
    svg_file,
)
from lit_distill.reporting.history import read_history, thinned
from lit_distill.reporting.page import shaded, table


def polylines(chart: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline [^>]*points="([^"]+)"', chart)
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in points.split())] for points in found]


def test_a_line_goes_through_its_points() -> None:
    (line,) = polylines(line_chart([Line("a", [(0, 2.0), (5, 3.0), (10, 6.0)])], title="t").html)
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y1) * 3 == pytest.approx(y1 - y2, abs=0.3), "upwards, three times as far"
    assert 0 < x0 < x2 < 360
    assert 0 < y2 < y0 < 200


def test_a_value_that_is_not_finite_breaks_a_line_and_does_not_scale_it() -> None:
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0), (5, 2.0), (6, -math.inf), (7, 1.5)]
    chart = line_chart([Line("a", points)], title="t").html
    first, second = polylines(chart)
    assert [y for _, y in first] == [y for _, y in second]
    assert chart.count("<circle") == 1, "a point alone is a dot"
    assert "no finite value" in line_chart([Line("a", [(0, math.nan)])], title="t").html


def test_one_value_all_along_has_a_chart() -> None:
    (line,) = polylines(line_chart([Line("a", [(3, 0.0), (4, 0.0)])], title="t").html)
    assert line[0][1] == line[1][1]


def test_bars_are_as_long_as_their_values_to_either_side() -> None:
    chart = bar_chart([("up", 10.0, "+10"), ("down", -5.0, "-5")], title="t").html
    bars = re.findall(r'<rect class="bar (c\d)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    (gain, at_gain, up), (loss, at_loss, down) = ((c, float(x), float(w)) for c, x, w in bars)
    assert gain != loss
    assert up == pytest.approx(2 * down, abs=0.2)
    assert at_loss + down == pytest.approx(at_gain, abs=0.2)


def test_a_reliability_bar_is_as_high_as_the_accuracy() -> None:
    bins = [
        {"above": 0.2, "up_to": 0.3, "samples": 4, "confidence": 0.25, "accuracy": 0.5},
        {"above": 0.9, "up_to": 1.0, "samples": 4, "confidence": 0.95, "accuracy": 1.0},
    ]
    chart = reliability_chart(bins, title="t").html
    half, whole = (float(h) for h in re.findall(r'<rect class="bar[^>]* height="([\d.]+)"', chart))
    assert whole == pytest.approx(2 * half, abs=0.2)
    assert "4 samples: confidence 0.250, accuracy 0.500" in chart


def circles(chart: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', chart)]


def test_dots_stand_at_their_settings() -> None:
    even, _, far = circles(dot_chart([(1.0, 0.0), (2.0, 0.5), (4.0, 1.0)], title="t", x_label="x").marks)
    assert (even[0] < far[0], even[1] > far[1]) == (True, True)
    one, two, three = circles(dot_chart([(0.1, 1.0), (1, 1.0), (10.0, 1.0)], title="t", x_label="x", log=True).marks)
    assert two[0] - one[0] == pytest.approx(three[0] - two[0], abs=0.2)
    named = dot_chart([("b", 1.0), ("a", 2.0), ("b", 3.0)], title="t", x_label="x").marks
    first, other, again = circles(named)
    assert first[0] == again[0] != other[0]
    assert re.findall(r">([ab])</text>", named) == ["b", "a"]


def test_an_interval_is_around_its_mean_beside_zero() -> None:
    rows = [Interval("up", [1.0, 3.0], 2.0, (0.0, 4.0), "c2"), Interval("alone", [-1.0], -1.0, None)]
    chart = interval_chart(rows, title="t").marks
    (left, right) = re.findall(r'<line class="line c2" x1="([\d.]+)" y1="12.0" x2="([\d.]+)"', chart)[0]
    low, high, mean, _, alone = circles(chart)
    assert float(left) < low[0] < mean[0] < high[0] < float(right)
    assert float(left) + float(right) == pytest.approx(2 * mean[0], abs=0.2)
    assert f'<line class="axis" x1="{left}"' in chart, "zero is where the interval begins"
    assert alone[0] < float(left)
    assert chart.count('class="line ') == 1
    beside = interval_chart([Interval("a", [1.0], 1.0, None, beside=-2.0)], title="t").marks
    (ring,) = re.findall(r'<circle class="line text" cx="([\d.]+)"', beside)
    assert float(ring) < circles(beside)[-1][0]


def test_a_file_may_have_the_dark_colours_too() -> None:
    charts = [bar_chart([("x", 1.0, "1")], title="t")]
    light, both = svg_file(charts), svg_file(charts, dark=True)
    assert "prefers-color-scheme" not in light
    (dark,) = re.findall(r"@media\(prefers-color-scheme:dark\)\{(.*)\}</style>", both, re.DOTALL)
    assert all(LIGHT[name] in light and DARK[name] in dark for name in ("text", "c0", "page"))
    assert "var(" not in both
    ElementTree.fromstring(both)


def test_a_file_may_have_its_charts_one_below_the_other() -> None:
    rows = [[Interval(name, [1.0], 1.0, None)] for name in ("a", "b")]
    one, two = (svg_file([interval_chart(row, title="t") for row in rows], below=below) for below in (False, True))
    sizes = [[int(side) for side in re.findall(r'viewBox="0 0 (\d+) (\d+)"', file)[0]] for file in (one, two)]
    assert sizes[0][0] == 2 * sizes[1][0] - 16
    assert sizes[1][1] == 2 * sizes[0][1]
    assert len(set(re.findall(r"translate\((\d+),", two))) == 1


def test_a_file_has_all_charts_with_their_legends_and_needs_no_page() -> None:
    lines = [Line("a & b", [(0, 1.0), (1, 2.0)], heavy=True), Line("c", [(0, 2.0), (1, 1.0)], 1)]
    charts = [line_chart(lines, title="first"), bar_chart([("x", 1.0, "1")], title="second")]
    root = ElementTree.fromstring(svg_file(charts))
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", "second", "a & b", "c"} <= set(texts)
    assert "var(" not in svg_file(charts)
    assert charts[0].marks.index("line c1") < charts[0].marks.index("line text heavy"), "the heavy one is on top"


def test_shades() -> None:
    cells = re.findall(r'--v:([\d.]+)">([^<]*)<', shaded(["a"], ["b", "c"], [[0.25, math.nan]], [["1", "–"]]))
    assert cells == [("0.250", "1"), ("0.000", "–")]
    cells = re.findall(
        r'<rect class="cell" x="(\d)" y="(\d)"[^>]*opacity="([\d.]+)"',
        shade_map([[1.0, 0.0], [0.5, 0.5]], title="t").html,
    )
    assert cells == [("0", "0", "1.00"), ("0", "1", "0.50"), ("1", "1", "0.50")]


@pytest.mark.parametrize("hostile", ["<script>x</script>", '" onload="x', "a\u202eb\x00", "&amp;<"])
def test_no_text_of_others_is_markup(hostile: str) -> None:
    made = [
        line_chart([Line(hostile, [(0, 1.0), (1, 2.0)]), Line("b", [])], title=hostile, x_label=hostile).html,
        bar_chart([(hostile, 1.0, hostile)], title=hostile).html,
        dot_chart([(hostile, 1.0)], title=hostile, x_label=hostile).html,
        interval_chart([Interval(hostile, [1.0], 1.0, None)], title=hostile).html,
        svg_file([line_chart([Line(hostile, [(0, 1.0)])], title=hostile, legend=True)]),
        table([hostile], [[hostile]]),
        shaded([hostile], [hostile], [[1.0]], [[hostile]], corner=hostile),
    ]
    for text in made:
        assert hostile not in text
        assert "<script" not in text
        assert not re.search(r'"\s+onload=', text)


def test_what_was_logged_is_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        'step,epoch,"a,b",train/loss\n1,0,,2.5\n2,0,7,nan\n2,0,inf,\n3,0,1,1'
    )  # the last was never finished
    history = read_history(file, "x")
    assert history.series["a,b"] == [(2.0, 7.0), (2.0, math.inf)]
    assert history.series["train/loss"][0] == (1.0, 2.5)
    assert history.last("a,b") == 7.0
    assert history.last("train/loss") == 2.5
    assert history.last("none") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step,a\n1,x\n", "could not convert"), ("step,a\n1\n", "line 2 has 1 fields, the header 2"),
        ("step,a,a\n1,2,3\n", "different columns"), ("a,b\n1,2\n", "one of them step"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_of_metrics_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"metrics.csv is no table of logged metrics: .*{said}"):
        read_history(file, "x")


def test_thinning_keeps_the_mean_and_the_span() -> None:
    points = [(float(x), float(x % 7)) for x in range(700)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert [y for _, y in few] == [3.0] * 100
    assert thinned(points, 700) is points
