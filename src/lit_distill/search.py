"""`python -m lit_distill.search experiment=<name> sweep=<name>`: the best settings by Optuna, pruned by validation."""

from __future__ import annotations

from lit_distill._command.arguments import Arguments
from lit_distill._command.command import Command

main = Command(
    "search",
    "lit_distill.searching.search:main",
    Arguments(
        forwarded="train",
        open_keys=("space",),
        refused={r"(-m|--multirun)$": "search is a sweep itself: give sweep=<name> or space={…}"},
    ),
)

if __name__ == "__main__":
    main()
