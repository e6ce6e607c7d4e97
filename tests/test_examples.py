"""Every program in examples/ runs as a user would run it."""

from __future__ import annotations

import ast
import re
import runpy
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import processes

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
TERMS = {
    "data_free": {"adversarial", "kd"},
    "detection": {"bbox_ctrness", "bbox_regression", "classification", "pyramid", "cross_0", "cross_1", "cross_2"},
    "existing_module": {"kd", "similarity"},
    "foundation_features": {"features", "queue"},
    "image_classification": {"ce", "kd"},
    "own_format": {"ce", "kd"},
    "own_lightning_module": {"ce", "kd"},
    "segmentation": {"ce", "kd", "attention"},
    "several_processes": {"ce", "kd", "rkd"},
    "timm_classification": {"ce", "kd"},
}
SHORTENED: dict[str, dict[str, int]] = {  # these show that something is learned, or its speed
    "data_free": {"teacher_epochs": 1, "epochs": 1, "batches": 6},
    "foundation_features": {"max_epochs": 1},
    "image_classification": {"images": 8},
}
IN_A_PROCESS_OF_ITS_OWN = {"own_lightning_module"}


def by_command(folder: Path, *arguments: str) -> str:
    """What a command prints, with the processes that it starts."""
    result = processes.run(arguments, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def figures_of(output: str) -> dict[str, float]:
    figures: dict[str, float] = ast.literal_eval(output.strip().splitlines()[-1])
    return figures


@pytest.mark.parametrize("program", PROGRAMS)
def test_example(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / f"{program}.py"
    if program == "several_processes":
        ranks = processes.start_ranks(2, [path], cwd=tmp_path)
        outputs = [rank.communicate(300) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], [errors[-3000:] for _, errors in outputs]
        output = outputs[1][0] + outputs[0][0]
    elif program in IN_A_PROCESS_OF_ITS_OWN:
        output = by_command(tmp_path, str(path))
    else:  # what a process of its own imports costs more than the whole training
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path)])
        if program in SHORTENED:
            made = runpy.run_path(str(path))["main"](**SHORTENED[program])
            values = made if isinstance(made, dict) else made.callback_metrics
            print({name: float(value) for name, value in values.items()})
        else:
            runpy.run_path(str(path), run_name="__main__")
        output = capsys.readouterr().out
    if program == "several_processes":
        assert output.count("2 processes, 8 steps") == 1  # 64 samples, 8 a process and step, 2 epochs; said once
    figures = figures_of(output)
    terms = {name.split("/")[1]: value for name, value in figures.items() if name.startswith(("train/", "distill/"))}
    assert all(terms[term] > 0 for term in TERMS[program])
    assert all(abs(value) < float("inf") for value in figures.values()), "finite, no NaN"
    assert list(tmp_path.iterdir()) == [], "a program to copy leaves nothing behind"


@pytest.mark.slow
def test_without_a_real_sample_the_student_learns_to_read_real_digits() -> None:
    figures = runpy.run_path(str(EXAMPLES / "data_free.py"))["main"]()
    assert figures["val/Student/top1 before"] < 0.3
    assert figures["val/Student/top1"] > 0.6


@pytest.mark.slow
def test_several_machines_by_the_line_that_is_shown(tmp_path: Path) -> None:
    """Twice, on this machine: four processes, so half as many steps."""
    text = ast.get_docstring(ast.parse((EXAMPLES / "several_processes.py").read_text(encoding="utf-8")))
    assert text is not None
    (line,) = re.findall(r"^torchrun (.*)$", text, re.MULTILINE)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{listener.getsockname()[1]}"
    words = line.replace("<host>:29500", where).replace("several", str(EXAMPLES / "several")).split()
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda _: by_command(tmp_path, "-m", "torch.distributed.run", *words), range(2)))
    assert sum(output.count("4 processes, 4 steps") for output in outputs) == 1


def test_timm_takes_the_weights_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import save_file

    from lit_distill.models import timm_model

    monkeypatch.chdir(tmp_path)
    trained = timm_model("mobilenetv3_small_050", num_classes=3)
    save_file(trained.state_dict(), "teacher.safetensors")
    main = runpy.run_path(str(EXAMPLES / "timm_classification.py"))["main"]
    names = ["--teacher=mobilenetv3_small_050", "--teacher-weights=teacher.safetensors", "--classes=3"]
    module: Any = main(names).lightning_module
    state = module.models["Teacher"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.state_dict().items())


def test_every_program_is_listed_once() -> None:
    """The list has a line for each, and no other."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[`([\w./]+)`\]\(([\w./]+)\): \S", text, re.MULTILINE)
    assert all(target.startswith(shown) and (EXAMPLES / target).is_file() for shown, target in listed)
    there = [path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")]
    assert sorted(shown.rstrip("/") for shown, _ in listed) == sorted(there)
    assert set(PROGRAMS) == set(TERMS)


def test_the_image_example_is_short() -> None:
    lines = (EXAMPLES / "image_classification.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 40
