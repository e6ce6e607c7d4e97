"""Your package: a network and a loss, plain modules that know nothing of lit_distill."""

from .losses import CosineLoss
from .networks import FrameNet

__all__ = ["CosineLoss", "FrameNet"]
