"""Config, card and results of a run as plain data of the kinds that those expect who open runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_distill.untrusted.check import check_count
from lit_distill.untrusted.plain import dotted, read_plain, resolved

# The kinds of content that are read by name: a file of another kind is refused before anyone asks.
IN_CONFIG = {
    "models": dict, "data": dict, "losses": dict, "val_losses": dict, "callbacks": dict, "inputs": dict, "start": dict,
    "trainer": dict, "optimizer": dict, "student": str, "frozen": list, "candidates": list, "train_only": list,
    "replaced_frozen": list, "frozen_weights": dict, "data_free": dict,
}  # fmt: skip
_OF_TEXTS = ("start", "frozen_weights")  # mappings of names to files
IN_CARD = {"model": dict, "data": dict, "input": dict, "teachers": dict, "class_names": list, "sha256": str}
IN_RESULTS = {"student": str, "student_stage": str, "versions": dict, "final": dict, "best": dict}


def read_content(file: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The mapping that a YAML or JSON file of a run holds, its pointers resolved.

    Raises:
        ValueError: it is malformed, no mapping, or holds something of another kind than ``kinds`` names for its key.
    """
    return contents_of(file, read_plain(file), kinds)


def contents_of(file: Path, content: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """As :func:`read_content`, of a file that has been parsed.

    Raises:
        ValueError: as there.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{file} is refused: expected a mapping, got {type(content).__name__}")
    try:
        made: dict[str, Any] = resolved(content)
        check_count(made)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for key, kind in kinds.items():
        value = made.get(key)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{file}: expected {key} to be a {kind.__name__}, got {type(value).__name__}")
    for key in _OF_TEXTS if kinds is IN_CONFIG else ():
        for name, value in (made.get(key) or {}).items():
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"{file}: expected {dotted((key, name))} to be a file's name, got {type(value).__name__}"
                )
    return made


def read_optional(file: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """As :func:`read_content`; empty where there is no such file."""
    return read_content(file, kinds) if file.is_file() else {}
