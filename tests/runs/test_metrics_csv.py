"""metrics.csv: whole lines are written, and every reader leaves out what a killed writer left unfinished."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comparison.fakes import config, leave
from lit_distill.comparison.plan import PlannedRun, make_plan
from lit_distill.comparison.record import run_record
from lit_distill.loggers import MetricsCSV
from lit_distill.reporting.history import read_history
from lit_distill.runs.metrics_csv import append_row, ordered, read_metric, read_numbers, read_rows, write_rows
from lit_distill.searching.study import _report
from lit_distill.training.run_stages import _write_metrics

METRIC = "val/Student/top1"
WHOLE = f"step,epoch,{METRIC}\n10,,\n20,0,0.25\n40,1,0.5\n"
TORN = ["6", "60,", "60,2", "60,2,", "60,2,0", "60,2,0.", "60,2,0.75", '"60']


@pytest.fixture(params=TORN)
def torn(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file whose last line was never finished."""
    file = tmp_path / "metrics.csv"
    file.write_text(WHOLE + request.param)
    return file


def test_the_reader_gives_whole_rows(torn: Path) -> None:
    assert [row["step"] for row in read_rows(torn)] == ["10", "20", "40"]
    assert next(iter(read_numbers(torn))) == {"step": 10.0}
    assert read_metric(torn, METRIC) == [0.25, 0.5]
    assert read_metric(torn, "another") == []


def test_a_report_leaves_out_an_unfinished_line(torn: Path) -> None:
    assert read_history(torn, "x").series == {METRIC: [(20.0, 0.25), (40.0, 0.5)]}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> PlannedRun:
    runs = tmp_path_factory.mktemp("runs")
    run = make_plan(config(runs, "experiments=[baseline,self]", "seeds=1")).runs[0]
    leave(run, 60.0)
    return run


def test_a_comparison_leaves_out_an_unfinished_line(torn: Path, compared: PlannedRun) -> None:
    (compared.folder / "metrics.csv").write_bytes(torn.read_bytes())
    assert run_record(compared, compared.folder.parents[1])["val_curve"] == [25.0, 50.0]


def test_a_search_reports_no_unfinished_line(torn: Path) -> None:
    reported: list[float] = []
    study = SimpleNamespace(get_trials=lambda deepcopy: [SimpleNamespace(intermediate_values={})])
    trial = SimpleNamespace(number=0, study=study, report=lambda value, step: reported.append(value))
    assert _report(trial, torn.parent, METRIC)
    assert reported == [0.25, 0.5]


def test_the_rows_of_stages_leave_out_an_unfinished_line(torn: Path, tmp_path: Path) -> None:
    stages: Any = [SimpleNamespace(name="only", number=1, folder=torn.parent)]
    (tmp_path / "run").mkdir()
    _write_metrics(tmp_path / "run", stages, {"only": {"steps": 40, "epochs": 2}})
    rows = list(read_rows(tmp_path / "run" / "metrics.csv"))
    assert [(row["stage"], row["step"], row[METRIC]) for row in rows] == [
        ("1", "10", ""), ("1", "20", "0.25"), ("1", "40", "0.5"),
    ]  # fmt: skip


def test_a_resumed_run_writes_over_an_unfinished_line(torn: Path) -> None:
    logger = MetricsCSV(torn.parent)
    logger.log_metrics({"epoch": 2, METRIC: 0.75}, step=60)
    logger.finalize("success")
    assert torn.read_text() == f"{WHOLE}60,2,0.75\n"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    columns = ordered(["b,c", "a", "epoch", "stage", "step"])
    assert columns == ["stage", "step", "epoch", "a", "b,c"]
    write_rows(file, columns, [{"step": "1", "b,c": "2"}])
    append_row(file, columns, {"step": "2", "a": "inf"})
    assert [{name: text for name, text in row.items() if text} for row in read_rows(file)] == [
        {"step": "1", "b,c": "2"}, {"step": "2", "a": "inf"},
    ]  # fmt: skip
    assert list(read_rows(tmp_path / "none.csv")) == []
