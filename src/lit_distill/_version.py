"""This release's version, and those of what a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "lit_distill": __version__,
        "torch": metadata.version("torch"),
        "lightning": metadata.version("lightning"),
        "python": platform.python_version(),
    }
