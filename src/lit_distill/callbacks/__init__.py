"""Lightning callbacks that watch a run."""

from lit_distill.callbacks.progress import Progress
from lit_distill.callbacks.quarantine import Quarantine

__all__ = ["Progress", "Quarantine"]
