"""`python -m lit_distill.doctor experiment=<name>`: what a training would do, before it is paid for."""

from __future__ import annotations

from lit_distill._command.arguments import Arguments
from lit_distill._command.command import Command

main = Command("doctor", "lit_distill.training.doctor:main", Arguments(replaced={"--json": "as_json=true"}))

if __name__ == "__main__":
    main()
