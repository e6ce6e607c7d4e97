"""What users type, for Hydra: paths with any character in their names, and `model=` of a run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

PATHS = ("run", "weights", "input", "unlabelled", "output", "checkpoint", "data.root", "ckpt_path", "*.pretrained")


def quote_paths(arguments: Sequence[str], *, paths: Collection[str] = PATHS) -> list[str]:
    """The arguments of a command with paths in quotes, so that Hydra takes them literally; twice changes nothing more.

    Args:
        arguments: as they were typed, without the command's name; those of sweeps (``-m``) stay: they may be lists.
        paths: patterns of the keys whose values are paths; values in quotes already are left alone.

    Example:
        >>> quote_paths(["models.Teacher.pretrained=runs/x/best.ckpt#Teacher", "seed=1"])
        ["models.Teacher.pretrained='runs/x/best.ckpt#Teacher'", 'seed=1']
    """
    literal = () if {"-m", "--multirun"} & set(arguments) else paths
    return [_quoted(argument, literal) for argument in arguments]


def as_overrides(arguments: Sequence[str], *, paths: Collection[str] = PATHS) -> list[str]:
    """The arguments of a command on a run as Hydra takes them: doing it twice changes nothing more.

    Args:
        arguments: as they were typed, without the command's name. Paths are quoted, see :func:`quote_paths`.
            ``model=Teacher``, one of the run's models, becomes ``named=Teacher``: Hydra would look for a file
            conf/model/Teacher.yaml.
        paths: as for :func:`quote_paths`.

    Example:
        >>> as_overrides(["input=a (1), b.mp4", "model=Teacher", "topk=3"])
        ["input='a (1), b.mp4'", 'named=Teacher', 'topk=3']
    """
    return [re.sub(r"^model=", "named=", argument) for argument in quote_paths(arguments, paths=paths)]


def given_values(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Where in the config each override puts what, as typed: interpolations are not resolved.

    Args:
        overrides: in Hydra's words; of a choice from a group the place is its package.

    Example:
        >>> list(given_values(["seed=1", "+losses.kd={weight: 2}", "model@models.Teacher=resnet50"]))
        [('seed', 1), ('losses.kd', {'weight': 2}), ('models.Teacher', 'resnet50')]
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        yield override.package or override.key_or_group, override.value()


def _quoted(argument: str, paths: Collection[str]) -> str:
    key, _, value = argument.partition("=")
    if not any(fnmatchcase(key.lstrip("+"), path) for path in paths) or value in ("", "null") or value[0] in "'\"":
        return argument
    return f"{key}={literal(value)}"


def literal(text: str) -> str:
    """A text in quotes, as Hydra takes it without reading anything into it.

    Example:
        >>> literal("a (1), b.mp4"), literal("it's")
        ("'a (1), b.mp4'", "'it\\\\'s'")
    """
    # backslashes are escapes only before a quote, the closing one too: there they are doubled
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"
