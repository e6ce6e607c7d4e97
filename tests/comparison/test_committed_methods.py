"""The tables and the picture of all losses are those of the committed record, whole, and say what its runs say."""

from __future__ import annotations

import json
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

from lit_distill.comparison.paired import holm

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


def test_gains_are_the_means_of_the_paired_differences_of_five_seeds(record: dict[str, Any]) -> None:
    measured = [one[kind] for one in record["methods"].values() for kind in ("published", "chosen") if kind in one]
    plain = [run["test_top1"] for run in record["plain"]["runs"]]
    for one in measured:
        assert [run["seed"] for run in one["runs"]] == record["seeds"] == [0, 1, 2, 3, 4]
        gains = [run["test_top1"] - other for run, other in zip(one["runs"], plain, strict=True)]
        assert one["gain"] == pytest.approx(statistics.mean(gains), abs=1e-9)
        low, high = one["interval"] or (one["gain"], one["gain"])  # none where all gains are equal
        assert low <= one["gain"] <= high
    assert [one["p_adjusted"] for one in measured] == pytest.approx(holm([one["p"] for one in measured]))
    for name, one in record["methods"].items():
        assert ("chosen" in one) == (one["best"] != "published"), name


def test_the_page_has_the_gains_and_the_picture_of_the_record(
    benchmark: dict[str, Any], record: dict[str, Any]
) -> None:
    page = (ROOT / "docs" / "chooser.md").read_text()
    assert "\n".join(["<!-- methods: begin -->", *benchmark["table"](record), "<!-- methods: end -->"]) in page
    assert "](methods.svg)" in page
    assert (ROOT / "docs" / "methods.svg").read_text() == benchmark["picture"](record)
