"""docs/deploy.md is what the commands answer, and a page that is not is told."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from run_folders import environment

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "make_deploy.py"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_deploy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # 50 CPU seconds; what each command does is shown by its own tests
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands are run in forks")
def test_the_commands_answer_what_the_page_says(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check", "--folder", str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "docs/deploy.md is what the commands answer\n"


def test_the_page_has_every_command_and_its_exit_code(maker: ModuleType) -> None:
    page = maker.PAGE.read_text(encoding="utf-8")
    for step in maker.STEPS:
        block = page.partition(f"$ {step.command.format(engines='eager,compile,onnx,int8')}\n")[2].partition("```")[0]
        assert block
        assert ("[exit code 3]" in block) == (step.code == 3)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("1 of 1 classified in 0.1 s", "1 of 1 classified in 17.3 s", True),
        ("top-1 12.50 % as trained", "top-1 100.00 % as trained", True),
        ("logits equal within 4.9e-07 of", "logits equal within 1e-6 of", True),
        ("│ 1_left  │       2 │   0.00 % │ 1_down (2x) │", "│ 8_up │ 2 │ 50.00 % │ 1_left (12x) │", True),
        ("epoch 1/2  val/loss 2.7\nepoch 2/2  val/loss 2.5", "epoch 1/2  val/loss 2.7", True),
        ("written test.json", "wrote test.json", False),
        ("│ a │ b │", "│ a │", False),
        ("5 steps\nin 3 s", "5 steps", False),
    ],
)
def test_figures_are_masked_and_words_are_not(maker: ModuleType, before: str, after: str, same: bool) -> None:
    assert (maker.skeleton("c", before) == maker.skeleton("c", after)) is same


def test_a_stale_page_is_told(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "```text\n$ cat it\nfour words of it\n```\n"
    (tmp_path / "it").write_text("four other words of it\n")
    (tmp_path / "page.md").write_text(page)
    monkeypatch.setattr(maker, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(maker, "STEPS", (maker.Step("", "", "cat it"),))
    assert maker.check(tmp_path)[-2:] == ["-four words of it", "+four other words of it"]
    monkeypatch.setattr(maker, "STEPS", (maker.Step("", "", "cat nothing"),))
    with pytest.raises(RuntimeError, match="cat nothing ended with 1, expected 0:\ncat: nothing"):
        maker.check(tmp_path)
