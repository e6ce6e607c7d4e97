"""The examples that are no single program: commands of folders run as they are written, the notebook cell by cell."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lit_distill import load_student
from lit_distill import test as door
from lit_distill.data import VideoDataModule
from lit_distill.runs.opened import load_run
from test_examples import EXAMPLES, by_command, figures_of


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, as the current one, with its package to be found as `python -m` finds it."""
    folder = tmp_path / "own_package"
    shutil.copytree(EXAMPLES / "own_package", folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    return folder


def test_own_package(own_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(
        r"^    python (-m lit_distill\.\w+.*)$", (own_package / "README.md").read_text(), re.MULTILINE
    )
    train, test = map(shlex.split, commands)
    by_command(own_package, *train)
    run = own_package / "runs" / "cosine"
    results = json.loads((run / "results.json").read_text())
    assert results["experiment"] == "cosine"
    assert 0 < results["final"]["train/cosine"] <= 2

    with pytest.raises(ValueError, match=r"'my_package\.FrameNet'.*--allow my_package"):
        load_student(run)
    assert test[:2] == ["-m", "lit_distill.test"]
    monkeypatch.setattr(sys, "argv", test[1:])
    door.main()
    assert (run / "test.json").is_file()
    student = load_student(run, allow=("my_package",))
    assert type(student).__module__ == "my_package.networks"
    assert student(torch.zeros(2, 4, 3, 32, 32)).shape == (2, 8)


def by_cli(*arguments: str, config: Path = EXAMPLES / "lightning_cli" / "digits.yaml") -> Any:
    """What LightningCLI makes of the example's file and arguments."""
    main = runpy.run_path(str(EXAMPLES / "lightning_cli" / "digits.py"))["main"]
    return main(["fit", "--config", str(config), *arguments])


def test_lightning_cli_takes_terms_from_the_file_and_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli = by_cli("--model.losses.kd.weight=0.1", "--model.losses.kd.loss.temperature=2", "--trainer.max_epochs=2")
    term = cli.model.composer.terms["kd"]
    assert (term.weight, term.loss.temperature) == (0.1, 2.0)
    assert cli.trainer.callback_metrics["val/Student/top1"] > 0.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("temperature: 4.0", "temprature: 4.0",
         "term 'kd': Problem with given class_path 'lit_distill.losses.KDLoss': Option 'temprature' is not accepted"),
        ("[Student, Teacher]", "[Student, Techer]", "term 'kd': 'Techer' names no model: closest are ['Teacher']"),
    ],
)  # fmt: skip
def test_lightning_cli_names_what_is_wrong_in_a_term(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "digits.yaml"
    config.write_text((EXAMPLES / "lightning_cli" / "digits.yaml").read_text().replace(right, wrong))
    with pytest.raises(ValueError, match=re.escape(message)):
        by_cli(config=config)


def test_own_format_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in its docstring trains; the run is opened by those who trust the module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=os.pathsep)
    own_format = importlib.import_module("own_format")
    text = str(own_format.__doc__).replace("\\\n", "")
    (line,) = re.findall(r"^python (-m lit_distill\.train .*)$", text, re.MULTILINE)
    root, run = tmp_path / "videos", tmp_path / "run"
    root.mkdir()
    own_format.write_videos(root)
    typed = shlex.split(line.replace("<folder>", str(root)).replace("<number>", "2"))
    small = [
        "data.num_frames=4", "data.size=32", "data.scale=32", "data.batch_size=4", "data.num_workers=0",
        "preset.student_scale=0.25", "preset.student_depths=[1,1,1,1]", "preset.student_expand=16",
        "preset.student_init=scratch", "preset.teacher_width=0.125", "trainer=cpu", "trainer.max_epochs=1",
    ]  # fmt: skip
    by_command(tmp_path, *typed, *small, f"hydra.run.dir={run}", "doctor=false")
    with pytest.raises(ValueError, match=r"'own_format\.NpyFiles'.*--allow"):
        load_run(run).data()
    opened = load_run(run, allow=("own_format",))
    preprocess = opened.preprocess()
    assert preprocess.read(root / "0.npy").shape == (4, 3, 32, 32)
    data = opened.data()
    assert isinstance(data, VideoDataModule)
    data.setup("test")
    clip, *_ = cast(tuple[torch.Tensor, int, int], data.datasets["test"][0])
    assert torch.equal(clip, preprocess.read(root / "0.npy"))


def test_hydra_app(tmp_path: Path) -> None:
    app = str(EXAMPLES / "hydra_app" / "app.py")
    output = by_command(tmp_path, app, "loss@losses.kd.loss=dist", "optimizer=adamw")  # where no config of ours is near
    figures = figures_of(output)
    assert figures["train/kd"] > 0
    (run,) = (tmp_path / "outputs").glob("*/*")
    composed = (run / ".hydra" / "config.yaml").read_text()
    assert "lit_distill.losses.DISTLoss" in composed
    assert "torch.optim.AdamW" in composed


NOTEBOOK = EXAMPLES / "distill_in_a_notebook.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    for cell in cells:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["execution_count"], cell["outputs"]) == (None, []), "outputs are not kept: they would rot"
            compile("".join(cell["source"]), cell["id"], "exec")
            keys |= {"execution_count", "outputs"}
        assert cell.keys() == keys


@pytest.mark.slow  # 24 CPU seconds
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells in order, in one namespace, as a fresh kernel runs them: what they say of distillation holds."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    table = capsys.readouterr().out
    gains = names["gains"]
    assert all(gain > 0 for gain in gains), table
    assert [f"{100 * gain:+.1f}" in table for gain in gains] == [True] * 3
    assert names["teacher_top1"] > max(names["scores"]["distilled"])
    assert "".join(cells[-1]["source"]).splitlines()[-1] == "picture", "what a notebook shows"
    assert names["picture"].size == (8 * (8 * 9 + 1), 8 * (2 * 9 + 1))
    assert list(tmp_path.iterdir()) == []
