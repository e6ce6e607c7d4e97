"""The graphs of a module: what ``compile`` asks for, and a compiled step for each composer that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import nn

from lit_distill._terms.compiled import Compilation, CompiledStep, require_traceable
from lit_distill.composer import LossComposer
from lit_distill.signals import SignalCapture


class StepCompiler:
    """The compiled steps of a module; without ``compile`` there are none, and all is run eagerly.

    Args:
        compile: as for :class:`lit_distill.DistillModule`.

    Raises:
        ValueError: it is nothing of that kind.
    """

    def __init__(self, compile: str | Mapping[str, Any] | None) -> None:
        self._how = Compilation.of(compile)
        self._steps: dict[LossComposer, CompiledStep] = {}
        self._traceable: set[LossComposer] = set()

    def __bool__(self) -> bool:
        return self._how is not None

    @property
    def takes_terms(self) -> bool:
        """Whether the terms are part of a graph, beside the models."""
        return self._how is not None and self._how.scope == "step"

    @property
    def seconds(self) -> float:
        """What compiling took so far."""
        return sum(step.seconds for step in self._steps.values())

    @property
    def graphs(self) -> int:
        """The number of graphs that were compiled so far."""
        return sum(step.graphs for step in self._steps.values())

    def require_compiler(self) -> None:
        """Raise ValueError where there is none for what is asked."""
        if self._how is not None:
            self._how.require_compiler()

    def require_traceable(self, composer: LossComposer, signals: SignalCapture) -> None:
        """Raise ValueError where terms are to be part of a graph and cannot be; each composer is tried once."""
        if self.takes_terms and composer not in self._traceable:
            require_traceable(composer, signals)
            self._traceable.add(composer)

    def step(
        self, composer: LossComposer, models: Mapping[str, nn.Module], run: Callable[[str, Any], Any]
    ) -> CompiledStep | None:
        """That of a composer, made when it is asked for first; None where nothing is compiled."""
        if self._how is None:
            return None
        if composer not in self._steps:
            self._steps[composer] = CompiledStep(composer, models, run, self._how)
        return self._steps[composer]

    def graph(
        self,
        composer: LossComposer,
        inputs: Any,
        signals: SignalCapture,
        names: Collection[str],
        *,
        epoch: float,
        watched: Collection[str] = (),
        terms: bool = True,
    ) -> Callable[[], None] | None:
        """What runs the models of these names, and the terms where they are part of it; None for an eager step."""
        if composer not in self._steps:
            return None
        computed = composer.computed_at(epoch, watched) if terms and self.takes_terms else None
        graph = self._steps[composer].graph(inputs, signals, names, computed)
        return None if graph is None else partial(graph, epoch)

    def close(self) -> None:
        """Take the hooks of all steps off the models."""
        for step in self._steps.values():
            step.close()
        self._steps.clear()
