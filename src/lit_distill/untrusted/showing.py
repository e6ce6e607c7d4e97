"""Text that others named, where it is printed, logged, written into a table or put into an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LONGEST: Final = 999  # characters of an error that may repeat a text of others
# Spreadsheets of some languages take full-width signs too, and of others a semicolon for the end of a cell.
_FORMULA = re.compile(r"(^|;)([\s?]*?)(?=[=+\-@＝＋－＠])")


def printable(text: str) -> str:
    """A text of others in one line, without what moves a terminal's cursor or turns the direction of writing.

    Example:
        >>> printable("a\\x1b[2Jb\\n")
        'a?[2Jb?'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


@contextmanager
def short_errors(where: str = "") -> Iterator[None]:
    """Shorten the ``ValueError`` of a block that names texts of others: one line of less than 1,000 characters.

    Args:
        where: what the message begins with where it is shortened.

    Raises:
        ValueError: with another text where the block's has several lines, more characters or control characters.

    Example:
        >>> with short_errors("data"):
        ...     raise ValueError("a\\n" + "b" * 9_999)
        Traceback (most recent call last):
        ...
        ValueError: data: a?bbb...
    """
    try:
        yield
    except ValueError as error:
        said = str(error)
        if said.isprintable() and len(said) <= _LONGEST:
            raise
        raise ValueError(printable(f"{where}: {said}".removeprefix(": ")[:_LONGEST])) from error


def printable_lines(text: str) -> str:
    """As :func:`printable`, for a message of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """A name in a CSV file: spreadsheets run no formula in it, and it stays in its row.

    Example:
        >>> cell("=1+1"), cell("jump"), cell("a\\nb"), cell("a;=1")
        ("'=1+1", 'jump', 'a?b', "a;'=1")
    """
    return _FORMULA.sub(r"\1'\2", printable(text))
