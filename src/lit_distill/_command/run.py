"""Run a command: Hydra composes its config, and what a user did wrong is one clear line."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lit_distill._command.command import Command, command_config, conf_dir, own_keys
from lit_distill._command.launch import share_start
from lit_distill.untrusted.showing import printable_lines

_FULL_ERROR = "HYDRA_FULL_ERROR"


def user_error_text(error: BaseException) -> str | None:
    """The message for an error that a user can mend, without the frames that it came through; None for any other."""
    if text := _unknown_argument(str(error)):
        return text
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        close = difflib.get_close_matches(name, error.options, n=3)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        return f"there is no {group}={name}; {meant}All of {group}: {', '.join(error.options)}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        lines = str(error).split("\nConfig search path:")[0].splitlines()
        return " ".join(line.strip() for line in lines if line.strip())
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
        return str(error) or type(error).__name__
    from lit_distill.data.decoding.layout import VideoError  # here, so that a mistyped key needs no torch

    if isinstance(error, VideoError):
        return str(error)
    return None


def _unknown_argument(text: str) -> str:
    """One line for Hydra's error of an argument that its target does not take; empty for any other error."""
    found = re.search(
        r"call to target '([\w.]+)'.*?([\w.<>]+)\(\) got an unexpected keyword argument '(\w+)'", text, re.DOTALL
    )
    if found is None:
        return ""
    from lit_distill._command.overrides import arguments_of  # here: completion needs none of it

    target, raised_by, name = found.groups()
    made = resolve_name(target)
    own = {f"{base.__qualname__}.__init__" for base in getattr(made, "__mro__", ())} | {made.__qualname__}
    if raised_by not in own:  # an error within the target
        return ""
    place = re.search(r"full_key: ([\w.]+)", text)
    close = difflib.get_close_matches(name, arguments_of(target), n=1)
    key = f"{place[1]}." if place else ""
    return f"{target} takes no {key}{name}" + (f"; did you mean {key}{close[0]}?" if close else "")


def exit_with(error: Exception, config_name: str, typed: Sequence[str] = ()) -> NoReturn:
    """End the command with one line for an error that a user can mend; raise any other."""
    unknown = unknown_key(typed, config_name) if isinstance(error, HydraException) else ""
    text = unknown or user_error_text(error)
    if text is None:
        raise error
    said = printable_lines(closest_key(text, config_name))
    print(f"error: {said} ({_FULL_ERROR}=1 shows the traceback)", file=sys.stderr)
    sys.exit(1)


def unknown_key(typed: Sequence[str], config_name: str) -> str:
    """One line for the first argument whose key the command does not have; empty where there is none.

    Hydra looks for a choice that is missing first: of ``doctor run=…`` it says that an experiment is to be chosen.

    Example:
        >>> unknown_key(["runs=runs/a"], "predict")
        "there is no 'runs'; did you mean run?"
    """
    if any(re.match(r"--?(config-(dir|path|name)|c[dpn])\b|hydra\.searchpath", each.lstrip("+")) for each in typed):
        return ""  # the user's own configs have keys that are not known here
    known: set[str] = {"hydra", "data", "models", "losses", "model", "loss", "weight"}
    names = [config_name]
    while names:
        name = names.pop()
        known |= own_keys(name)
        names += [entry for entry in command_config(name)["defaults"] if isinstance(entry, str) and entry != "_self_"]
    groups = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    for argument in typed:
        key, given, _ = argument.partition("=")
        first = re.split(r"[.@/]", key)[0]
        if given and first.isidentifier() and first not in known | groups:
            close = difflib.get_close_matches(first, known, n=1)
            return f"there is no {key!r}" + (
                f"; did you mean {close[0]}?" if close else f": {config_name} has no such key"
            )
    return ""


def closest_key(text: str, config_name: str) -> str:
    """Hydra's message of an unknown key, with the closest ones of the command's own config.

    Example:
        >>> closest_key("Could not override 'view'. To append to your config use +view=dense", "predict")
        "there is no 'view'; did you mean views?"
    """
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown is None:
        return text
    known: list[str] = []

    def walk(node: Any, path: str) -> None:
        for key, value in node.items():
            known.append(f"{path}{key}")
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")

    walk({key: value for key, value in command_config(config_name).items() if key not in ("defaults", "hydra")}, "")
    close = difflib.get_close_matches(unknown[1], known, n=1)
    return f"there is no {unknown[1]!r}; did you mean {close[0]}?" if close else text


def quiet_lightning() -> None:
    """Leave out what Lightning says of itself at every start, and warnings of what is meant to be so here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r"Found \d+ module\(s\) in eval mode",  # the frozen teacher
        r"The number of training batches .* is smaller than the logging interval",  # an epoch's end is logged anyway
        r".*LeafSpec.* is deprecated",  # Lightning's own use of torch
        r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
    ):
        warnings.filterwarnings("ignore", message=message)


@dataclass(frozen=True)
class _Task:
    """What Hydra calls with the composed config; launchers of sweeps pickle it by its name."""

    command: Command
    raises: bool

    def __call__(self, config: DictConfig) -> Any:
        try:
            work = resolve_name(self.command.work)
            quiet_lightning()  # behind the import, which sets Lightning's level
            return work(config)
        except Exception as error:
            if self.raises:
                raise
            exit_with(error, self.command.name)


def run(command: Command) -> None:
    """Run a command by the arguments of this process, which are Hydra's afterwards: Lightning starts others by them.

    ``HYDRA_FULL_ERROR=1`` shows the traceback of what is one line and exit code 1 otherwise.
    """
    raises = os.environ.get(_FULL_ERROR) == "1"
    # Hydra would print its own abridged stack and exit; with this it raises the error.
    os.environ[_FULL_ERROR] = "1"
    try:
        sys.argv[1:] = command.overrides(sys.argv[1:])
        share_start()
        task = _Task(command, raises)
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.name)(task)()
    except Exception as error:
        if raises:
            raise
        exit_with(error, command.name, sys.argv[1:])
    finally:
        if not raises:
            del os.environ[_FULL_ERROR]
