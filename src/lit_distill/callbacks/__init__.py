"""Lightning callbacks that watch a run."""

from lit_distill.callbacks.progress import Progress

__all__ = ["Progress"]
