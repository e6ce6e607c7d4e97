"""What long work on many files shows while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES: Final = 5.0


@contextmanager
def counting(total: int, console: Console, what: str, things: str) -> Iterator[Callable[[], None]]:
    """A callback for each finished thing: it moves a bar or, outside a terminal, prints a line at times."""
    if console.is_terminal:
        columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.advance(task)
        return
    done, last = 0, float("-inf")

    def advance() -> None:
        nonlocal done, last
        done += 1
        if done == total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{what}  {done}/{total} {things}", highlight=False)

    yield advance
