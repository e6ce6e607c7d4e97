"""The comparison that README shows is the committed one, whole, and says what its runs say."""

from __future__ import annotations

import json
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

from lit_distill.comparison.plots import write_plots
from lit_distill.comparison.table import markdown, table

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "compare"
READMES = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "compare.json").read_text())
    return found


def test_every_strategy_has_all_of_its_ten_seeds(record: dict[str, Any]) -> None:
    assert list(record["strategies"]) == ["baseline", "dml", "kd", "self", "rkd", "dist", "overhaul", "dkd"]
    assert len(record["seeds"]) >= 10
    for strategy in record["strategies"].values():
        assert [run["seed"] for run in strategy["runs"] if run["top1"] is not None] == record["seeds"]
        assert not any(run["fault"] for run in strategy["runs"])


def test_gains_are_the_means_of_the_paired_differences(record: dict[str, Any]) -> None:
    reference = record["strategies"][record["reference"]]["runs"]
    for name, strategy in record["strategies"].items():
        if name != record["reference"]:
            pairs = zip(strategy["runs"], reference, strict=True)
            mean = statistics.mean(one["top1"] - other["top1"] for one, other in pairs)
            assert strategy["gain"] == pytest.approx(mean, abs=1e-9)
            assert strategy["interval"][0] <= mean <= strategy["interval"][1]


def test_readme_has_its_table_and_its_command(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert all("\n".join(table(record)) in page for page in READMES)
    assert all(record["command"] in page for page in READMES)
    arguments = runpy.run_path(str(ROOT / "benchmarks" / "strategies.py"))["ARGUMENTS"]
    assert all(argument.strip("\"'") in record["command"] for argument in arguments)


def test_the_page_is_that_of_the_record_with_both_pictures(record: dict[str, Any], tmp_path: Path) -> None:
    pictures = write_plots(record, tmp_path)
    assert (FOLDER / "compare.md").read_text() == markdown(record, pictures)
    assert pictures == ["gains.svg", "curves.svg"]
    assert all((FOLDER / name).read_bytes() == (tmp_path / name).read_bytes() for name in pictures)
