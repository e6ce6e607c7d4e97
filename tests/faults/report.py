"""What the fault tests count, one JSON line a promise, appended to the file that LIT_DISTILL_FAULTS_REPORT names."""

from __future__ import annotations

import json
import os

VARIABLE = "LIT_DISTILL_FAULTS_REPORT"


def report(promise: str, *, tried: int, survived: int, lost: int = 0, **more: int | float | str) -> None:
    """Append the counts of one promise; nothing where the variable is not set.

    Args:
        promise: what was tried, as a line of docs/reliability.md reads.
        tried: faults injected.
        survived: those after which all was as promised.
        lost: things lost or repeated, such as samples; 0 is the promise.
        more: further figures for the same line.
    """
    path = os.environ.get(VARIABLE)
    if path:
        line = json.dumps({"promise": promise, "tried": tried, "survived": survived, "lost": lost, **more})
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())  # one write: lines of test processes side by side stay whole
        finally:
            os.close(descriptor)
