"""What models are given: the tensors in it, and whether a model leaves them as they are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """PyTorch's count of a tensor's in-place changes; 0 in inference mode and within torch.compile: there is none."""
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in tuples, lists, mappings and dataclasses, however deep.

    Example:
        >>> [tensor.item() for tensor in tensors_in({"a": [torch.tensor(1)], "b": (torch.tensor(2), "text")})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
        return
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif dataclasses.is_dataclass(value):
        parts = vars(value).values()
    for part in parts:
        yield from tensors_in(part)


def counted(value: Any) -> Any:
    """The same in tensors whose in-place changes PyTorch counts: those of inference mode are copied, others are kept.

    Example:
        >>> with torch.inference_mode():
        ...     batch = {"clip": torch.zeros(2), "name": "text"}
        >>> counted(batch)["clip"].is_inference(), counted(batch)["name"]
        (False, 'text')
    """
    if not any(tensor.is_inference() for tensor in tensors_in(value)):
        return value
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, tuple):
        parts = [counted(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return [counted(part) for part in value]
    other = copy.copy(value)
    if isinstance(value, MutableMapping):
        other.update({key: counted(part) for key, part in value.items()})
    elif dataclasses.is_dataclass(value):
        vars(other).update({key: counted(part) for key, part in vars(value).items()})
    return other


@contextmanager
def left_as_given(name: str, given: Any, remedy: str, *, by_value: bool = False) -> Iterator[None]:
    """Hold that what runs within it, a model or a loss, leaves what it was given as it is: tensors, dicts and lists.

    Args:
        name: who is run, for the message.
        given: what it is given, of any structure.
        remedy: what to do, for the message.
        by_value: compare the values too, which finds changes past PyTorch's count (``x.data``, NumPy); it costs a copy
            and waits for the device.

    Raises:
        ValueError: a tensor was changed in place, or an entry of a dict, list or dataclass was replaced or removed.

    Example:
        >>> x = torch.ones(2, 3)
        >>> with left_as_given("Teacher", [x], "clone it"):
        ...     _ = x.sub_(1.0)
        Traceback (most recent call last):
        ValueError: Teacher changes its input (2, 3) in place (as x.sub_(…) and nn.ReLU(inplace=True) do): clone it
    """
    before = [(tensor, version_of(tensor), tensor.clone() if by_value else None) for tensor in tensors_in(given)]
    containers = list(_containers(given))
    yield
    for container, entries in containers:
        if replaced := _replaced(entries, _entries(container)):
            raise ValueError(
                f"{name} changes the {type(container).__name__} that it is given (entries {', '.join(replaced)}): "
                f"make a copy first (batch = dict(batch)): {remedy}"
            )
    for tensor, version, value in before:
        if version_of(tensor) != version or (value is not None and not _equal(tensor, value)):
            raise ValueError(
                f"{name} changes its input {tuple(tensor.shape)} in place "
                f"(as x.sub_(…) and nn.ReLU(inplace=True) do): {remedy}"
            )


def _containers(value: Any) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Every mapping, list and dataclass, however deep, and what it holds now."""
    if isinstance(value, Tensor):
        return
    entries = _entries(value)
    if entries and not isinstance(value, tuple):
        yield value, entries
    for part in entries.values():
        yield from _containers(part)


def _entries(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return dict(vars(value)) if dataclasses.is_dataclass(value) and not isinstance(value, type) else {}


def _replaced(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[str]:
    """Keys whose entries are others or gone; what was added harms nobody."""
    return [repr(key) for key, entry in before.items() if key not in after or after[key] is not entry]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
