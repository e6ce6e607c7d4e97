"""benchmarks/RESULTS.md: each benchmark writes its own section between markers and leaves the others alone.

Libraries that a benchmark is compared with are optional: what is not installed is left out, and the section says why.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from datetime import date
from importlib import import_module, metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")
PEERS = {"torchdistill": "torchdistill", "decord": "decord", "torchcodec": "torchcodec.decoders", "OpenCV": "cv2"}
"""Libraries beside which something is measured, and the module that shows whether each works here."""


def missing(names: Iterable[str]) -> dict[str, str]:
    """Those of PEERS that can't be used here, and why."""
    absent = {}
    for name in names:
        try:
            import_module(PEERS[name])
        except (ImportError, OSError, RuntimeError) as error:
            absent[name] = str(error).strip().splitlines()[0]
    return absent


def left_out(absent: dict[str, str]) -> list[str]:
    """A paragraph for the section, one line a peer that is not in it."""
    return [f"{name} is left out: {why}" for name, why in absent.items()] + [""] * bool(absent)


def versions(modules: Iterable[str]) -> str:
    """The installed distributions of these modules, with their versions."""
    known = metadata.packages_distributions()
    found = dict.fromkeys(known[module][0] for module in modules if module in known)
    return "".join(f", {name} {metadata.version(name)}" for name in found)


def write_section(name: str, command: str, lines: Sequence[str], *, beside: Iterable[str] = ()) -> None:
    """Replace or append the section of one benchmark, with the command, the day and the machine that made it.

    `beside` are the modules, torch apart, on whose version the figures depend.
    """
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"
    made_by = f"`{command}` on {machine}, torch {torch.__version__}{versions(beside)}, {date.today()}"
    heading = [f"## {name}", "", made_by, ""]
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
