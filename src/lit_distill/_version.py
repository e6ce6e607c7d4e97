"""This release's version, and those of what a result depends on."""

from __future__ import annotations

import platform

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import lightning  # here, so that --version loads neither
    import torch

    return {
        "lit_distill": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }
