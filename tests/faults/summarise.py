"""Writes what one run of the fault suite counted into the table of docs/reliability.md.

python tests/faults/summarise.py build/faults.jsonl     # `make faults` does both
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def table(lines: Iterable[str]) -> str:
    """The counts of a report, summed by promise, as a Markdown table with a last line over all.

    Raises:
        ValueError: there are none, or a line is no report.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for line in lines:
        try:
            entry = json.loads(line)
            numbers = [int(entry[name]) for name in ("tried", "survived", "lost")]
            promise = str(entry["promise"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"no line of a report: {line[:200]!r}") from error
        counts[promise] = [a + b for a, b in zip(counts[promise], numbers, strict=True)]
    if not counts:
        raise ValueError("the report is empty: set LIT_DISTILL_FAULTS_REPORT for the run, or say `make faults`")
    rows = [(promise.replace("|", "/"), *numbers) for promise, numbers in sorted(counts.items())]
    rows.append(("**all**", *(sum(row[column] for row in rows) for column in (1, 2, 3))))  # type: ignore[misc]
    text = ["| promise | tried | survived | lost |", "|---|---:|---:|---:|"]
    return "\n".join([*text, *(f"| {name} | {a:,} | {b:,} | {c:,} |" for name, a, b, c in rows)])


def described() -> str:
    """What the figures were counted with."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    return f"From `make faults`: {versions}, Python {platform.python_version()}, {platform.system()}, CPU and gloo."


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace what stands between the markers of the page; 1 where something was lost."""
    (file,) = sys.argv[1:] if arguments is None else arguments
    made = table(Path(file).read_text().splitlines())
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(f"{before}{BEGIN}\n{described()}\n\n{made}\n{END}{after}", encoding="utf-8")
    os.replace(temporary, PAGE)
    print(made)
    total = made.splitlines()[-1].split("|")
    return 0 if total[2].strip() == total[3].strip() and total[4].strip() == "0" else 1


if __name__ == "__main__":
    sys.exit(main())
