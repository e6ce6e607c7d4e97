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
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = "\n".join([begin, f"## {name}", "", f"`{command}` on {machine}", "", *lines, end])
    text = RESULTS.read_text() if RESULTS.exists() else "# Benchmarks\n\nRatios within one run; medians (min-max).\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text = pattern.sub(lambda _: block, text) if pattern.search(text) else f"{text.rstrip()}\n\n{block}\n"
    RESULTS.write_text(text)
