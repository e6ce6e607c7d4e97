"""`python -m lit_distill.pack data=<name> output=<folder>`: a data set's videos as tar shards, as they are."""

from __future__ import annotations

from lit_distill._command.command import Command

main = Command("pack", "lit_distill.data.pack:run")

if __name__ == "__main__":
    main()
