"""docs/options and docs/commands.md are what their generator makes, and no key is without a meaning."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lit_distill._command.command import conf_dir
from lit_distill.cli import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        yield importlib.import_module("make_reference")


def test_every_key_has_a_meaning(maker: ModuleType) -> None:
    assert maker.unexplained() == [], "write a comment beside the key, or the argument's docstring"


def test_the_pages_are_current(maker: ModuleType) -> None:
    assert maker.stale() == [], "run python docs/make_reference.py"


def test_every_config_and_command_has_its_section(maker: ModuleType) -> None:
    pages = maker.render()
    options = "\n".join(text for path, text in pages.items() if path.parent.name == "options")
    for path in conf_dir().rglob("*.yaml"):
        group = "" if path.parent == conf_dir() else f"{path.parent.name}="
        assert f"# {group}{path.stem}\n" in options
    for name in COMMANDS:
        assert f"## {name}\n" in pages[ROOT / "docs" / "commands.md"]


CONFIG = """# Says what it is for:
#   a first point
defaults: [other]
first: 1  # one
second:  # a mapping
  # not of third
  third: {a: [x, 'y # z'], b: null}
hydra: {}
"""


def test_a_config_is_read_with_its_comments(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shown" / "file.yaml"
    file.parent.mkdir()
    file.write_text(CONFIG, encoding="utf-8")
    read = maker.read_file(file)
    assert (read.group, read.name, read.starts_from) == ("shown", "file", ("other",))
    assert read.summary == "Says what it is for:\n  a first point"
    assert [(key.path, key.value, key.comment) for key in read.keys] == [
        ("shown.first", "1", "one"),
        ("shown.second", "", "a mapping"),
        ("shown.second.third", "{a: [x, y # z], b: null}", ""),
        ("shown.hydra", "{}", ""),
    ]
    monkeypatch.setattr(maker, "read_files", lambda: (read,))
    maker.explained.cache_clear()
    assert maker.unexplained() == [f"conf/shown/file.yaml: shown.{key}" for key in ("second.third", "hydra")]
    maker.explained.cache_clear()


def test_arguments_are_read_from_a_docstring(maker: ModuleType) -> None:
    docstring = "Sum.\n\nArgs:\n    a, b: what is\n        ``added``.\n    c (int): more.\n\nReturns:\n    d: no."
    assert maker.read_arguments(docstring) == {"a": "what is `added`.", "b": "what is `added`.", "c": "more."}
