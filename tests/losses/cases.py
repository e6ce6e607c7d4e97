"""Every loss, found by its file, and what the tests that run all of them need to know of each.

``src/lit_distill/losses/<kind>/<stem>.py`` is tested by ``tests/losses/test_<stem>.py``, which lists its ``CASES``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

import lit_distill.losses
from lit_distill.losses import SizedLoss

KINDS = ("response", "feature", "relation")
STEMS = {
    path.stem: kind
    for kind in KINDS
    for path in sorted((Path(lit_distill.losses.__file__).parent / kind).glob("[!_]*.py"))
}
"""The kind of each loss by its stem."""

DATASET_SIZE = 16

Signals: TypeAlias = Literal[
    "rows", "map", "maps", "equal map", "equal maps", "last map", "own stages", "peers", "heads", "samples", "labels",
    "mixed labels", "feature and labels", "hidden and prediction", "equal logits and map", "own logits and map",
]  # fmt: skip
"""What a loss compares.

``rows`` are logits or embeddings (B, C) of student and teacher; ``map`` and ``maps`` one feature map or three levels,
``equal`` ones of the same channels; ``own stages`` the maps of one network against its last map and logits; ``peers``
the same three rows twice; ``samples`` rows with a target of sample indices (below ``DATASET_SIZE``) and classes.
``labels`` and ``mixed labels`` are rows of the student against the target itself, ``feature and labels`` these rows and
a feature map of the student, ``equal logits and map`` these two of both networks, ``own logits and map`` of
the student alone; ``heads`` are two rows of the student. ``last map`` is in front of each ``fc``.
``hidden and prediction`` are a map of the student, and one of the same channels and a later one of the teacher.
"""


@dataclass(frozen=True)
class Case:
    """A loss as ``tests/ddp/test_every_loss.py`` runs it, on two processes and on one.

    Attributes:
        make: gives a new loss whose value on two processes is that of the whole batch on one.
        signals: what it compares.
        note: what sets this case apart from the loss's other cases.
    """

    make: Callable[[], nn.Module]
    signals: Signals = "rows"
    note: str = ""

    @property
    def id(self) -> str:
        return f"{type(self.make()).__name__} {self.note}".rstrip()

    @property
    def has_target(self) -> bool:
        return "target" in inspect.signature(self.make().forward).parameters


def module_of(stem: str) -> str:
    """The dotted name of the file of a loss."""
    return f"lit_distill.losses.{STEMS[stem]}.{stem}"


def cases_of(stem: str) -> list[Case]:
    """The ``CASES`` of a loss's test file; none where it lists none."""
    cases: list[Case] = getattr(importlib.import_module(f"losses.test_{stem}"), "CASES", [])
    return cases


def row_losses() -> list[type[nn.Module]]:
    """The response losses that compare logits (B, C) with logits or labels, and have no parameters."""
    of_rows = {type(c.make()) for s, k in STEMS.items() if k == "response" for c in cases_of(s) if c.signals in _ROWS}
    return [loss for loss in classes_of("response") if loss in of_rows and not issubclass(loss, SizedLoss)]


_ROWS = ("rows", "labels")


def classes_of(kind: str) -> list[type[nn.Module]]:
    """The exported loss classes of a kind."""
    package = f"{lit_distill.losses.__name__}.{kind}."
    exported = vars(lit_distill.losses).values()
    return [
        c for c in exported if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__.startswith(package)
    ]
