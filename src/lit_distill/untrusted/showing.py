"""Text that others named, where it is printed, logged, written into a table or put into an error."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    """A text of others in one line, without what moves a terminal's cursor or turns the direction of writing.

    Example:
        >>> printable("a\\x1b[2Jb\\n")
        'a?[2Jb?'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def printable_lines(text: str) -> str:
    """As :func:`printable`, for a message of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """A name in a CSV file: spreadsheets run no formula in it, and it stays in its row.

    Example:
        >>> cell("=1+1"), cell("jump"), cell("a\\nb")
        ("'=1+1", 'jump', 'a?b')
    """
    return f"'{printable(text)}" if text.lstrip().startswith(_FORMULA) else printable(text)
