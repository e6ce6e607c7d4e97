"""Knowledge distillation as a PyTorch Lightning plugin: named models and weighted losses between their signals."""

from lit_distill.checkpoints import SafeCheckpointIO
from lit_distill.composer import ComposedLoss, LossComposer
from lit_distill.mixin import DistillMixin
from lit_distill.module import DistillModule
from lit_distill.runs import load_student
from lit_distill.signals import Reference, SignalCapture
from lit_distill.terms import LossTerm

__version__ = "0.1.0"

__all__ = [
    "ComposedLoss",
    "DistillMixin",
    "DistillModule",
    "LossComposer",
    "LossTerm",
    "Reference",
    "SafeCheckpointIO",
    "SignalCapture",
    "__version__",
    "load_student",
]
