"""What a shell completes a command line to: commands, options, config groups, their choices, keys. It loads no Hydra.

Configs are read file by file: ``defaults`` are followed with what the line chooses, values stay as they are written.
"""

from __future__ import annotations

import ast
import glob
import importlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_distill._command.arguments import takes_path
from lit_distill._command.command import Command, conf_dir, read_config
from lit_distill._files import expand_home

SCRIPTS = {
    "bash": r"""
_lit_distill() {
    local line=${COMP_LINE:0:COMP_POINT} words reply
    read -ra words <<< "$line"
    case $line in *[[:space:]]) words+=("") ;; esac
    # bash breaks words at = : and @, and expects what follows the break
    local word=${words[${#words[@]}-1]} part=${COMP_WORDS[COMP_CWORD]}
    local before=${word%"${part#[=:@]}"}
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("${reply#"$before"}")
    done < <("${1/#\~/$HOME}" completion -- "${words[@]:1}" 2>/dev/null)
}
complete -o nospace -F _lit_distill lit-distill
""",
    "zsh": r"""
_lit_distill() {
    local -a replies
    replies=("${(@f)$(${~words[1]} completion -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -z $replies ]] || compadd -Q -S '' -- "${replies[@]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _lit_distill lit-distill
""",
    "fish": r"""
function __lit_distill
    set -l words (commandline -opc)
    $words[1] completion -- $words[2..-1] (commandline -ct | string collect --allow-empty) 2>/dev/null | string trim -r
end
complete -c lit-distill -f -a '(__lit_distill)'
""",
}
"""What ``lit-distill completion <shell>`` prints."""

_OPTIONS = {
    "--help": [], "--version": [], "--multirun": [], "--resolve": [], "--cfg": ["job", "hydra", "all"],
    "--info": ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"], "--config-dir": None,
}  # fmt: skip
"""Hydra's options that are of use here, and what follows each; None is a folder."""
_LISTS = {"experiments": "experiment"}
"""Keys of lists whose items are choices of a group."""


def candidates(words: Sequence[str], commands: Iterable[str]) -> list[str]:
    """What the last word of a line may become, without the program's name; a candidate that is whole ends in a space.

    Example:
        >>> candidates(["train", "experiment=kd_i"], ["train"])
        ['experiment=kd_image ']
        >>> candidates(["train", "experiment=kd_image", "trainer.max_e"], ["train"])
        ['trainer.max_epochs=']
    """
    *typed, word = words
    if not typed:
        found = [f"{name} " for name in (*commands, "completion", "--help", "--version")]
    elif typed[0] == "completion":
        found = [f"{shell} " for shell in SCRIPTS]
    elif typed[0] in commands:
        found = _arguments(typed, word)
    else:
        found = []
    return sorted({candidate for candidate in found if candidate.startswith(word)})


def _arguments(typed: Sequence[str], word: str) -> list[str]:
    command = getattr(importlib.import_module(f"lit_distill.{typed[0]}"), "main", None)
    if not isinstance(command, Command):  # convert
        return [*_paths(word), "--model ", "--help "]
    options = {**_OPTIONS, **{name: [] for name in command.arguments.replaced if name.startswith("-")}}
    following = options.get(typed[-1], [])
    if following or following is None:
        return _paths(word) if following is None else [f"{choice} " for choice in following]
    if word.startswith("-"):
        return [f"{option} " for option in (*options, *(["--allow"] if command.arguments.allow else []))]
    config = _Config([command.name, *(["train"] if command.arguments.forwarded else [])], typed[1:])
    for key, name in command.arguments.renamed.items():
        config.keys[key] = config.keys.pop(name)
    plus = re.match(r"[+~]*", word)[0]  # type: ignore[index]  # it matches nothing too
    key, given, value = word.removeprefix(plus).partition("=")
    if given:
        return [f"{plus}{key}={candidate}" for candidate in config.values(key, value)]
    places = _paths(word) if command.arguments.folders else []
    return [*(f"{plus}{candidate}" for candidate in config.names(key)), *places]


def _paths(start: str) -> list[str]:
    """Files, and folders with a slash, that begin so."""
    found = glob.glob(glob.escape(os.path.expanduser(start)) + "*")
    home = os.path.expanduser("~")
    typed = [f"~{path.removeprefix(home)}" if start.startswith("~") else path for path in found]
    return [f"{shown}/" if os.path.isdir(path) else f"{shown} " for path, shown in zip(found, typed, strict=True)]


class _Config:
    """The keys and groups of a command's configs as far as a line chooses them."""

    def __init__(self, names: Sequence[str], typed: Sequence[str]) -> None:
        self._chosen = dict(argument.lstrip("+").partition("=")[::2] for argument in typed if "=" in argument)
        line = " ".join(typed)
        own = re.findall(r"--config-dir[ =](\S+)", line) + re.findall(r"file://([^,\]'\"\s]+)", line)
        self._folders = [*(expand_home(folder) for folder in own), conf_dir()]
        known = -1
        while known < len(self._chosen):  # a choice may override what another one chooses
            known = len(self._chosen)
            self.keys: dict[str, Any] = {}
            self._groups: set[str] = set()
            for name in names:
                self._read("", name, "")
            for argument in typed:
                if argument.startswith("+"):
                    self._follow(*argument.lstrip("+").partition("=")[::2], parent="", package="")
        data = self.keys.get("data")
        if isinstance(data, dict) and (target := str(data.get("_target_"))).startswith("lit_distill."):
            self.keys["data"] = {**_arguments_of(target), **data}

    def names(self, start: str) -> list[str]:
        """Groups, and keys up to the next dot, that begin so."""
        parent, dot, part = start.rpartition(".")
        node = self._at(parent)
        keys = [
            f"{parent}{dot}{key}{'.' if isinstance(value, dict) and value else '='}"
            for key, value in (node.items() if isinstance(node, dict) else ())
            if part.startswith("_") or not str(key).startswith("_")
        ]
        return [*(f"{group}=" for group in self._groups), *keys]

    def values(self, key: str, start: str) -> list[str]:
        """What a key or a group may be set to; the last item of a list or of a sweep."""
        if key in self._groups or key in _LISTS or "@" in key:
            group = _LISTS.get(key, key.partition("@")[0])
            before = start[: max(start.rfind(","), start.rfind("[")) + 1]
            end = "" if "[" in before else " "
            files = (file for folder in self._folders for file in folder.joinpath(group).glob("*.yaml"))
            return [f"{before}{file.stem}{end}" for file in files]
        if takes_path(key):
            return _paths(start)
        value = self._at(key)
        if isinstance(value, bool):
            return ["true ", "false "]
        is_default = isinstance(value, (int, float)) or (isinstance(value, str) and re.fullmatch(r"[\w.-]+", value))
        return [f"{value} "] if is_default else []

    def _at(self, path: str) -> Any:
        node: Any = self.keys
        for name in path.split(".") if path else ():
            node = node.get(name) if isinstance(node, dict) else None
        return node

    def _read(self, group: str, name: str, package: str) -> None:
        """Take one file in: what its defaults choose, then its own keys."""
        files = [folder / group / f"{name}.yaml" for folder in self._folders]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            return
        text = file.read_text(encoding="utf-8")
        if header := re.search(r"^# @package (\S+)", text, re.MULTILINE):
            package = header[1].removeprefix("_global_").removeprefix(".")
        content = read_config(text)
        for entry in content.pop("defaults", ()):
            for key, choice in entry.items() if isinstance(entry, dict) else [("", entry)]:
                if not isinstance(entry, dict):  # another file of this group
                    name, _, place = str(choice).partition("@")
                    if name != "_self_":
                        self._read(group, name, ".".join(filter(None, (package, place))))
                elif key.startswith("override "):
                    self._chosen.setdefault(key.removeprefix("override ").removeprefix("/"), str(choice))
                else:
                    self._follow(key.removeprefix("optional "), choice, parent=group, package=package)
        content.get("hydra", {}).pop("help", None)
        node = self.keys
        for part in package.split(".") if package else ():
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                return
        _merge(node, content)

    def _follow(self, key: str, choice: Any, *, parent: str, package: str) -> None:
        """Read what an entry of a defaults list chooses from a group."""
        group, at, place = key.partition("@")
        group = group[1:] if group.startswith("/") else "/".join(filter(None, (parent, group)))
        place = ".".join(filter(None, (package, place if at else group.replace("/", "."))))
        name = group if place == group.replace("/", ".") else f"{group}@{place}"
        self._groups.add(name)
        for one in re.findall(
            r"[^\[\],'\" ]+", str(self._chosen.get(name, choice))
        ):  # one, a list, or those of a sweep
            self._read(group, one, place)


def _arguments_of(target: str) -> dict[str, Any]:
    """The arguments of a data module of this package and their defaults, read from its file: importing it is slow."""
    module, _, name = target.rpartition(".")
    path = Path(__file__).parents[2].joinpath(*module.split("."))
    body = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes()).body
    for node in body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return _arguments_of(f"{node.module}.{name}")
    (made,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    (begin,) = (node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    found = {
        argument.arg: default.value if isinstance(default, ast.Constant) else None
        for argument, default in zip(begin.args.kwonlyargs, begin.args.kw_defaults, strict=True)
    }
    if begin.args.kwarg is None:
        return found
    base = ast.unparse(made.bases[0]).partition("[")[0]
    return {**_arguments_of(f"{module}.{base}"), **found}


def _merge(into: dict[str, Any], content: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
