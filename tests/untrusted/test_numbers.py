"""Numbers and tables that others wrote, where reports and comparisons read them: no overflow, no memory without end."""

from __future__ import annotations

import itertools
import json
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from comparison.fakes import config, leave
from lit_distill.comparison.plan import PlannedRun, make_plan
from lit_distill.comparison.record import is_done, run_record
from lit_distill.reporting.charts import Chart, Interval, Line, bar_chart, dot_chart, interval_chart, line_chart
from lit_distill.reporting.history import read_history, thinned
from lit_distill.runs.artifacts import read_json

NUMBERS = ("0", "1", "-1", "1e308", "-1e308", "nan", "inf", "-inf", "5e-324", "-5e-324", "1e-310", "1e100", "1e99")


def drawn(chart: Chart) -> None:
    assert all(word not in chart.html for word in ("nan", "inf"))
    ElementTree.fromstring(chart.html)


@pytest.mark.parametrize(("step", "value"), list(itertools.product(NUMBERS, repeat=2)))
def test_every_logged_number_has_a_chart(step: str, value: str, tmp_path: Path) -> None:
    rows = [f"{step},{value}", "2,0.5", f"{step},0.25", f"3,{value}", f"{value},{step}"]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,loss", *rows]) + "\n")
    points = read_history(tmp_path / "metrics.csv", "a").series["loss"]
    for chosen in (points, points[:1], points[::2], thinned(points, 2), [(y, x) for x, y in points]):
        drawn(line_chart([Line("a", chosen)], title="t"))


@pytest.mark.parametrize(("one", "other"), list(itertools.product(map(float, NUMBERS), repeat=2)))
def test_every_number_has_a_place_in_the_other_charts(one: float, other: float) -> None:
    drawn(dot_chart([(one, other), (1.0, 2.0), (other, one)], title="t", x_label="x"))
    drawn(dot_chart([("a", one), ("b", other)], title="t", x_label="x"))
    drawn(interval_chart([Interval("a", [one], other, (one, other)), Interval("b", [1.0], 1.0, None)], title="t"))
    drawn(interval_chart([Interval("a", [one], other, None)], title="t"))
    drawn(bar_chart([("a", one, ""), ("b", other, "")], title="t"))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "values": (lambda: b'{"a": [' + b"{}," * 5_000_000 + b"1]}", "more than 200,000 values"),
    "mappings": (lambda: b'{"a": [' + b'{"a":{}},' * 1_500_000 + b"1]}", "more than 200,000 values"),
    "nesting": (lambda: b'{"a":' + b"[" * 5_000_000, "more than 200,000 values"),
    "bytes": (lambda: b'{"a": "' + b"a" * (17 << 20) + b'"}', "at most 16,777,216 bytes"),
    "a number of many digits": (lambda: b'{"a": ' + b"9" * 4_000 + b"}", "at most 64 bits"),
    "a number of more digits": (lambda: b'{"a": ' + b"9" * 10_000_000 + b"}", "at most 64 bits"),
    "a number of 65 bits": (lambda: b'{"a": -%d}' % 2**65, "at most 64 bits"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_json_is_counted_before_it_is_built(kind: str, tmp_path: Path) -> None:
    made, message = HOSTILE[kind]
    (tmp_path / "results.json").write_bytes(made())
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read_json(tmp_path / "results.json")
    assert time.process_time() - begun < 2, "a second, where nothing else runs"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    assert len(str(caught.value)) < 500


TABLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "columns": (lambda: b"step," + b",".join(b"%d" % n for n in range(3_000)) + b"\n", "at most 2,000"),
    "columns without end": (lambda: b"step," + b",".join(b"%d" % n for n in range(3_000_000)), "2,000,000 numbers"),
    "fields without end": (lambda: b"step,a\n" + b"1," * 50_000_000 + b"\n", "2,000,000 numbers or 10,000,000 fields"),
    "numbers": (lambda: b"step,a,b,c,d,e,f,g\n" + b"1,1,1,1,1,1,1,1\n" * 300_000, "more than 2,000,000 numbers"),
    "rows": (lambda: b"step\n" + b"1\n" * 2_500_000, "more than 2,000,000 numbers"),
    "empty fields": (lambda: b"step,a\n1" + b"," * 20_000_000 + b"\n", "10,000,000 fields"),
    "empty lines": (lambda: b"step,a\n" + b"\r" * 20_000_000, "10,000,000 fields"),
    "a text for a number": (lambda: b"step,a\n1," + b"x" * 100_000 + b"\n", "could not convert string to float: 'xxx"),
    "bytes": (lambda: b"step,a\n" + b"1,1\n" * (65 << 20), "at most 268,435,456 bytes"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_without_end_is_refused(kind: str, tmp_path: Path) -> None:
    made, message = TABLES[kind]
    (tmp_path / "metrics.csv").write_bytes(made())
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read_history(tmp_path / "metrics.csv", "a")
    assert time.process_time() - begun < 2, "a tenth of a second, where nothing else runs"
    assert len(str(caught.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> PlannedRun:
    run = make_plan(config(tmp_path_factory.mktemp("runs"), "experiments=[baseline,self]", "seeds=1")).runs[0]
    leave(run, 60.0)
    return run


@pytest.mark.parametrize("value", ['"a"', "1e999", "NaN", "-Infinity", "1e308", "[1]", "null", "true", '{"a": 1}'])
@pytest.mark.parametrize(
    ("file", "name"), [("test.json", "top1"), ("test.json", "samples"), ("account.json", "seconds"),
                       ("account.json", "steps"), ("results.json", "best")],
)  # fmt: skip
def test_a_comparison_takes_finite_numbers_alone(file: str, name: str, value: str, compared: PlannedRun) -> None:
    place = compared.folder / file
    kept = place.read_text()
    try:
        content = json.loads(kept)
        content[name] = json.loads(value) if name != "best" else {"val/Student/top1": json.loads(value)}
        place.write_text(json.dumps(content))
        if (name, value) == ("best", "null"):
            assert run_record(compared, compared.folder.parents[1])["val_top1"] is None
            return
        with pytest.raises(ValueError, match=f"{file}: expected a finite number as .*, got") as caught:
            run_record(compared, compared.folder.parents[1])
        assert str(caught.value).isprintable()
    finally:
        place.write_text(kept)


@pytest.mark.parametrize("text", ["{}", '{"sha256": null}', '{"top1": 1}'])
def test_a_comparison_takes_no_test_without_a_hash(text: str, compared: PlannedRun) -> None:
    place = compared.folder / "test.json"
    kept = place.read_text()
    try:
        place.write_text(text)
        assert not is_done(compared)
    finally:
        place.write_text(kept)


def test_an_honest_comparison_reads_as_ever(compared: PlannedRun) -> None:
    record = run_record(compared, compared.folder.parents[1])
    assert record["top1"] == pytest.approx(60.0)
    assert all(math.isfinite(record[name]) for name in ("top5", "seconds", "steps", "test_samples"))
