"""`python -m lit_distill.select run=<teacher run> k=<n>`: which of a pool without labels a student may learn from."""

from __future__ import annotations

from lit_distill._command.arguments import OF_A_RUN
from lit_distill._command.command import Command

main = Command("select", "lit_distill.inference.select:main", OF_A_RUN)

if __name__ == "__main__":
    main()
