"""benchmarks/RESULTS.md: each benchmark writes its own section between markers and leaves the others alone."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(name: str, command: str, lines: Sequence[str]) -> None:
    """Replace or append the section of one benchmark, with the command, the day and the machine that made it."""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}, {date.today()}"
    heading = [f"## {name}", "", f"`{command}` on {machine}", ""]
    if not RESULTS.exists():
        RESULTS.write_text("# Benchmarks\n\nRatios within one run; medians (min-max).\n")
    write_table(RESULTS, name, [*heading, *lines])


def write_table(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between a file's markers of that name, or append it with markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = "\n".join([begin, *lines, end])
    text = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    path.write_text(pattern.sub(lambda _: block, text) if pattern.search(text) else f"{text.rstrip()}\n\n{block}\n")
