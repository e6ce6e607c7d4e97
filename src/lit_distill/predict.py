"""`python -m lit_distill.predict run=<folder> input=<what>`: what is in these videos or images?"""

from __future__ import annotations

from lit_distill._command.arguments import OF_A_RUN
from lit_distill._command.command import Command

main = Command("predict", "lit_distill.inference.predict:main", OF_A_RUN)

if __name__ == "__main__":
    main()
