"""`python -m lit_distill <command> …` is `lit-distill <command> …`."""

import sys

from lit_distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
