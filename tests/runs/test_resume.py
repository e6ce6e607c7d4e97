"""resume=auto resumes the run of the same command, starts from scratch or refuses; metrics.csv resumes in its row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from lit_distill.checkpoints import write_checkpoint
from lit_distill.loggers import MetricsCSV
from lit_distill.runs.resume import find_resume_point, resolve_environment

CONFIG = OmegaConf.create(
    {"run_dir": "x", "seed": 0, "resume": "auto", "ckpt_path": None, "data": {"num_workers": 2, "batch_size": 8}}
)


def begin(folder: Path, *, saved: bool = True, results: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A run folder as a killed or finished run leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(changed(**changes)))
    if saved:
        content = {"state_dict": {}, "pytorch-lightning_version": "2.6", "global_step": 7, "epoch": 1}
        write_checkpoint(content, folder / "checkpoints" / "last.ckpt")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def changed(**changes: Any) -> DictConfig:
    config = CONFIG.copy()
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def test_the_same_folder_is_gone_on_with(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", results={"interrupted": "SIGTERM"}, run_dir="elsewhere")
    point = find_resume_point(changed(data__num_workers=0), run, siblings=False)
    assert (point.folder, point.checkpoint, point.finished) == (run, run / "checkpoints" / "last.ckpt", False)
    assert f"{run} from step 7, epoch 2" in point.message


def test_a_default_that_one_config_states_and_the_other_leaves_out_is_no_other_run(tmp_path: Path) -> None:
    data = {"_target_": "lit_distill.data.VideoDataModule", "root": "videos", "num_classes": 3}
    stated = {**data, "format": "video", "limits": {"frames": None, "seconds": None}, "roots": [], "cache_gb": 4.0}
    run = begin(tmp_path / "run", results={"interrupted": "SIGTERM"}, data=stated)
    assert find_resume_point(changed(data=data), run, siblings=False).folder == run
    with pytest.raises(ValueError, match=r"it differs in data\.cache_gb, data\.shuffle:"):
        find_resume_point(changed(data={**data, "cache_gb": 8.0, "shuffle": "shards"}), run, siblings=False)
    with pytest.raises(ValueError, match=r"it differs in data\._target_, data\.cache_gb, data\.format"):
        find_resume_point(changed(data={**data, "_target_": "nowhere.Data"}), run, siblings=False)


def test_keys_that_are_new_since_a_run_began_are_at_their_defaults_there(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", results={"interrupted": "SIGTERM"})
    new: dict[str, Any] = {"frozen_weights": {}, "allow_random_teacher": False, "val_losses": {}, "student": "Student"}
    assert find_resume_point(changed(**new), run, siblings=False).folder == run
    assert find_resume_point(changed(**new, run_dir="y"), tmp_path / "new", siblings=True).folder == run
    allowed = changed(**{**new, "allow_random_teacher": True})
    assert find_resume_point(allowed, run, siblings=False).folder == run, "a question that older runs were not asked"
    with pytest.raises(ValueError, match=r"it differs in frozen_weights\.Teacher, student: "):
        find_resume_point(
            changed(**{**new, "frozen_weights": {"Teacher": "a.pth"}, "student": "best"}), run, siblings=False
        )
    with pytest.raises(ValueError, match="it differs in mine: "):
        find_resume_point(changed(mine=1), run, siblings=False)


def test_another_value_of_the_environment_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["seed=${oc.env:TASK}", "resume=auto"]
    for task, found in ((0, True), (1, False)):
        monkeypatch.setenv("TASK", str(task))
        config = changed(seed="${oc.env:TASK}")
        resolve_environment(config, typed)
        if not tmp_path.joinpath("run").exists():
            begin(tmp_path / "run", results={"interrupted": "SIGTERM"}, seed=config.seed)
        point = find_resume_point(config, tmp_path / "now", siblings=True)
        assert (point.folder == tmp_path / "run") is found


def test_what_the_environment_gave_is_written_wherever_an_override_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK", "3")
    env = "${oc.env:TASK}"
    config = OmegaConf.create(
        {"epochs": 2, "a": {"b": env, "c": "${epochs}"}, "list": [env, 1], "data": {"root": env}, "left": env}
    )
    resolve_environment(config, [f"+a={{b: {env}, c: '${{epochs}}'}}", f"list=[{env},1]", f"data={env}", "~gone"])
    assert OmegaConf.to_container(config, resolve=False) == {
        "epochs": 2, "a": {"b": "3", "c": "${epochs}"}, "list": ["3", 1], "data": {"root": env}, "left": env,
    }  # fmt: skip


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    point = find_resume_point(CONFIG, begin(tmp_path / "run", results={"interrupted": False}), siblings=False)
    assert point.finished
    assert "finished" in point.message


def test_no_checkpoint_yet_is_a_new_beginning(tmp_path: Path) -> None:
    point = find_resume_point(CONFIG, begin(tmp_path / "run", saved=False), siblings=False)
    assert (point.checkpoint, point.finished) == (None, False)
    assert "starts from scratch" in point.message


@pytest.mark.parametrize(
    ("stages", "done", "resumes", "message"),
    [
        ({"1_a": "interrupted"}, 0, "1_a", ", stage 1, from step 7"),
        ({"1_a": "finished"}, 1, None, "after stage 1"),
        ({"1_a": "finished", "2_b": "begun"}, 1, None, "after stage 1"),
        ({"1_a": "finished", "2_b": "saved"}, 1, "2_b", ", stage 2, from step 7"),
        ({"1_a": "finished", "2_b": "finished"}, 2, None, "after stage 2"),
        ({f"{n}_a": "finished" for n in range(1, 11)} | {"11_b": "saved"}, 10, "11_b", "stage 11, from step 7"),
    ],
)
def test_a_run_of_stages_goes_on_in_the_first_that_is_not_finished(
    tmp_path: Path, stages: dict[str, str], done: int, resumes: str | None, message: str
) -> None:
    run = begin(tmp_path / "2026-01-01", saved=False)
    for name, state in stages.items():
        ends: dict[str, dict[str, Any]] = {
            "finished": {"interrupted": False},
            "interrupted": {"interrupted": "SIGTERM"},
        }
        begin(run / "stages" / name, saved=state != "begun", results=ends.get(state))
    for folder, siblings in ((run, False), (tmp_path / "2026-01-02", True)):
        point = find_resume_point(CONFIG, folder, siblings=siblings)
        wanted = None if resumes is None else run / "stages" / resumes / "checkpoints" / "last.ckpt"
        assert (point.folder, point.stage, point.checkpoint, point.finished) == (run, done, wanted, False)
        assert message in point.message


def test_stages_that_have_not_begun_may_be_changed(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", saved=False, stages={"a": {"x": 1}, "b": {"x": 1}})
    begin(run / "stages" / "1_a")
    later = changed(stages={"a": {"x": 1}, "b": {"x": 2}, "c": {}})
    assert (
        find_resume_point(later, run, siblings=False).checkpoint == run / "stages" / "1_a" / "checkpoints" / "last.ckpt"
    )
    with pytest.raises(ValueError, match=r"differs in stages\.a\.x: "):
        find_resume_point(changed(stages={"a": {"x": 2}, "b": {"x": 1}}), run, siblings=False)


def test_another_config_in_the_folder_is_refused_by_its_keys(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", seed=1, data__batch_size=4, extra=3)
    with pytest.raises(ValueError, match=r"differs in data\.batch_size, extra, seed: "):
        find_resume_point(CONFIG, run, siblings=False)


def test_beside_a_new_folder_the_newest_unfinished_of_the_same_config(tmp_path: Path) -> None:
    begin(tmp_path / "2026-01-01")
    wanted = begin(tmp_path / "2026-01-02")
    begin(tmp_path / "2026-01-03", seed=1)
    begin(tmp_path / "2026-01-04", results={"interrupted": False})
    begin(tmp_path / "2026-01-05", saved=False)
    new = tmp_path / "2026-01-06"
    assert find_resume_point(CONFIG, new, siblings=True).folder == wanted
    assert find_resume_point(CONFIG, new, siblings=False).folder == new


def test_runs_of_other_configs_are_told_of(tmp_path: Path) -> None:
    begin(tmp_path / "2026-01-03", seed=1)
    point = find_resume_point(CONFIG, tmp_path / "new", siblings=True)
    assert (point.folder, point.checkpoint) == (tmp_path / "new", None)
    assert "2026-01-03, differs in seed" in point.message


def test_the_row_of_a_checkpoint_is_gone_on_with(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.log_metrics({"train/loss": 1.5}, step=3)
    state = logger.state_dict()
    logger.log_metrics({"val/loss": 1.25}, step=3)
    whole = logger.path
    logger.log_metrics({"train/loss": 1.0}, step=5)
    logger.log_metrics({"train/loss": 0.5}, step=7)  # then killed
    text = whole.read_text()
    for written in (text, "step,train/loss\n1,2\n"):  # with the row at step 3 and with none
        whole.write_text(written)
        resumed = MetricsCSV(tmp_path)
        resumed.load_state_dict(state)
        resumed.log_metrics({"val/loss": 1.25}, step=3)
        resumed.log_metrics({"train/loss": 1.0}, step=5)
        resumed.finalize("success")
        assert whole.read_text() == "step,train/loss,val/loss\n1,2,\n3,1.5,1.25\n5,1,\n"


def train(folder: Path, cache: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "LIT_DISTILL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lit_distill.train", "experiment=ema_pptsmv2", "data=moving_digits_tiny", "resume=auto",
         "trainer.accelerator=cpu", "trainer.max_epochs=6", "checkpoint_every_n_steps=3", "trainer.log_every_n_steps=2",
         f"hydra.run.dir={folder}", *overrides],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_same_command_goes_on_after_a_signal(tmp_path: Path, processes: int) -> None:
    more = (
        [] if processes == 1 else ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=4"]
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = train(whole, tmp_path, *more)
    assert process.wait(timeout=300) == 0, process.stdout and process.stdout.read()

    process = train(parts, tmp_path, *more)
    deadline = time.monotonic() + 200
    while not (parts / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 143, text
    assert json.loads((parts / "results.json").read_text())["interrupted"] == "SIGTERM"

    process = train(parts, tmp_path, *more)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    assert f"resuming {parts} from step" in text
    assert (whole / "metrics.csv").read_bytes() == (parts / "metrics.csv").read_bytes()
    assert (whole / "student.safetensors").read_bytes() == (parts / "student.safetensors").read_bytes()
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, parts)]
    for result in results:
        del result["started"], result["seconds"]
    assert results[0] == results[1]

    process = train(parts, tmp_path, *more)
    assert "finished, nothing is to be done" in process.communicate(timeout=100)[0]
    assert process.returncode == 0
