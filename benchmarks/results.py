"""What benchmarks share: their options, the libraries that they compare with, and the sections of RESULTS.md.

Each benchmark writes its own section between markers and leaves the others alone. Libraries that something is compared
with are optional: one that can't be used is left out, and the section says why; under `--whole`, as `make benchmarks`
runs them all, the section is rather left as it is.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
LEFT_AS_IT_IS = 3
"""Exit code of a benchmark that has written nothing, under `--whole`, as a library is not there."""


def parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The options of every benchmark; `quick` tells what a short run measures."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help=f"{quick}; nothing is written")
    made.add_argument("--whole", action="store_true", help="measure nothing where a library to compare with is missing")
    return made


def missing(probes: Mapping[str, Callable[[], object]], asked: argparse.Namespace | None = None) -> dict[str, str]:
    """The libraries whose probe fails, and why; under `--whole` the program ends with them."""
    absent = {}
    for name, probe in probes.items():
        try:
            probe()
        except (ImportError, OSError, RuntimeError) as error:
            absent[name] = " ".join(str(error).split())[:160] or type(error).__name__
    if absent and asked is not None and asked.whole and not asked.quick:
        print("\n".join(left_out(absent)).strip(), file=sys.stderr)
        sys.exit(LEFT_AS_IT_IS)
    return absent


def left_out(absent: Mapping[str, str]) -> list[str]:
    """A paragraph for the section, if any is left out."""
    return [f"{name} is left out: {why}" for name, why in absent.items()] + [""] * bool(absent)


def versions(modules: Iterable[str]) -> str:
    """The installed distributions of these modules, with their versions."""
    known = metadata.packages_distributions()
    found = dict.fromkeys(known[module][0] for module in modules if module in known)
    return ", ".join(f"{name} {metadata.version(name)}" for name in found)


def write_section(
    name: str, command: str, lines: Sequence[str], *, beside: Iterable[str] = (), file: Path | None = None
) -> None:
    """Replace or append the section of one benchmark, with the command, the day and the machine that made it.

    `beside` are the modules on whose versions the figures depend, torch apart, which is always among them. `file` is
    RESULTS.md where it is not given.
    """
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"
    made_by = f"`{command}` on {machine}, {versions(('torch', *beside))}, {date.today()}"
    write_table(RESULTS if file is None else file, name, [f"## {name}", "", made_by, "", *lines])


def write_table(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between a file's markers of that name, or append it with markers."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = "\n".join([begin, *lines, end])
    text = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    path.write_text(pattern.sub(lambda _: block, text) if pattern.search(text) else f"{text.rstrip()}\n\n{block}\n")
