"""What commands made before the package had rooms is read today: runs, exports, a comparison, a search."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console

from comparison import fakes
from fixtures.make_runs import COMPARE, PLAIN, SEARCH, STAGES
from lit_distill import load_student
from lit_distill import search as search_door
from lit_distill._command.command import conf_dir
from lit_distill.comparison import compare
from lit_distill.comparison.pool import Pool
from lit_distill.inference.onnx_files import OnnxNetwork
from lit_distill.reporting import report
from lit_distill.runs.opened import load_run
from lit_distill.searching import search
from lit_distill.training.train import run
from run_folders import composed

RUNS = Path(__file__).parents[1] / "fixtures" / "runs"
QUIET = Console(quiet=True)


@pytest.fixture(params=sorted(path.name for path in RUNS.iterdir()))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the run folders of one version."""
    return shutil.copytree(RUNS / request.param, tmp_path / "runs")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    return run(composed("train", *overrides, "callbacks.progress=null", f"run_dir={folder}"))


def test_a_run_its_checkpoints_and_its_exports_are_read(old: Path) -> None:
    folder = old / "plain"
    opened, student = load_run(folder), load_student(folder)
    assert opened.results["best"]["val/Student/top1"] == opened.card["figures"]["val/Student/top1"]
    clips = torch.rand(2, *opened.preprocess().input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained = student(clips)
        assert torch.equal(opened.model(checkpoint=str(folder / "checkpoints" / "best.ckpt"))(clips), trained)
        assert not torch.equal(opened.model(checkpoint="last")(clips), trained)
        fused = load_student(folder / "export" / "student.fused.safetensors")(clips)
    torch.testing.assert_close(fused, trained, rtol=1e-4, atol=1e-5)
    pytest.importorskip("onnxruntime")
    assert load_run(folder / "export" / "student.onnx").card["exported"]["format"] == "onnx"
    torch.testing.assert_close(OnnxNetwork(folder / "export" / "student.onnx")(clips), trained, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_ends_as_if_it_had_not_been(old: Path) -> None:
    folder = old / "interrupted"
    before, whole = rows(folder / "metrics.csv"), rows(old / "plain" / "metrics.csv")
    results = train(folder, *PLAIN, "resume=auto")
    assert (results["epochs"], results["steps"], results["interrupted"]) == (2, 8, False)
    after = rows(folder / "metrics.csv")
    assert after[: len(before)] == before
    assert [(row["step"], row["epoch"]) for row in after] == [(row["step"], row["epoch"]) for row in whole]
    if results["versions"] == read(old / "plain" / "results.json")["versions"]:
        for row, wanted in zip(after, whole, strict=True):
            assert all(math.isclose(float(row[name]), float(wanted[name]), rel_tol=1e-3) for name in row if row[name])


def test_a_run_of_stages_resumes_in_its_second(old: Path) -> None:
    folder = old / "stages"
    before = rows(folder / "metrics.csv")
    results = train(folder, *STAGES, "resume=auto")
    assert (results["epochs"], results["steps"], results["student_stage"]) == (4, 16, "2_head")
    assert rows(folder / "metrics.csv")[: len(before)] == before
    assert load_run(folder).stage == folder / "stages" / "2_head"
    load_student(folder)


def test_a_finished_run_is_found_finished_and_is_trained_further_from_its_checkpoint(old: Path) -> None:
    folder = old / "plain"
    assert train(folder, *PLAIN, "resume=auto") == read(folder / "results.json")
    results = train(old / "more", *PLAIN, "trainer.max_epochs=3", f"ckpt_path={folder}/checkpoints/last.ckpt")
    assert (results["epochs"], results["steps"]) == (3, 12)


def test_a_report_is_made_of_it(old: Path) -> None:
    made = report.run(composed("report", "trainer=cpu", f"run={old / 'plain'}"), console=QUIET)
    assert Path(made["file"]) == old / "plain" / "report.html"
    (figures,) = made["models"].values()
    assert figures["samples"] == 16


def test_a_comparison_has_nothing_left_to_train(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(old / "compare" / "compare.json")
    monkeypatch.setattr(Pool, "_run", lambda *_: "it trains again")
    given = [argument for argument in COMPARE if not argument.startswith("plots")]
    record = compare.run(fakes.config(old / "compare", *given, "callbacks.progress=null", train=[]), console=QUIET)
    assert record["strategies"] == before["strategies"]
    assert all(not run["fault"] for strategy in record["strategies"].values() for run in strategy["runs"])
    assert (old / "compare" / "gains.svg").is_file()


def test_a_search_has_nothing_left_to_train(old: Path) -> None:
    pytest.importorskip("optuna")
    before = read(old / "search" / "study.json")
    given = search_door.main.overrides([*SEARCH, "callbacks.progress=null", f"folder={old / 'search'}"])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert search.run(compose("search", given), console=QUIET) == before
    assert [trial["state"] for trial in before["trials"]] == ["complete", "complete"]


def test_they_stay_small() -> None:
    for version in RUNS.iterdir():
        assert sum(file.stat().st_size for file in version.rglob("*") if file.is_file()) < 600_000
