"""Parts of structures: what a reference names in a tuple, dict or dataclass, and where a model's answer stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor


def is_number(name: str) -> bool:
    """Whether the name of a part is an index; no regular expression, which ``torch.compile`` could not trace.

    Example:
        >>> is_number("-1"), is_number("logits"), is_number("")
        (True, False, False)
    """
    return name.removeprefix("-").isdecimal()


class MissingPart(ValueError):
    """A structure has no part of that name."""


def part_of(value: Any, part: Sequence[str], text: str) -> Any:
    """A part of a structure of tuples, lists, mappings, dataclasses and other objects.

    Args:
        value: what a module gives or takes, or a batch has.
        part: attributes, keys and indices, one within the other.
        text: the reference, for messages.

    Raises:
        MissingPart: there is none.

    Example:
        >>> part_of({"layers": (1, 2)}, ["layers", "-1"], "Student:layers.-1")
        2
        >>> part_of((1, 2), ["2"], "Student:2")
        Traceback (most recent call last):
        lit_distill.structures.MissingPart: 'Student:2': a tuple of 2 has no part '2'
    """
    for name in part:
        found = _item(value, name)
        if found is None:
            known = [path for path, _ in islice(tensor_paths(value), 12)]
            hint = f"; its tensors are {known}" if known and not isinstance(value, Tensor) else ""
            if hasattr(value, name) and is_dataclass(value):
                hint = f": it is None (a Hugging Face model gives it by config.output_{name}=True){hint}"
            raise MissingPart(f"{text!r}: {_described(value)} has no part {name!r}{hint}")
        value = found
    return value


def _item(value: Any, name: str) -> Any:
    """The attribute, key or index of a value; None where it has none, or None there."""
    number = int(name) if is_number(name) else None
    if isinstance(value, Mapping):
        found = value.get(name, value.get(number))
        if found is None and number is not None and hasattr(value, "to_tuple"):  # a ModelOutput of Hugging Face
            return _item(value.to_tuple(), name)
        return found
    if isinstance(value, (tuple, list)):
        if number is not None:
            return value[number] if -len(value) <= number < len(value) else None
        return getattr(value, name) if name in getattr(value, "_fields", ()) else None
    if isinstance(value, Tensor) or name.startswith("_"):
        return None
    found = getattr(value, name, None)
    return None if callable(found) and not isinstance(found, Tensor) else found


def tensor_paths(value: Any, start: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a structure, and the part that names it."""
    if isinstance(value, Tensor):
        yield start, value
        return
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (tuple, list)):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    else:  # of other objects the tensors alone, whose attributes may lead anywhere
        items = [
            (k, v) for k, v in getattr(value, "__dict__", {}).items() if is_dataclass(value) or isinstance(v, Tensor)
        ]
    for name, item in items:
        yield from tensor_paths(item, f"{start}.{name}" if start else str(name))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    size = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    keys = f" of {', '.join(map(str, islice(value, 12)))}" if isinstance(value, Mapping) else ""
    return f"a {type(value).__name__}{size}{keys}"


LOGITS = ("logits",)
"""What a model's answer is named, where nothing else is said."""


@dataclass(frozen=True)
class Answer:
    """Where a model's answer, its logits, stands in what it gives.

    Attributes:
        part: of a structure; None for the one tensor that is named logits, and the whole where there is none, or
            several.
        classes: of its classes those that the data has, in the data's order; None for all.

    Example:
        >>> import torch
        >>> Answer(classes=(2, 0)).of({"logits": torch.tensor([[1.0, 2.0, 3.0]]), "hidden": torch.zeros(1, 8)})
        tensor([[3., 1.]])
    """

    part: tuple[str, ...] | None = None
    classes: tuple[int, ...] | None = None
    _indices: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> tuple[str, ...]:
        """How references name it."""
        return LOGITS if self.part is None else self.part

    def of(self, value: Any, *, text: str = "answer") -> Any:
        """The answer in what a model gives; of a tensor, itself.

        Raises:
            MissingPart: there is no such part.
            ValueError: it has not all the classes.
        """
        if not isinstance(value, Tensor) and self.part is not None:
            value = part_of(value, self.part, text)
        elif not isinstance(value, Tensor):
            found = [tensor for path, tensor in tensor_paths(value) if path.rpartition(".")[2] == LOGITS[0]]
            value = found[0] if len(found) == 1 else value
        return self.selected(value, text) if self.classes is not None else value

    def selected(self, logits: Any, text: str) -> Any:
        """The classes of (B, C), (B, T, C) or (B, C, H, W) that are wanted."""
        if not isinstance(logits, Tensor) or self.classes is None:
            return logits
        dim = 1 if logits.ndim > 3 else logits.ndim - 1
        if max(self.classes) >= logits.shape[dim]:
            raise ValueError(f"classes names {max(self.classes)}, but {text} gives {tuple(logits.shape)}: count from 0")
        if logits.device not in self._indices:
            with torch.inference_mode(False):
                self._indices[logits.device] = torch.tensor(self.classes, device=logits.device)
        return logits.index_select(dim, self._indices[logits.device])


WHOLE = Answer()
