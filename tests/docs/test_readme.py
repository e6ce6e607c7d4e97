"""The README is run: its Python blocks execute, its commands name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_distill._command.command import conf_dir

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_python_to_run() -> None:
    assert len(BLOCKS) >= 1
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 25


def test_every_config_named_in_a_command_exists() -> None:
    commands = re.sub(r"```python\n.*?```", "", README, flags=re.DOTALL)
    named = set(re.findall(r"\b(experiment|data|trainer|optimizer|model@models\.\w+)=(\w+)", commands))
    assert named
    for group, name in named:
        file = conf_dir() / group.partition("@")[0] / f"{name}.yaml"
        assert file.is_file(), f"README names {group}={name}"


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), f"README links {target}"


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets
