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


# Promises whose tests stand beside what they test and not in this folder: each test of these files counts as one.
ELSEWHERE = {
    "tests/ddp/test_every_loss.py": "two ranks of B equal one of 2 B: every loss",
    "tests/ddp/test_relational_gather.py": "two ranks of B equal one of 2 B: relations over the global batch",
    "tests/ddp/test_response_gather.py": "two ranks of B equal one of 2 B: unequal batches",
    "tests/ddp/test_crd_banks.py": "two ranks of B equal one of 2 B: CRD and its banks",
    "tests/ddp/test_module_ddp.py": "two ranks of B equal one of 2 B: DistillModule",
    "tests/ddp/test_mixin_ddp.py": "two ranks of B equal one of 2 B: DistillMixin",
    "tests/ddp/test_balance_ddp.py": "two ranks of B equal one of 2 B: balanced weights",
    "tests/curves/test_curves.py": "loss curves of 30 and 100 steps are the committed ones",
    "tests/data/catalogue/test_quarantine.py": "bad videos are left out, counted and listed, the same on all ranks",
    "tests/ddp/test_torchrun.py": "launchers: of Lightning, and torchrun on one machine and as on two",
    "tests/ddp/test_stages_ddp.py": "launchers: stages on two processes, after a signal too",
    "tests/command/test_launch.py": "launchers: one run folder for all processes of a job",
}


def report_test(file: str, passed: bool) -> None:
    """Count one test of :data:`ELSEWHERE`; nothing for those of other files."""
    if file in ELSEWHERE:
        report(ELSEWHERE[file], tried=1, survived=int(passed), lost=int(not passed))
