"""The table of all losses is that of the committed record, whole, and says what its runs say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return runpy.run_path(str(ROOT / "benchmarks" / "methods.py"))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "methods.json").read_text())
    return found


def test_every_loss_is_in_it_or_said_to_be_left_out(benchmark: dict[str, Any], record: dict[str, Any]) -> None:
    """A loss that is newer than the record is listed in NOT_TRIED until the benchmark is run again."""
    assert sorted([*record["methods"], *benchmark["NOT_TRIED"]]) == benchmark["names"]()
    assert not any("fault" in one for one in record["methods"].values())


def test_each_has_its_weights_on_validation_with_another_seed_than_is_tested(
    benchmark: dict[str, Any], record: dict[str, Any]
) -> None:
    assert record["choosing_seed"] not in benchmark["SEEDS"]
    for one in record["methods"].values():
        published, *weights = one["tried"]
        assert published == "published"
        expected = [factor * one["equal_pull"] for factor in record["ladder"]]
        assert [float(weight) for weight in weights] == pytest.approx(expected, rel=6e-3)
        assert one["tried"][one["best"]] == max(one["tried"].values())


def test_the_page_has_the_table_of_the_record(benchmark: dict[str, Any], record: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "chooser.md").read_text()
    lines = benchmark["choices_table"](record)
    assert "\n".join(["<!-- choices: begin -->", *lines, "<!-- choices: end -->"]) in page
    assert record["command"] in page
    assert f"right on {record['plain_val_top1']:.1f} %" in page
    assert {f"{one['val_top1']:.0f}" for one in record["teachers"].values()} == {"98"}
