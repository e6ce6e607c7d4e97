"""`python tests/prose.py`: finds words that this project does not use, in texts, messages and comments.

`make lint` runs it. A line that has to say one of them ends in `prose: allow`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOW = "prose: allow"
PLACES = (
    "src", "conf", "docs", "benchmarks", "examples", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile",
    "pyproject.toml",
)  # fmt: skip
SUFFIXES = (".py", ".md", ".rst", ".yaml", ".toml", "")
WORDS = {
    r", came (?=\S)": "got",
    r"\banew\b": "again, from scratch, re-created",
    r"\b(is|are|was|were|be|been) told\b": "is printed, reported, warned",
    r"\b(go|goes|going) on (from|where)\b": "resumes, continues",
    r"\bof (your|one's) own\b": "your own X, custom",
    r"\b(a|the) received (config|file|run|card|weights)": "untrusted",
    r"\bso-manieth\b": "every n-th",
    r"\bnot to be had\b": "is not available",
    r"\ba \w+ that there is not\b": "an unknown X",
    r"\bbegins? (afresh|fresh)\b": "is reinitialized",
    r"\bin (this|that) very\b|\bfrom that very\b": "that",
}
"""What is not said, as a pattern, and what is."""


def findings(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each line, from 1, that says such a word, and what it should say."""
    for number, line in enumerate(lines, 1):
        for pattern, better in WORDS.items():
            found = re.search(pattern, line, re.IGNORECASE)
            if found and ALLOW not in line:
                yield number, f"{found[0].strip()!r}: say {better}"


def texts() -> Iterator[Path]:
    """The files of the project that are looked at."""
    listed = subprocess.run(["git", "ls-files", "-z", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.suffix in SUFFIXES and path.is_file():
            yield path


def main() -> int:
    """Print what is found; 1 if anything is."""
    count = 0
    for path in texts():
        for number, text in findings(path.read_text(encoding="utf-8").splitlines()):
            print(f"{path.relative_to(ROOT)}:{number}: {text}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
