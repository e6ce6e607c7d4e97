"""`python -m lit_distill.search`: what is searched, what is pruned, what goes on after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

from lit_distill._command.command import conf_dir
from lit_distill.searching import search, study
from lit_distill.searching.space import Axis, axes_of
from lit_distill.searching.study import markdown


def composed(*overrides: str) -> DictConfig:
    return compose("search", list(overrides))


@pytest.fixture(autouse=True)
def _configs() -> Any:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


DKD = "train=['experiment=dkd_pptsmv2']"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{losses.dkd.loss.temperatur: [1.0]}", None),  # an argument of its loss, as far as a config can tell
        ("{losses.dkd.weight: [1.0]}", None),
        ("{preset.lr: {low: 0.001, high: 0.1, log: true}}", None),
        ("{preset.lrr: [0.1]}", "preset.lrr is no setting of this experiment"),
        ("{losses.kd.weight: [0.1]}", "losses.kd.weight is no setting"),
        ("{trainer.max_epochs: []}", "has no choices"),
        ("{preset.lr: {low: 1.0, high: 0.1}}", "goes from low to high"),
        ("{preset.lr: {low: 0.0, high: 0.1, log: true}}", "above 0"),
        ("{preset.lr: {lowest: 0.0, high: 0.1}}", "low and high with log or step"),
        ("{preset.lr: 0.1}", "is a list of choices"),
    ],
)
def test_a_space_is_of_the_experiments_settings(space: str, message: str | None) -> None:
    config = composed(f"++space={space}", DKD)
    if message is None:
        assert len(axes_of(config)) == 1
    else:
        with pytest.raises(ValueError, match=message):
            axes_of(config)


def test_nothing_to_search_and_what_search_sets_itself_are_refused() -> None:
    with pytest.raises(ValueError, match="search needs sweep=<name>"):
        axes_of(composed(DKD))
    with pytest.raises(ValueError, match="resume is what search sets itself"):
        axes_of(composed("sweep=dkd", "train=['experiment=dkd_pptsmv2','resume=auto']"))


class Trial:
    """Gives the second choice and the upper end."""

    def suggest_categorical(self, key: str, choices: tuple[str, ...]) -> str:
        return choices[1]

    def suggest_int(self, key: str, low: int, high: int, **_: Any) -> int:
        return high

    def suggest_float(self, key: str, low: float, high: float, **_: Any) -> float:
        return high


def test_drawn_values_are_what_hydra_reads() -> None:
    pairs = [["Student.stages.1", "Teacher.stages.1"], ["Student.stages.2", "Teacher.stages.2"]]
    given = {
        "losses.dkd.pair": pairs,
        "trainer.max_epochs": {"low": 1, "high": 7},
        "preset.lr": {"low": 0.1, "high": 1},
    }
    values = [Axis.parse(key, value).draw(Trial()) for key, value in given.items()]
    config = compose(
        "train",
        ["experiment=dkd_pptsmv2", "run_dir=x", *(f"++{k}={v}" for k, v in zip(given, values, strict=True))],
    )
    assert config.losses.dkd.pair == pairs[1]
    assert (config.trainer.max_epochs, config.preset.lr) == (7, 1.0)
    assert isinstance(config.trainer.max_epochs, int)
    assert isinstance(config.preset.lr, float)


def test_the_table_has_the_best_first_and_the_unfinished_last() -> None:
    def trial(number: int, state: str, value: float | None) -> dict[str, Any]:
        return {"number": number, "state": state, "value": value, "settings": {"a": 0.1}, "validations": [0.5]}

    record = {
        "space": {"a": [0.1]}, "train": ["experiment=x"], "metric": "val/loss", "direction": "minimize", "best": 2,
        "trials": [trial(0, "complete", 2.0), trial(1, "pruned", None), trial(2, "complete", 1.0)],
    }  # fmt: skip
    lines = [line.split("|")[1].strip() for line in markdown(record).splitlines() if line.startswith("| ")]
    assert lines == ["trial", "2", "0", "1"]


# ---------------------------------------------------------------- with Optuna


def quick(monkeypatch: pytest.MonkeyPatch, folder: Path, values: dict[int, list[float]], *more: str) -> dict[str, Any]:
    """A search whose trainings are a line each: they write these validations, one after the other."""
    script = (
        "import sys, json, pathlib, time\n"
        "place = [a for a in sys.argv if a.startswith('hydra.run.dir=')][0].partition('=')[2].strip(chr(39))\n"
        "place = pathlib.Path(place); place.mkdir(parents=True, exist_ok=True)\n"
        f"values = {values!r}[int(place.name)]\n"
        "for n in range(1, len(values) + 1):\n"
        "    (place / 'metrics.csv').write_text('step,val/Student/top1\\n'\n"
        "        + ''.join(f'{i},{v}\\n' for i, v in enumerate(values[:n])))\n"
        "    time.sleep(0.15)\n"
        "(place / 'results.json').write_text(json.dumps({'best': {'val/Student/top1': max(values)}}))\n"
    )
    program = folder.with_name("search_program.py")
    program.write_text(script)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(program.parent), os.environ.get("PYTHONPATH", "")]))
    running = study._running
    monkeypatch.setattr(study, "POLL", 0.02)
    monkeypatch.setattr(study, "_running", lambda words, *rest: running([program.stem, *words[1:]], *rest))
    config = composed("sweep=dkd", DKD, f"folder={folder}", f"trials={len(values)}", "startup_trials=2", *more)
    return search.run(config, console=Console(quiet=True))


def test_a_trial_below_the_median_is_pruned_and_the_best_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    values = {0: [0.5, 0.6, 0.7], 1: [0.5, 0.7, 0.6], 2: [0.1] * 60, 3: [0.6, 0.8, 0.9]}
    record = quick(monkeypatch, tmp_path / "study", values)
    assert [trial["state"] for trial in record["trials"]] == ["complete", "complete", "pruned", "complete"]
    assert [trial["value"] for trial in record["trials"]] == [0.7, 0.7, None, 0.9]
    assert 2 <= len(record["trials"][2]["validations"]) < 60
    assert record["best"] == 3
    assert json.loads((tmp_path / "study" / "study.json").read_text()) == record
    assert set(record["trials"][0]["settings"]) == set(record["space"])
    more = quick(monkeypatch, tmp_path / "study", {**values, 4: [0.2], 5: [0.95]}, "prune=false")
    assert [trial["value"] for trial in more["trials"][4:]] == [0.2, 0.95]
    assert more["trials"][:4] == record["trials"]
    with pytest.raises(ValueError, match=r"holds another search \(metric differ\)"):
        quick(monkeypatch, tmp_path / "study", values, "metric=val/loss")


def test_an_interrupted_trial_goes_on_in_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    values = {0: [0.5, 0.6], 1: [0.5, 0.7]}
    train, asked = study.train_trial, []

    def interrupted(trial: Any, arguments: Any, *rest: Any, **more: Any) -> Any:
        asked.append((trial.number, arguments))
        assert isinstance(more["keep_open"], int), "a training that is left holds the folder, as a comparison's does"
        if len(asked) == 2:
            raise KeyboardInterrupt
        return train(trial, arguments, *rest, **more)

    monkeypatch.setattr(search, "train_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(monkeypatch, tmp_path / "study", values)
    record = quick(monkeypatch, tmp_path / "study", values)
    assert [number for number, _ in asked] == [0, 1, 1]
    assert asked[1] == asked[2], "with the settings that it had"
    assert [trial["state"] for trial in record["trials"]] == ["complete", "complete"]


JOURNALS = {
    "text": "x",
    "a number": "1",
    "no kind": "{}",
    "an unknown kind": '{"op_code": 99, "worker_id": "a"}',
    "what is searched is a number": (
        '{"op_code": 0, "worker_id": "a", "study_name": "search", "directions": [2]}\n'
        '{"op_code": 2, "worker_id": "a", "study_id": 0, "user_attr": {"what": 5}}'
    ),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_of_others_is_one_line_of_error(name: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "study.journal").write_text(JOURNALS[name] + "\n")
    with pytest.raises(ValueError, match=r"no journal of a search|holds another search") as caught:
        study.open_study(composed("sweep=dkd", DKD, f"folder={tmp_path}"))
    assert str(caught.value).isprintable()


def test_a_journal_that_is_a_pipe_hangs_no_search(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    os.mkfifo(tmp_path / "study.journal")
    with pytest.raises(ValueError, match="expected the journal of a search, a regular file, got a named pipe"):
        study.open_study(composed("sweep=dkd", DKD, f"folder={tmp_path}"))


@pytest.mark.slow
def test_a_search_of_trainings(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    command = [
        sys.executable, "-m", "lit_distill.search", "experiment=dkd_pptsmv2", "sweep=dkd", "data=moving_digits_tiny",
        "trainer=cpu", "trials=2", f"folder={tmp_path}/study", "trainer.max_epochs=1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIT_DISTILL_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    for trial in record["trials"]:
        results = json.loads((tmp_path / "study" / trial["folder"] / "results.json").read_text())
        assert trial["value"] == results["best"]["val/Student/top1"]
    assert "| trial | val/Student/top1 |" in (tmp_path / "study" / "study.md").read_text()
