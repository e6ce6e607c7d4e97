"""Holds a network that an untrusted config describes to the bytes of its weights, before memory is taken for it."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_distill.untrusted.budgets import UNFOLDED
from lit_distill.untrusted.showing import printable

FREE_BYTES: Final = 256 << 20
"""That any network may have: buffers and initialization are in no weights file."""
CALL_BYTES: Final = 40_960
"""That count at least for a call of torch, so that many small tensors, or copies, have an end: some 6,500 calls beside
those of the weights. A PP-TSMv2 takes 1,100, DenseNet-201 4,000."""
FORWARD_BYTES: Final = 1 << 30
"""Of the values that a forward pass of one sample holds at a time; of ResNet-50 with 16 frames some 100 MB."""
FORWARD_STEPS: Final = 20_000
"""Of a forward pass: calls of torch's operators."""
FORWARD_SECONDS: Final = 5.0
"""Of CPU time for a forward pass on shapes alone: ViT-B takes 0.3; an LSTM has steps without end."""
MODULES: Final = 20_000
"""In a network, and layers among them that hold nothing; the largest of timm have 1,500."""
_CLOCK_STEPS: Final = 64
"""Between two looks at the clock, which may take longer than a step."""
_ATEN: Any = torch.ops.aten
_LIKE_FIRST: Final = frozenset(
    (_ATEN.relu.default, _ATEN.sigmoid.default, _ATEN.hardtanh.default, _ATEN.hardswish.default, _ATEN.silu.default,
     _ATEN.gelu.default, _ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.sub.Tensor, _ATEN.div.Tensor)
)  # fmt: skip
"""Operators that give a value like their first one, where all are of one shape and type. PyTorch computes their shapes
by decompositions in Python, which take half of the time that it takes to open a run."""


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


def check_forward(network: nn.Module, shape: Sequence[int], what: str, *, trusted: bool = False) -> None:
    """Refuse a network whose values of one sample take too much memory, by a forward pass that has shapes alone.

    Args:
        network: it is left as it is.
        shape: of an input, without the batch.
        what: it is, for messages.
        trusted: whether it may hold layers that cannot be run so: a caller's own.

    Raises:
        ValueError: one of its values, or all that are held at a time, are beyond the limits; or it cannot be run.

    Example:
        >>> check_forward(nn.Upsample(scale_factor=4000), (3, 32, 32), "Student")
        Traceback (most recent call last):
        ...
        ValueError: Student: a forward pass of one sample of (3, 32, 32) holds more than 1,073,741,824 bytes, the limit
    """
    training = {module: module.training for module in network.modules()}
    # What a network itself has is limited by held_to; views of it are values of a forward pass too.
    state = {name: value.to("meta") for name, value in (*network.named_parameters(), *network.named_buffers())}

    own = sum(value.untyped_storage().nbytes() for value in state.values())

    def on_meta() -> None:
        functional_call(network, state, torch.empty(1, *shape, device="meta"))

    def on_fakes() -> None:
        network(torch.empty(1, *shape))

    # slower by far, and knows what layers make of constants; its log has a traceback of each error
    fakes = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    log = logging.getLogger(FakeTensorMode.__module__)
    kept, log.disabled = log.disabled, True
    attempts: tuple[tuple[Any, Callable[[], None]], ...] = ((nullcontext(), on_meta), (fakes, on_fakes))
    network.eval()
    try:
        for mode, attempt in attempts:
            try:
                with mode, torch.no_grad(), _Held(what, shape, own, _on_meta if mode is not fakes else _called):
                    attempt()
                return
            except _ForwardError as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # layers raise nearly anything
                said = " ".join(str(error).split())[:300]
                if not isinstance(error, NotImplementedError) and "meta" not in said:
                    break
    finally:
        log.disabled = kept
        for module, was in training.items():
            module.training = was
    if not trusted:
        raise ValueError(f"{what} cannot be run on a sample of {tuple(shape)}: {printable(said)}")


def _called(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
    return function(*arguments, **named)


def _on_meta(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
    """What an operator gives on the meta device; that of the most frequent ones is known without a call."""
    first = arguments[0] if arguments else None
    if not isinstance(first, torch.Tensor) or not first.is_meta or not first.is_floating_point() or named:
        return function(*arguments, **named)
    if not first.is_contiguous():  # an expanded tensor has less memory than its values
        return function(*arguments, **named)
    if function in _LIKE_FIRST and all(_is_like(value, first.shape, first.dtype) for value in arguments[1:]):
        return _like(first)
    if function is _ATEN.native_batch_norm.default and not arguments[5]:
        channels = first.shape[1:2]
        if all(_is_like(value, channels, first.dtype) for value in arguments[1:5]):
            return _like(first), torch.empty(0, device="meta"), torch.empty(0, device="meta")
    return function(*arguments, **named)


def _is_like(value: Any, shape: Sequence[int], dtype: torch.dtype) -> bool:
    if isinstance(value, torch.Tensor):
        return value.shape == shape and value.dtype == dtype
    return value is None or isinstance(value, (int, float))


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """A new one; ``torch.empty_like`` takes twenty times as long."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _ForwardError(ValueError):
    """A forward pass beyond the limits."""


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive during a forward pass."""

    def __init__(self, what: str, shape: Sequence[int], own: int, call: Callable[..., Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._what, self._shape, self._call = what, tuple(shape), call
        self._bytes, self._steps, self._most = 0, 0, FORWARD_BYTES + own
        self._until = time.thread_time() + FORWARD_SECONDS
        self._users: dict[int, list[int]] = {}  # of a storage: its bytes, and the tensors that use it

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        made = self._call(function, arguments, named or {})
        self._steps += 1
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        is_late = self._steps % _CLOCK_STEPS == 0 and time.thread_time() > self._until
        if is_late or self._bytes > self._most or self._steps > FORWARD_STEPS:
            limit = f"holds more than {FORWARD_BYTES:,} bytes" if self._bytes > self._most else "has too many steps"
            raise _ForwardError(f"{self._what}: a forward pass of one sample of {self._shape} {limit}, the limit")
        return made

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._users:
            self._users[key][1] += 1
        else:
            self._users[key] = [storage.nbytes(), 1]
            self._bytes += storage.nbytes()
        weakref.finalize(tensor, self._let_go, key)

    def _let_go(self, key: int) -> None:
        users = self._users[key]
        users[1] -= 1
        if not users[1]:
            self._bytes -= users[0]
            del self._users[key]


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
        if isinstance(made, torch.Tensor) and not function.is_view and not function._schema.is_mutable:  # a copy, say
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
