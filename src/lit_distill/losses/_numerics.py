"""Small numerical pieces that the losses share: precision, finiteness, shapes, and the logarithmic KL core."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import check, rules_of

P = ParamSpec("P")
Nested = TypeVar("Nested")
Item = TypeVar("Item")

ONE_CLASS = (
    "the softmax of one logit is 1 whatever it is, so the loss has no gradient; use a loss for single logits "
    "(nn.BCEWithLogitsLoss on labels, nn.MSELoss between models), or give the model two outputs"
)
"""Why a loss over classes refuses one class."""

_HALF = (torch.float16, torch.bfloat16)

# Whether losses look at their own values: not where a training step does, once, for all ranks and on every device.
_LOOKS: ContextVar[bool] = ContextVar("losses look at their values", default=True)


def first_of(items: Iterable[Item]) -> Item | None:
    """The first of them, or None; torch 2.8 compiles no ``next`` with a default.

    Example:
        >>> first_of([3, 4]), first_of([])
        (3, None)
    """
    for item in items:
        return item
    return None


def full_precision(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Make a loss function compute in float32 or better, check its hyperparameters and refuse a non-finite result.

    Tensors of float16 or bfloat16 among the arguments (also within lists) are upcast, float32 and float64 stay, and
    autocast is off inside, so the result is a float32 or float64 scalar whatever the training precision is. On the CPU
    a result that is NaN or infinite raises, naming the argument that brought it; on an accelerator that look would
    make every step wait for the device. Within :func:`values_unchecked` nothing raises: an exception on one rank alone
    would leave the others waiting, so :class:`lit_distill.callbacks.NonFinite` looks once a step, for all ranks.

    Raises:
        ValueError: a hyperparameter breaks the rule of its annotation, or the result is not finite (CPU only, outside
            ``values_unchecked``).
    """
    signature, name = inspect.signature(function), function.__name__.lstrip("_")
    rules = rules_of(function)

    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        check(name, rules, kwargs)
        with _no_autocast(next(_tensors((args, kwargs))).device.type):
            result = function(*upcast(args), **upcast(kwargs))
        if can_look(result) and _LOOKS.get() and not _is_finite(result):
            bound = signature.bind(*args, **kwargs).arguments
            raise ValueError(_not_finite(name, result, bound))
        return result

    # A code object of its own: torch.compile gives up on one after eight forms, which all losses would share.
    wrapped.__code__ = wrapped.__code__.replace(co_name=name)
    return functools.wraps(function)(wrapped)


def _no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    # torch 2.8 cannot compile this look; a device that it compiles for has autocast
    there = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    on = there and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


@contextlib.contextmanager
def values_unchecked() -> Iterator[None]:
    """Within it, losses pass NaN and infinity on to their result, on the CPU too."""
    token = _LOOKS.set(False)
    try:
        yield
    finally:
        _LOOKS.reset(token)


def checks_values() -> bool:
    """Whether a loss is to raise where it meets NaN or infinity."""
    return _LOOKS.get()


def nan_unless_finite(*tensors: Tensor) -> Tensor:
    """0 where every value is finite, else NaN, without a gradient.

    To be added to a loss in which an argmax or a maximum would hide NaN or infinity; it waits for no device.
    """
    return torch.stack([(tensor.detach() * 0).sum() for tensor in tensors]).sum()


def can_look(tensor: Tensor) -> bool:
    """Whether a value may be checked in passing: on the CPU, outside torch.compile; elsewhere it would stall."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def upcast(value: Nested) -> Nested:
    """``value`` with every half-precision tensor in it (tuples, lists, dicts) as float32."""
    result: Any = value
    if isinstance(value, Tensor):
        result = value.float() if value.dtype in _HALF else value
    elif isinstance(value, dict):
        result = {name: upcast(item) for name, item in value.items()}
    elif isinstance(value, (tuple, list)):
        result = type(value)(upcast(item) for item in value)
    return result  # type: ignore[no-any-return]


def require_finite(name: str, **signals: Tensor | Sequence[Tensor]) -> None:
    """Raise when a value on the CPU holds NaN or infinity: for what is computed once, before training.

    Raises:
        ValueError: names the signal, its shape and how many of its values are not finite.
    """
    bad = [t for t in _tensors(signals) if can_look(t) and not _is_finite(t)]
    if bad:
        raise ValueError(_not_finite(name, None, signals))


def require_same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    """Raise unless both signals have one shape.

    Raises:
        ValueError: names both shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"{name} expects a student and a teacher signal of the same shape, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )


def require_classes(name: str, logits: Tensor, dim: int) -> None:
    """Raise ValueError where a softmax over ``dim`` would be over one class."""
    if logits.shape[dim] == 1:
        raise ValueError(f"{name} expects at least two classes, got logits {tuple(logits.shape)}: {ONE_CLASS}")


def centered(x: Tensor, dim: int | tuple[int, ...], weights: Tensor | None = None) -> Tensor:
    """``x`` without its mean along ``dim``; a slice that is constant but for rounding becomes 0, without a gradient.

    Its direction is noise: whoever divides by its length plus an eps would turn that noise into gradients of 1/eps.
    With ``weights``, which broadcast, the mean is theirs and the result is times their root, so that its inner products
    are weighted sums.
    """
    if weights is None:
        result = x - x.mean(dim=dim, keepdim=True)
    else:
        total = weights.sum(dim=dim, keepdim=True)
        mean = (x * weights).sum(dim=dim, keepdim=True) / total.masked_fill(total == 0, 1)
        result = (x - mean) * weights.sqrt()
    rounding = 4 * torch.finfo(x.dtype).eps * x.detach().abs().amax(dim=dim, keepdim=True)
    return result.masked_fill(result.detach().abs().amax(dim=dim, keepdim=True) <= rounding, 0.0)


def kl_from_log_probabilities(log_target: Tensor, log_input: Tensor) -> Tensor:
    r"""KL(target || input) = Σ_c p_c (log p_c - log q_c) over the last dimension, from logarithms alone.

    Working on ``log_softmax`` outputs keeps it finite for any finite logits: exp(log p) may underflow to 0,
    but log p - log q never becomes inf - inf.
    """
    return (log_target.exp() * (log_target - log_input)).sum(dim=-1)


def kl_from_logits(target: Tensor, input: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(softmax(target/T) || softmax(input/T)) over the last dimension, one value a row; no T² factor."""
    return kl_from_log_probabilities(
        F.log_softmax(target / temperature, dim=-1), F.log_softmax(input / temperature, dim=-1)
    )


def log_power_sum(values: Tensor, exponent: float, weights: Tensor | None = None, *, eps: float = 0.0) -> Tensor:
    """log(eps + Σ w |x|^exponent) over all values, where neither powers nor their sum can overflow: a scalar.

    Where the sum and ``eps`` are 0 it is a large negative number, without a gradient.
    """
    tiny = torch.finfo(values.dtype).tiny
    largest = values.detach().abs().amax().clamp_min(tiny)
    powers = (values.abs() / largest) ** exponent
    total = powers.sum() if weights is None else (powers * weights).sum()
    log = exponent * largest.log() + total.clamp_min(tiny).log()
    return torch.logaddexp(log, torch.full_like(log, math.log(eps))) if eps else log


def _is_finite(tensor: Tensor) -> bool:
    # One read of a scalar is a third of the cost of reducing it, and losses are read every step.
    return math.isfinite(tensor.item()) if tensor.ndim == 0 else bool(tensor.isfinite().all())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _not_finite(name: str, result: Tensor | None, arguments: dict[str, Any]) -> str:
    found = [
        f"{key} {tuple(tensor.shape)} holds {int(tensor.isnan().sum())} NaN and {int(tensor.isinf().sum())} infinite"
        for key, value in arguments.items()
        for tensor in _tensors(value)
        if not bool(tensor.isfinite().all())
    ]
    what = f"{name} is not finite" if result is None or result.ndim else f"{name} is {result.item()}"
    return f"{what}: " + ("; ".join(found) if found else "all its inputs are finite, so the formula itself overflowed")
