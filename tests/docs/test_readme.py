"""Both READMEs are run: their Python blocks execute, their commands name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_distill._command.command import conf_dir

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")}
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}


@pytest.mark.parametrize("block", [block for blocks in BLOCKS.values() for block in blocks])
def test_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_python_to_run() -> None:
    for blocks in BLOCKS.values():
        assert len(blocks) >= 1
        assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 25


@pytest.mark.parametrize("page", PAGES)
def test_every_config_named_in_a_command_exists(page: str) -> None:
    commands = re.sub(r"```python\n.*?```", "", PAGES[page], flags=re.DOTALL)
    named = set(re.findall(r"\b(experiment|data|trainer|optimizer|model@models\.\w+)=(\w+)", commands))
    assert named
    for group, name in named:
        file = conf_dir() / group.partition("@")[0] / f"{name}.yaml"
        assert file.is_file(), f"{page} names {group}={name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_linked_file_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (ROOT / target).exists(), f"{page} links {target}"


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in PAGES.values():
        assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
