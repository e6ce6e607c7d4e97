"""What users type, for Hydra: paths with any character in their names, and `model=` of a run."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

PATHS = ("run", "weights", "input", "output", "checkpoint", "data.root")


def as_overrides(arguments: Sequence[str], *, paths: Collection[str] = PATHS) -> list[str]:
    """The arguments of a command on a run as Hydra takes them: doing it twice changes nothing more.

    Args:
        arguments: as they were typed, without the command's name. The values of ``paths`` are put in quotes, so that
            they are taken literally; not in sweeps (``-m``), where they may be lists. ``model=Teacher``, one of the
            run's models, becomes ``named=Teacher``: Hydra would look for a file conf/model/Teacher.yaml.
        paths: keys whose values are paths; values in quotes already are left alone.

    Example:
        >>> as_overrides(["input=a (1), b.mp4", "model=Teacher", "topk=3"])
        ["input='a (1), b.mp4'", 'named=Teacher', 'topk=3']
    """
    literal = () if {"-m", "--multirun"} & set(arguments) else paths
    return [re.sub(r"^model=", "named=", _quoted(argument, literal)) for argument in arguments]


def _quoted(argument: str, paths: Collection[str]) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key not in paths or value in ("", "null") or value[0] in "'\"":
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
