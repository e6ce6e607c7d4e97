"""What the commands show: texts, tables and shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from lit_distill.untrusted.showing import printable_lines


class Screen(Console):
    """A terminal that shows text as it stands: names that others chose are no markup, and move no cursor.

    Styles are given by :class:`rich.text.Text`, or the ``style`` of what is printed.

    Args:
        stderr: whether it is the standard error.

    Example:
        >>> Screen().print("[bold]a[/x]")
        [bold]a[/x]
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Give a text as it is shown, before anything is measured."""
        return super().render_str(printable_lines(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give what rich would write, without the control characters that are none of its own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)


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


def numeric(*headers: str, overflow: OverflowMethod = "ellipsis") -> list[Column]:
    """Columns of numbers for a rich table, aligned to the right."""
    return [Column(header, justify="right", overflow=overflow) for header in headers]
