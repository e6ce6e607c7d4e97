"""`python -m lit_distill.test run=<folder>`: how good is what a run trained, on data that it has not seen."""

from __future__ import annotations

from lit_distill._command.arguments import OF_A_RUN
from lit_distill._command.command import Command

main = Command("test", "lit_distill.inference.test:run", OF_A_RUN)

if __name__ == "__main__":
    main()
