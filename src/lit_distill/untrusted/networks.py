"""Holds a network that an untrusted config describes to the bytes of its weights, before memory is taken for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from lit_distill.untrusted.budgets import UNFOLDED

FREE_BYTES: Final = 256 << 20
"""That any network may have: buffers and initialization are in no weights file."""
CALL_BYTES: Final = 2_048
"""That count at least for a call of torch, so that many small tensors, or copies, have an end."""
MODULES: Final = 100_000
"""In a network, and layers among them that hold nothing."""


@contextmanager
def held_to(weights_bytes: int, what: str) -> Iterator[None]:
    """Refuse to build a network that is far larger than its weights, before the allocation that would be too much.

    Args:
        weights_bytes: of the files that its weights are in.
        what: is built, for messages.

    Raises:
        ValueError: in the block, it asks for more bytes than ``4 * weights_bytes`` and 256 MB, or for too many modules.

    Example:
        >>> with held_to(1_000, "Student"):
        ...     nn.Linear(10**6, 10**6)
        Traceback (most recent call last):
        ...
        ValueError: Student: its config asks for a network of more than 268,439,456 bytes, its weights have 1,000
    """
    count = 0

    def registered(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > MODULES:
            raise ValueError(f"{what}: its config asks for a network of more than {MODULES:,} modules")

    handle = register_module_module_registration_hook(registered)
    try:
        with _Allocations(weights_bytes, what):
            yield
    finally:
        handle.remove()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what factories of tensors are asked for, before they are called."""

    def __init__(self, weights_bytes: int, what: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights_bytes, self._what = weights_bytes, what
        self._left = self._most = UNFOLDED * weights_bytes + FREE_BYTES

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        asked = max(CALL_BYTES, 0 if function.is_view else _bytes_asked(arguments, named))
        self._take(asked)
        made = function(*arguments, **named)
        if isinstance(made, Tensor) and not function.is_view and not function._schema.is_mutable:  # a copy, say
            self._take(max(0, made.numel() * made.element_size() - asked))
        return made

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(
                f"{self._what}: its config asks for a network of more than {self._most:,} bytes, its weights have "
                f"{self._weights_bytes:,}"
            )


def _bytes_asked(arguments: Sequence[Any], named: dict[str, Any]) -> int:
    """Of a new tensor, by the size or the number of elements that a call names; 0 where it names none."""
    sizes = [a for a in arguments if isinstance(a, (list, tuple)) and a and all(isinstance(n, int) for n in a)]
    asked = max((math.prod(size) for size in sizes), default=0)
    if not sizes and not any(hasattr(a, "dtype") for a in arguments):  # arange, linspace, eye
        asked = max((abs(int(a)) for a in arguments if isinstance(a, (int, float)) and math.isfinite(a)), default=0)
    dtype = named.get("dtype")
    return max(0, asked) * (4 if dtype is None else dtype.itemsize)
