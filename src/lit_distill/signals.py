"""Signal references: strings that name a tensor of the current step, and the taps that capture it."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_distill._inputs import version_of
from lit_distill.losses.base import Signal, submodule
from lit_distill.structures import WHOLE, Answer, MissingPart, is_number, part_of, tensor_paths

GROUND_TRUTH = "GroundTruth"
SAMPLE_INDEX = "SampleIndex"
BATCH = "Batch"
RESERVED = (GROUND_TRUTH, SAMPLE_INDEX, BATCH)

References: TypeAlias = str | tuple[str, ...]
"""One reference, or several for losses over several layers."""


@dataclass(frozen=True)
class Reference:
    """One parsed signal reference: ``Name[.module.path][@call][:part.part]``.

    ``Student`` is the model's output (its answer, where it gives a structure), ``Student.stages.2`` the output of that
    submodule, ``Student.stages.2.-1`` that of the last block in it, ``Student.fc:input`` its first input,
    ``GroundTruth`` the target of the batch, ``SampleIndex`` the positions of its samples in the data set, and
    ``Batch.attention_mask`` a further entry of the batch, by its key or number.

    Behind the colon stand parts of a structure, each an attribute, a key or an index: ``Student:hidden_states.-1``,
    ``GroundTruth:depth``. ``:input.1`` and ``:input.mask`` are arguments of a module by position and name, and
    ``:output.0`` is the first item of its output, or its only one.

    A module that a forward calls several times, as a detector calls its head on each level of a pyramid, has a number
    for each of its calls, from 0: ``Student.head.conv@2``.

    Example:
        >>> Reference.parse("Student.fc:input")
        Reference(text='Student.fc:input', model='Student', path='fc', side='input', part=(), call=None)
        >>> Reference.parse("Student:hidden_states.-1").part
        ('hidden_states', '-1')
        >>> Reference.parse("GroundTruth").is_data
        True
    """

    text: str
    model: str
    path: str = ""
    side: Literal["input", "output"] = "output"
    part: tuple[str, ...] = ()
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference.

        Raises:
            ValueError: the text is not of the form ``Model[.sub.module][@call][:part.part]``.
        """
        if not isinstance(text, str):
            raise ValueError(f"a signal reference is a string such as 'Student.stages.2', got {text!r}")
        called, colon, behind = text.partition(":")
        name, at, number = called.partition("@")
        model, _, path = name.partition(".")
        part = tuple(behind.split(".")) if colon else ()
        if not all(name.split(".")) or not all(part) or ":" in behind:
            raise ValueError(
                f"{text!r} is no signal reference: expected 'Model', 'Model.sub.module', 'Model.sub.module:input' or "
                "'Model:part'"
            )
        if at and (not path or model in RESERVED or not (number.isascii() and number.isdigit())):
            raise ValueError(f"{text!r}: behind @ stands which call of a submodule is meant, from 0: 'Model.head@2'")
        call = int(number) if at else None
        if model == BATCH:
            if not path:
                raise ValueError(f"{text!r} names no entry of a batch: expected 'Batch.<key>', or 'Batch.2' by number")
            return cls(text, model, part=(*path.split("."), *part))
        if model in RESERVED and path:
            raise ValueError(f"{text!r}: {model} comes with the batch and has no submodules")
        if part[:1] == ("input",) and model not in RESERVED:
            return cls(text, model, path, "input", part[1:], call)
        return cls(text, model, path, "output", part[part[:1] == ("output",) :], call)

    @property
    def is_data(self) -> bool:
        """Whether the signal comes with the batch and not from a model."""
        return self.model in RESERVED

    def module(self, models: Mapping[str, nn.Module]) -> nn.Module:
        """The module that this reference taps.

        Raises:
            ValueError: no such model or submodule; the message lists the closest names.
        """
        if self.model not in models:
            raise ValueError(f"{self.text!r} names no model: {_closest(self.model, [*models, *RESERVED])}")
        if not self.path:
            return models[self.model]
        try:
            return submodule(models[self.model], self.path)
        except AttributeError:
            names = [name for name, _ in models[self.model].named_modules() if name]
            message = f"{self.text!r} names no submodule of {self.model}: {_closest(self.path, names)}"
            raise ValueError(message) from None


def parse_references(references: str | Iterable[str]) -> tuple[Reference, ...]:
    """Parse one reference or several, always to a tuple."""
    texts = (references,) if isinstance(references, str) else tuple(references)
    if not texts:
        raise ValueError("an empty list of signal references names nothing")
    return tuple(Reference.parse(text) for text in texts)


_IN_EVAL = " (the model is in eval mode; of what it gives in training alone, validation needs no term: give val_losses)"


class Taps:
    """Hooks on the modules that references name, which hand what passes there to the capture that is open.

    :class:`SignalCapture` registers them for a step. ``torch.compile`` traces those that stay from step to step.

    Args:
        tapped: references, none of data, and the module of each.
    """

    def __init__(self, tapped: Iterable[tuple[Reference, nn.Module]]) -> None:
        self.capture: SignalCapture | None = None
        """Which takes what passes; None where nothing is wanted."""
        self._handles: list[RemovableHandle] = [self._register(ref, module) for ref, module in tapped]

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _register(self, ref: Reference, tapped: nn.Module) -> RemovableHandle:
        def give_output(module: nn.Module, args: Any, output: Any) -> None:
            if self.capture is not None and module is tapped:  # a copy of a module has its hooks, too
                self.capture.take_output(ref, module, output)

        def give_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.capture is not None and module is tapped:
                self.capture.take_input(ref, module, args, kwargs)

        if ref.side == "output":
            return tapped.register_forward_hook(give_output)
        return tapped.register_forward_pre_hook(give_input, with_kwargs=True)


class ComputedTerms(NamedTuple):
    """Values of terms before their weights, and how many positions count in those that leave some out."""

    values: Mapping[str, Tensor]
    counted: Mapping[str, int | Tensor]


class SignalCapture:
    """Captures the referenced tensors of one step while the models run, and removes its hooks on exit.

    Args:
        models: the named models.
        references: what to capture; data references are skipped, they are given by :meth:`put`.
        clone: texts of references to clone at the tap, because a later in-place operation would change them.
        answers: by model, where its answer stands in what it gives: see :class:`lit_distill.structures.Answer`.

    Raises:
        ValueError: a reference names no model or submodule.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with SignalCapture({"Student": net}, parse_references(["Student", "Student.0"])) as signals:
        ...     _ = net(torch.zeros(4, 2))
        >>> signals["Student.0"].shape, signals["Student"].shape
        (torch.Size([4, 3]), torch.Size([4, 1]))
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        references: Iterable[Reference],
        *,
        clone: Collection[str] = (),
        answers: Mapping[str, Answer] | None = None,
    ) -> None:
        self.models = models
        self._answers = dict(answers or {})
        self._taps = {ref.text: (ref, ref.module(models)) for ref in references if not ref.is_data}
        self._clone = frozenset(clone)
        self._hooks: Taps | None = None
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._fired: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self.labelled: dict[Any, Tensor | None] = {}
        """Positions of the samples that have a label, None where all have, by how it is decided."""
        self.counted: dict[str, int | Tensor] = {}
        """The number of positions that count, of each term that leaves some out."""
        self.computed: ComputedTerms | None = None
        """The terms, where a compiled step has computed them with the models."""

    def __enter__(self) -> SignalCapture:
        self._hooks = Taps(self._taps.values())
        self._hooks.capture = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

    def take_output(self, ref: Reference, module: nn.Module, output: Any) -> None:
        """Keep what a reference names of an output of its module."""
        if not self._is_meant(ref):
            return
        answer = self._answers.get(ref.model, WHOLE) if self.is_answer(ref) else None
        itself = isinstance(output, Tensor) and (answer is not None or (bool(ref.path) and ref.part == ("0",)))
        if ref.part and not itself:
            try:
                output = part_of(output, ref.part, ref.text)
            except MissingPart as error:
                raise MissingPart(f"{error}{'' if module.training else _IN_EVAL}") from None
        if answer is not None:
            output = answer.of(output, text=ref.text)
        self._keep(ref.text, output)

    def take_input(self, ref: Reference, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a reference names of the arguments of its module."""
        if not self._is_meant(ref):
            return
        values, part = [*args, *kwargs.values()], ref.part
        value = values[0] if values else None
        if part:
            named = not is_number(part[0])
            if named and part[0] not in kwargs:
                kwargs = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            value = part_of(kwargs if named else values, part, ref.text)
        self._keep(ref.text, value)

    def _is_meant(self, ref: Reference) -> bool:
        """Count a call of a reference's module; whether it is the one that the reference means."""
        number = self._calls.get(ref.text, 0)
        self._calls[ref.text] = number + 1
        return ref.call is None or ref.call == number

    def _keep(self, text: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(f"{text!r} gives a {type(value).__name__}, not a tensor: {_advice(text, value)}")
        self._fired[text] = self._fired.get(text, 0) + 1
        if text in self._clone or (not torch.compiler.is_compiling() and value.is_inference()):
            value = value.clone()  # of inference mode, where there is no count of changes to look at later
        self._tensors[text] = value
        self._versions[text] = version_of(value)

    def put(self, name: str, value: Tensor) -> None:
        """Give a signal that comes with the batch, such as ``GroundTruth``."""
        self._fired[name] = 0  # what is given again takes the place of what was given
        self._keep(name, value)

    def put_batch(self, target: Any, index: Tensor | None, entries: Any, references: Iterable[Reference]) -> None:
        """Give the signals that come with the batch: target and index, and what references name of it.

        Raises:
            ValueError: a reference names what the batch does not have.
        """
        for ref in references:
            if ref.model == BATCH:
                if entries is None:
                    raise ValueError(f"{ref.text!r}: the composer was given no batch: composer(…, batch=<the batch>)")
                try:
                    self.put(ref.text, part_of(entries, ref.part, ref.text))
                except MissingPart as error:
                    raise MissingPart(f"{error} (if batches of training alone have it, give val_losses)") from None
            elif ref.is_data and ref.part:
                self.put(ref.text, part_of(target if ref.model == GROUND_TRUTH else index, ref.part, ref.text))
            elif ref.model == GROUND_TRUTH and target is not None:
                self.put(GROUND_TRUTH, target)
        if isinstance(target, Tensor):
            self.put(GROUND_TRUTH, target)
        if index is not None:
            self.put(SAMPLE_INDEX, index)

    def replace(self, text: str, value: Tensor) -> None:
        """Put another tensor where a reference was captured, if it is one: an output averaged over views.

        The name of a model stands for its answer, in whatever way references name it.
        """
        for tap, (ref, _) in self._taps.items():
            if tap == text or (ref.model == text and self.is_answer(ref)):
                self._fired[tap] = 0
                self._keep(tap, value)

    def is_answer(self, ref: Reference) -> bool:
        """Whether a reference is one to the answer of a model, however it names it."""
        if ref.is_data or ref.path:
            return False
        return ref.side == "output" and ref.part in ((), self._answers.get(ref.model, WHOLE).name)

    @property
    def cloned(self) -> frozenset[str]:
        """Texts of the references that are cloned at their tap."""
        return self._clone

    def texts_of(self, model: str) -> tuple[str, ...]:
        """The references to a model that are captured."""
        return tuple(text for text, (ref, _) in self._taps.items() if ref.model == model)

    def forget(self, model: str) -> None:
        """Take the captures of a model for not made."""
        for text in self.texts_of(model):
            for kept in (self._fired, self._calls, self._tensors):
                kept.pop(text, None)

    def captured(self) -> dict[str, Tensor]:
        """What was captured or put so far, by the text of its reference, without its graph."""
        return {text: tensor.detach() for text, tensor in self._tensors.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The same with its graph."""
        return dict(self._tensors)

    def receive(self, tensors: Mapping[str, Tensor], computed: ComputedTerms | None = None) -> None:
        """Take what a compiled step captured, and the values of the terms that it computed."""
        for text, tensor in tensors.items():
            self.put(text, tensor)
        self.computed = computed

    def detached(self) -> SignalCapture:
        """The same signals without their graphs."""
        other = copy.copy(self)
        other._tensors = self.captured()
        other._versions, other._fired = dict(self._versions), dict(self._fired)
        return other

    def changed_in_place(self) -> set[str]:
        """Texts of the references whose tensor an in-place operation changed after the capture."""
        return {text for text, tensor in self._tensors.items() if version_of(tensor) != self._versions[text]}

    def __contains__(self, text: str) -> bool:
        """Whether a signal was captured or put."""
        return text in self._tensors

    def __getitem__(self, text: str) -> Tensor:
        """The captured tensor.

        Raises:
            ValueError: it was never captured, captured more than once, or changed in place since.
        """
        fired = self._fired.get(text, 0)
        if fired == 0:
            if text in (GROUND_TRUTH, SAMPLE_INDEX):
                raise ValueError(
                    f"{text!r} is not in this batch: batches are (inputs, target) or (inputs, target, index)"
                )
            raise ValueError(
                f"{text!r} never fired: its module was {_times(self._calls.get(text, 0))} in this step's forward "
                "(a model used through another method than forward, or a branch that was not taken)"
            )
        if fired > 1:
            raise ValueError(
                f"{text!r} fired {fired} times in one step, so which tensor is meant is not clear: "
                "its module is shared or the model ran twice; tap a module that is called once, or say which call, "
                f"from {_of_call(text, 0)!r} to {_of_call(text, fired - 1)!r}"
            )
        tensor = self._tensors[text]
        if version_of(tensor) != self._versions[text]:
            raise ValueError(
                f"{text!r} was changed in place after its capture (as nn.ReLU(inplace=True) does), so its values are "
                "no longer the module's: DistillModule finds such taps by itself; in your own loop call "
                "composer.build(models, inputs, target) once before training, which does the same"
            )
        return tensor

    def resolve(self, references: tuple[Reference, ...], *, as_list: bool) -> Signal:
        """The tensors of several references as a list, or the tensor of a single one."""
        tensors = [self[ref.text] for ref in references]
        return tensors if as_list else tensors[0]


class SignalCache(Protocol):
    """Stands before frozen models, and may know what they give."""

    def run(
        self, name: str, inputs: Any, signals: SignalCapture, compute: Callable[[Any], Any], *, output: bool
    ) -> Any:
        """Put the signals of a model for these inputs into ``signals``, read back or computed.

        Args:
            name: of the model.
            inputs: what it would be given.
            signals: the capture of this step.
            compute: runs the model.
            output: whether what it returns is wanted too.
        """


def _times(calls: int) -> str:
    return "not called" if not calls else "called once" if calls == 1 else f"called {calls} times"


def _of_call(text: str, call: int) -> str:
    """A reference to one of the calls of its module."""
    name, colon, behind = text.partition(":")
    return f"{name}@{call}{colon}{behind}"


def _advice(text: str, value: Any) -> str:
    """What to write in place of a reference to a structure."""
    paths = [path for path, _ in islice(tensor_paths(value), 6)]
    if not paths:
        return "tap a submodule that gives one tensor, or wrap the model in a module that returns its logits"
    base = text if ":" in text else f"{text}:" if "." not in text else f"{text}:output"
    parts = [f"{base}{'' if base.endswith(':') else '.'}{path}" for path in paths]
    answer = "" if ":" in text or "." in text else f", or say which is its answer, as answer={paths[0]!r}"
    return f"name a part of it, such as {', '.join(map(repr, parts))}{answer}"


def _closest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return f"closest are {close}" if close else f"there are {names[:12]}{' …' if len(names) > 12 else ''}"
