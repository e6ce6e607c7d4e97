"""What CONTRIBUTING.md asks of each command: one that lacks one of its places fails here, by name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import lit_distill
from lit_distill._command.command import Command, conf_dir, help_text
from lit_distill.cli import COMMANDS

PACKAGE = Path(lit_distill.__file__).parent
CONFIGS = {path.stem for path in conf_dir().glob("*.yaml")}
DOORS = {path.stem for path in PACKAGE.glob("*.py") if "\nmain = Command(" in path.read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", sorted({*COMMANDS, *CONFIGS, *DOORS}))
def test_it_has_its_places(name: str) -> None:
    assert name in COMMANDS, f'src/lit_distill/cli.py lacks it: "{name}": "<what it does>" in COMMANDS'
    assert (PACKAGE / f"{name}.py").is_file(), f"src/lit_distill/{name}.py is missing: main = Command({name!r}, …)"
    main = importlib.import_module(f"lit_distill.{name}").main
    if not isinstance(main, Command):
        return  # takes its arguments without Hydra, and has no config
    assert main.name == name
    assert name in CONFIGS, f"conf/{name}.yaml is missing: the keys and the help of {name}"
    assert f"python -m lit_distill.{name} " in help_text(name), f"the help in conf/{name}.yaml shows no command"
    module, _, function = main.work.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), f"{main.work} is what {name} calls"
