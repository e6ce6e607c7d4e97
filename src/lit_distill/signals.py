"""Signal references: strings that name a tensor of the current step, and the taps that capture it."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_distill._inputs import version_of
from lit_distill.losses.base import Signal, submodule

GROUND_TRUTH = "GroundTruth"
SAMPLE_INDEX = "SampleIndex"
RESERVED = (GROUND_TRUTH, SAMPLE_INDEX)

References: TypeAlias = str | tuple[str, ...]
"""One reference, or several for losses over several layers."""


@dataclass(frozen=True)
class Reference:
    """One parsed signal reference.

    ``Student`` is the model's output, ``Student.stages.2`` the output of that submodule, ``Student.stages.2.-1`` that
    of the last block in it, ``Student.fc:input`` its input, ``GroundTruth`` the target of the batch and ``SampleIndex``
    the positions of its samples in the data set.

    Example:
        >>> Reference.parse("Student.fc:input")
        Reference(text='Student.fc:input', model='Student', path='fc', side='input')
        >>> Reference.parse("GroundTruth").is_data
        True
    """

    text: str
    model: str
    path: str = ""
    side: Literal["input", "output"] = "output"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference.

        Raises:
            ValueError: the text is not ``Model``, ``Model.sub.module`` or ``Model.sub.module:input``.
        """
        if not isinstance(text, str):
            raise ValueError(f"a signal reference is a string such as 'Student.stages.2', got {text!r}")
        name, colon, side = text.partition(":")
        model, _, path = name.partition(".")
        if not model or name.endswith(".") or ".." in name or (colon and side not in ("input", "output")):
            raise ValueError(
                f"{text!r} is no signal reference: expected 'Model', 'Model.sub.module' or 'Model.sub.module:input'"
            )
        if model in RESERVED and (path or colon):
            raise ValueError(f"{text!r}: {model} comes with the batch and has no submodules")
        return cls(text, model, path, "input" if side == "input" else "output")

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


class SignalCapture:
    """Captures the referenced tensors of one step while the models run, and removes its hooks on exit.

    Args:
        models: the named models.
        references: what to capture; data references are skipped, they are given by :meth:`put`.
        clone: texts of references to clone at the tap, because a later in-place operation would change them.

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
    ) -> None:
        self.models = models
        self._taps = {ref.text: (ref, ref.module(models)) for ref in references if not ref.is_data}
        self._clone = frozenset(clone)
        self._handles: list[RemovableHandle] = []
        self._tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._fired: dict[str, int] = {}
        self.models = models
        self.labelled: dict[Any, Tensor | None] = {}
        """Positions of the samples that have a label, None where all have, by how it is decided."""

    def __enter__(self) -> SignalCapture:
        for ref, module in self._taps.values():
            if ref.side == "output":
                self._handles.append(module.register_forward_hook(self._output_hook(ref.text)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._input_hook(ref.text), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _output_hook(self, text: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._keep(text, output)

        return hook

    def _input_hook(self, text: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = [*args, *kwargs.values()]
            self._keep(text, values[0] if values else None)

        return hook

    def _keep(self, text: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{text!r} gives a {type(value).__name__}, not a tensor: tap a submodule that gives one tensor, "
                "or wrap the model in a module that returns its logits"
            )
        self._fired[text] = self._fired.get(text, 0) + 1
        if text in self._clone or value.is_inference():  # which has no count of its changes to look at later
            value = value.clone()
        self._tensors[text] = value
        self._versions[text] = version_of(value)

    def put(self, name: str, value: Tensor) -> None:
        """Give a signal that comes with the batch, such as ``GroundTruth``."""
        self._fired[name] = 0  # what is given again takes the place of what was given
        self._keep(name, value)

    def replace(self, text: str, value: Tensor) -> None:
        """Put another tensor where a reference was captured, if it is one: an output averaged over views."""
        if text in self._taps:
            self._fired[text] = 0
            self._keep(text, value)

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
            self._fired.pop(text, None)
            self._tensors.pop(text, None)

    def captured(self) -> dict[str, Tensor]:
        """What was captured or put so far, by the text of its reference, without its graph."""
        return {text: tensor.detach() for text, tensor in self._tensors.items()}

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
            if text in RESERVED:
                raise ValueError(
                    f"{text!r} is not in this batch: batches are (inputs, target) or (inputs, target, index)"
                )
            raise ValueError(
                f"{text!r} never fired: its module was not called in this step's forward "
                "(a model used through another method than forward, or a branch that was not taken)"
            )
        if fired > 1:
            raise ValueError(
                f"{text!r} fired {fired} times in one step, so which tensor is meant is not clear: "
                "its module is shared or the model ran twice; tap a module that is called once"
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


def _closest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return f"closest are {close}" if close else f"there are {names[:12]}{' …' if len(names) > 12 else ''}"
