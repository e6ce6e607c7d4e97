"""`python -m lit_distill.report run=<folder>`: what runs learned, and where they differ, as one page."""

from __future__ import annotations

from lit_distill._command.arguments import Arguments
from lit_distill._command.command import Command

main = Command("report", "lit_distill.reporting.report:run", Arguments(allow=True, folders=("runs", "run")))

if __name__ == "__main__":
    main()
