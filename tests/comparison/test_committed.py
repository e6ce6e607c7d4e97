"""The committed comparison: its table is made of its figures by this code, and README.md shows it as it is."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from lit_distill.comparison.record import against, judge, summary
from lit_distill.comparison.table import markdown, table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "compare"
RECORD = json.loads((FOLDER / "compare.json").read_text())
README = (ROOT / "README.md").read_text()


def test_the_page_is_what_the_figures_give() -> None:
    pictures = sorted((path.name for path in FOLDER.glob("*.png")), reverse=True)
    assert pictures == ["gains.png", "curves.png"]
    assert (FOLDER / "compare.md").read_text() == markdown(RECORD, pictures)


def test_the_readme_shows_the_whole_table_and_its_command() -> None:
    shown = README.partition("<!-- compare: begin -->\n")[2].partition("\n<!-- compare: end -->")[0]
    assert shown == "\n".join(table(RECORD))
    assert RECORD["command"].split(" output=")[0] in re.sub(r" \\\n\s+", " ", README)


def test_means_gains_and_verdicts_follow_from_the_runs() -> None:
    again = json.loads(json.dumps(RECORD["strategies"]))
    reference = again[RECORD["reference"]]["runs"]
    for name, strategy in again.items():
        strategy |= summary([run for run in strategy["runs"] if run["top1"] is not None])
        if name != RECORD["reference"]:
            strategy |= against(strategy["runs"], reference)
    judge(again, RECORD["reference"])
    assert json.loads(json.dumps(again)) == RECORD["strategies"]


def test_it_names_no_place_of_its_machine() -> None:
    for path in FOLDER.glob("compare.*"):
        assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|usr)\b", path.read_text()), path.name


def test_the_benchmark_is_the_command_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("strategies")
    assert shlex.split(RECORD["command"]) == ["python", "-m", "lit_distill.compare", *benchmark.ARGUMENTS]
