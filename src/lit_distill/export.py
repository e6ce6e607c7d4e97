"""`python -m lit_distill.export run=<folder>`: the student as a file that others run, checked before it is written."""

from __future__ import annotations

from lit_distill._command.arguments import OF_A_RUN
from lit_distill._command.command import Command

main = Command("export", "lit_distill.inference.export:run", OF_A_RUN)

if __name__ == "__main__":
    main()
