"""What a command is: its name, its config, its help, and what its arguments look like. Importing it loads no Hydra."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_distill._command.arguments import Arguments, literal, shell_word
from lit_distill._version import __version__


@dataclass(frozen=True)
class Command:
    """A command: composes its config and hands it to the function that does the work.

    ``--help`` and completion import the command alone, so that function is imported only where it is called.

    Attributes:
        name: of ``python -m lit_distill.<name>`` and of the config ``conf/<name>.yaml``.
        work: ``module:function`` of the function that takes the composed config.
        arguments: what they look like, beside Hydra's grammar.
    """

    name: str
    work: str
    arguments: Arguments = field(default_factory=Arguments)

    def __call__(self) -> None:
        """Run it by the arguments of this process; a user's error is one line and exit code 1."""
        if answer := self.answer(sys.argv[1:]):
            print(answer)
            return
        from lit_distill._command.run import run

        run(self)

    def answer(self, typed: Sequence[str]) -> str:
        """What ``--help`` and ``--version`` print; empty where neither was typed."""
        if {"-h", "--help"} & set(typed):
            return help_text(self.name)
        return __version__ if "--version" in typed else ""

    def overrides(self, typed: Sequence[str]) -> list[str]:
        """The arguments as Hydra takes them, see :meth:`Arguments.overrides`."""
        overrides = self.arguments.overrides(typed, own=own_keys(self.name) if self.arguments.forwarded else ())
        key = self.arguments.typed
        if key and not any(override.startswith(f"{key}=") for override in overrides):
            shown = " ".join([f"python -m lit_distill.{self.name}", *map(shell_word, typed)])
            overrides.append(f"{key}={literal(shown)}")
        return overrides


def conf_dir() -> Path:
    """The folder of the configs: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"lit_distill's configs are missing: expected {package / 'conf'}; reinstall the package")


def command_config(name: str) -> dict[str, Any]:
    """The config of a command as its file has it: not composed."""
    return read_config((conf_dir() / f"{name}.yaml").read_text(encoding="utf-8"))


def read_config(text: str) -> dict[str, Any]:
    """The content of a config file; empty where it has comments alone."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def own_keys(name: str) -> set[str]:
    """Keys and groups of a command's own config.

    Example:
        >>> sorted(own_keys("search") & {"sweep", "space", "hydra", "experiment"})
        ['space', 'sweep']
    """
    config = command_config(name)
    groups = {group for entry in config["defaults"] if isinstance(entry, dict) for group in entry if " " not in group}
    return {*config, *groups} - {"defaults", "hydra"}


def help_text(name: str) -> str:
    """What ``--help`` prints: the config's ``hydra.help.template``, its ``$APP_CONFIG_GROUPS`` filled in.

    It is read, not composed: a command whose config has to be chosen has a help without the choice too.
    """
    template = str(command_config(name)["hydra"]["help"]["template"])
    groups = []
    for folder in sorted({file.parent for file in conf_dir().glob("*/*.yaml")}):
        options = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        groups.append(textwrap.fill(f"{folder.name}: {options}", 118, initial_indent="  ", subsequent_indent="    "))
    return template.replace("$APP_CONFIG_GROUPS", "\n".join(groups)).rstrip()
