"""Patterns that name tensors and parts of models, such as ``Student.*.bn``."""

from __future__ import annotations

from fnmatch import fnmatchcase


def names(pattern: str, key: str) -> bool:
    """Whether a pattern names a tensor or a part that it is in.

    Example:
        >>> names("Student.fc", "Student.fc.weight"), names("Student.f", "Student.fc.weight")
        (True, False)
        >>> names("Student.*.bn", "Student.stages.0.bn.bias")
        True
    """
    parts = key.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
