"""What the commands show: shares, and texts of others."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import OverflowMethod
from rich.table import Column


def few(texts: Iterable[str], most: int = 5) -> str:
    """The first of some texts, and how many more there are.

    Example:
        >>> few("abc"), few("abc", 2)
        ('a, b, c', 'a, b and 1 more')
    """
    listed = list(texts)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def percent(share: float) -> str:
    """A share as it is shown.

    Example:
        >>> percent(0.12345)
        '12.35 %'
    """
    return f"{100 * share:.2f} %"


def printable(text: str) -> str:
    """A text of others without what moves a terminal's cursor.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a?[2Jb'
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def numeric(*headers: str, overflow: OverflowMethod = "ellipsis") -> list[Column]:
    """Columns of numbers for a rich table, aligned to the right."""
    return [Column(header, justify="right", overflow=overflow) for header in headers]
