"""`python -m lit_distill.train experiment=<name>`: compose the config, train, and leave a run folder."""

from __future__ import annotations

from lit_distill._command.command import Command

main = Command("train", "lit_distill.training.train:main")

if __name__ == "__main__":
    main()
