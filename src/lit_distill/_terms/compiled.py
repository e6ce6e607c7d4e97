"""A training step as one graph: the models, their taps and the terms, by ``torch.compile``."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._terms.evaluated import EvaluatedTerms
from lit_distill._terms.positions import takes_mask
from lit_distill._terms.trial import on_trial
from lit_distill.signals import ComputedTerms, SignalCapture, Taps

Scope: TypeAlias = Literal["step", "models"]
_MANY = 20
_IN_A_ROW = 4
_ARGUMENTS = ("backend", "mode", "options")
_ELSE = "compile=models compiles the models alone, and compile=none nothing"


@dataclass(frozen=True)
class Compilation:
    """What is compiled, and how.

    Attributes:
        scope: ``step``: models and terms as one graph; ``models``: the models alone, and the terms run eagerly.
        options: arguments of ``torch.compile``: ``backend``, ``mode`` and ``options``.
    """

    scope: Scope
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | None) -> Compilation | None:
        """Read the argument ``compile``; None for ``none``.

        Raises:
            ValueError: it is nothing of that kind.

        Example:
            >>> Compilation.of("step"), Compilation.of("none")
            (Compilation(scope='step', options={}), None)
            >>> Compilation.of({"scope": "models", "backend": "aot_eager"}).options
            {'backend': 'aot_eager'}
        """
        values: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"scope": given}
        scope = values.pop("scope", "step")
        if scope not in ("step", "models", "none", None) or not set(values) <= set(_ARGUMENTS):
            raise ValueError(
                "compile is step, models or none, or a mapping of scope and arguments of torch.compile "
                f"({', '.join(_ARGUMENTS)}), got {given!r}"
            )
        return None if scope in ("none", None) else cls(scope, values)

    def require_compiler(self) -> None:
        """Raise ValueError where torch's own backend lacks the compiler of C++ that it calls."""
        name = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
        if self.options.get("backend", "inductor") == "inductor" and shutil.which(name) is None:
            raise ValueError(
                f"compile={self.scope} needs a C++ compiler, and there is no {name} on PATH: install one, name it by "
                "the environment variable CXX, or set compile=none"
            )


class _Graph(NamedTuple):
    """What a graph gives: what was captured, the terms' values, and the positions that count."""

    tensors: dict[str, Tensor]
    values: dict[str, Tensor]
    counted: dict[str, int | Tensor]


_Compiled: TypeAlias = Callable[[Any, dict[str, Tensor]], _Graph]


class CompiledStep:
    """Runs the models of a step, and its terms, by graphs that are compiled once for each form of a batch.

    A form is the shapes, types and devices of a batch, and which terms are computed. It is compiled when two batches
    in a row have it; any other batch is run eagerly, as the first, which all checks see, and the last of an epoch if it
    is smaller.

    Args:
        terms: whose signals are wanted.
        models: the named models.
        run: runs one of them, given its name and the inputs.
        how: what is compiled.
    """

    def __init__(
        self,
        terms: EvaluatedTerms,
        models: Mapping[str, nn.Module],
        run: Callable[[str, Any], Any],
        how: Compilation,
    ) -> None:
        self.seconds = 0.0
        """That the compiler took so far."""
        self.graphs = 0
        """The number of graphs that were made."""
        self._terms, self._models, self._run, self._how = terms, models, run, how
        self._taps = Taps((ref, ref.module(models)) for ref in terms.references if not ref.is_data)
        self._compiled = dict[Any, _Compiled]()
        self._last = dict[Any, Any]()
        self._eager = self._in_a_row = 0

    def close(self) -> None:
        """Take the hooks off the models."""
        self._taps.remove()

    @contextmanager
    def capturing(self, signals: SignalCapture) -> Iterator[None]:
        """Within it, what models give goes to ``signals`` by the hooks that are there: no others are registered."""
        self._taps.capture = signals
        try:
            yield
        finally:
            self._taps.capture = None

    def graph(
        self, inputs: Any, signals: SignalCapture, names: Collection[str], computed: Mapping[str, bool] | None
    ) -> Callable[[float], None] | None:
        """What runs models and terms into ``signals`` at a fractional epoch; None where a batch is to be run eagerly.

        Args:
            inputs: what models take.
            signals: of the step, which hold what the batch gives, and what is not run here.
            names: the models to run.
            computed: the terms that are computed, and whether each teaches; None for the models alone.
        """
        of = (tuple(names), None if computed is None else tuple(computed.items()))
        form = _form((inputs, None if computed is None else signals.tensors))
        known, self._last[of] = form == self._last.get(of) or (of, form) in self._compiled, form
        if not known:
            self._eager += 1
            if self._eager == _MANY and not self._compiled:
                rank_zero_warn(
                    f"compile={self._how.scope}: nothing was compiled in {_MANY} steps, as no two batches in a row had "
                    "the same shapes and the same entries that are no tensors: pad them to one length"
                )
            return None
        if (of, form) not in self._compiled:
            self._compiled[of, form] = self._compile(*of)
        return partial(self._call, (of, form), inputs, signals, computed)

    def _call(
        self, key: Any, inputs: Any, signals: SignalCapture, computed: Mapping[str, bool] | None, epoch: float
    ) -> None:
        for name in computed or ():
            self._terms.set_epoch(name, epoch)
        counts = torch._dynamo.utils.counters["stats"]
        started, before = time.perf_counter(), counts["unique_graphs"]
        outer, self._taps.capture = self._taps.capture, None
        try:
            given = {} if computed is None else dict(sorted(signals.tensors.items()))  # a graph knows their order
            with torch._functorch.config.patch(donated_buffer=False):  # a balance goes through the graph several times
                tensors, values, counted = self._compiled[key](inputs, given)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ValueError(
                f"compile={self._how.scope} fails, as torch.compile cannot trace the step: {first_line(error)}; {_ELSE}"
            ) from error
        finally:
            self._taps.capture = outer
        made = counts["unique_graphs"] - before
        self._in_a_row = self._in_a_row + 1 if made else 0
        if made:
            self.seconds += time.perf_counter() - started
            self.graphs += made
        if self._in_a_row > _IN_A_ROW:
            raise ValueError(
                f"compile={self._how.scope} made a graph in each of {self._in_a_row} steps, as something that is no "
                "tensor changes from step to step in a model or a loss (TORCH_LOGS=recompiles says what): "
                f"{_ELSE}"
            )
        signals.receive(tensors, None if computed is None else ComputedTerms(values, counted))

    def _compile(self, names: tuple[str, ...], computed: tuple[tuple[str, bool], ...] | None) -> _Compiled:
        terms, models, run, taps = self._terms, self._models, self._run, self._taps

        def step(inputs: Any, given: dict[str, Tensor]) -> _Graph:
            signals = SignalCapture(models, (), clone=terms.cloned, answers=terms.answers)
            signals.receive(given)
            taps.capture = signals
            for name in names:
                run(name, inputs)
            taps.capture = None
            if computed is None:
                return _Graph(signals.tensors, {}, {})
            values: dict[str, Tensor] = {}
            for name, taught in computed:
                with nullcontext() if taught else torch.no_grad():
                    values[name] = terms.evaluate(name, signals)
            return _Graph({}, values, signals.counted)

        compiled: _Compiled = _compiled(step, self._how, whole=computed is not None)
        return compiled


def _compiled(function: Any, how: Compilation, *, whole: bool) -> Any:
    options = {"backend": "inductor", **how.options}
    if options["backend"] == "inductor" and "mode" not in options:  # dropout draws the numbers that it draws eagerly
        options["options"] = {"fallback_random": True, **(options.get("options") or {})}
    # A code object of its own: torch.compile counts the forms of one, for all modules of a process.
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    return torch.compile(own, fullgraph=whole, dynamic=False, **options)


def _form(value: Any) -> Any:
    """What a graph is made for, of a batch or a part of it."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device, value.requires_grad)
    if isinstance(value, Mapping):
        return tuple((key, _form(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_form, value))
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def require_traceable(terms: EvaluatedTerms, signals: SignalCapture) -> None:
    """Raise ValueError, naming the terms, where the terms of a step cannot be part of one graph.

    Args:
        terms: of the step.
        signals: of an example batch, with what comes with it.
    """
    with on_trial([terms]):
        found = {name: why for name in terms.terms if (why := _why_not(terms, name, signals)) is not None}
    if found:
        said = "; ".join(f"term {name!r} ({repr(terms.terms[name])[9:-1]}): {why}" for name, why in found.items())
        raise ValueError(f"compile=step makes one graph of the models and all losses, which cannot be: {said}; {_ELSE}")


def _why_not(terms: EvaluatedTerms, name: str, signals: SignalCapture) -> str | None:
    term = terms.terms[name]
    if terms.unlabelled and term.needs_labels:
        return "it is computed on the samples that have a label, whose number a graph cannot know (unlabelled)"
    if term.selects and not takes_mask(term.loss):
        return "its loss takes no mask, so that it is given the rows that count, whose number a graph cannot know"
    given = {text: tensor.detach() for text, tensor in signals.tensors.items()}

    def value(given: dict[str, Tensor]) -> Tensor:
        other = SignalCapture(signals.models, (), answers=terms.answers)
        other.receive(given)
        return terms.evaluate(name, other)

    try:
        _compiled(value, Compilation("step", {"backend": "eager"}), whole=True)(given)
    except torch._dynamo.exc.TorchDynamoException as error:
        return f"torch.compile cannot trace it: {first_line(error)}"
    return None


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
