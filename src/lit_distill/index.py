"""`python -m lit_distill.index data=…`: look at every video that a data set's lists name, once, before a run does."""

from __future__ import annotations

from lit_distill._command.command import Command

main = Command("index", "lit_distill.data.index:main")

if __name__ == "__main__":
    main()
