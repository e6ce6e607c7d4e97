"""Knowledge distillation as a PyTorch Lightning plugin: named models and weighted losses between their signals."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lit_distill._version import __version__

if TYPE_CHECKING:
    from lit_distill.checkpoints import SafeCheckpointIO
    from lit_distill.composer import ComposedLoss, LossComposer
    from lit_distill.data_free import DataFreeModule
    from lit_distill.mixin import DistillMixin
    from lit_distill.module import DistillModule
    from lit_distill.one_call import distill
    from lit_distill.runs.opened import load_student
    from lit_distill.signals import Reference, SignalCapture
    from lit_distill.terms import LossTerm

__all__ = [
    "ComposedLoss",
    "DataFreeModule",
    "DistillMixin",
    "DistillModule",
    "LossComposer",
    "LossTerm",
    "Reference",
    "SafeCheckpointIO",
    "SignalCapture",
    "__version__",
    "distill",
    "load_student",
]

_HOMES = {
    "ComposedLoss": "composer",
    "DataFreeModule": "data_free",
    "DistillMixin": "mixin",
    "DistillModule": "module",
    "LossComposer": "composer",
    "LossTerm": "terms",
    "Reference": "signals",
    "SafeCheckpointIO": "checkpoints",
    "SignalCapture": "signals",
    "distill": "one_call",
    "load_student": "runs.opened",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562), so that the losses load torch alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
