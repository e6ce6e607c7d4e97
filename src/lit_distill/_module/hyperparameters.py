"""What the losses of a run are set to, so that a resumed run says what differs and uses what the code says."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill.composer import LossComposer
from lit_distill.losses.base import SizedLoss
from lit_distill.terms import Weight

Settings: TypeAlias = dict[str, str]
"""A text for each hyperparameter, by ``<terms>.<term>: <attribute>``: plain, as checkpoints hold it."""

Composers: TypeAlias = Mapping[str, tuple[str, LossComposer]]
"""By name: how the keys of a composer begin in a state_dict, and the composer."""

_EPOCHS = [0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0]


def loss_settings(composers: Composers, **weights: Weight) -> Settings:
    """What the terms are set to: hyperparameters in attributes and buffers, weights, schedules.

    Args:
        composers: of the terms.
        weights: others, by name.

    Example:
        >>> from lit_distill import LossTerm
        >>> term = LossTerm(nn.CrossEntropyLoss(label_smoothing=0.1), pair=("Student", "GroundTruth"), weight=0.5)
        >>> settings = loss_settings({"losses": ("composer.", LossComposer({"ce": term}))})
        >>> settings["losses.ce: label_smoothing"], settings["losses.ce: weight of the term"]
        ('0.1', '0.5')
    """
    found: Settings = {name: text for name, weight in weights.items() if (text := _weight_text(weight)) is not None}
    for where, (_, composer) in composers.items():
        for name, term in composer.terms.items():
            at = f"{where}.{name}: "
            found[f"{at}loss"] = _name(term.loss)
            if (weight := _weight_text(term.weight)) is not None:
                found[f"{at}weight of the term"] = weight
            found |= {f"{at}{key}": text for key, text in _of(term.loss)}
        if composer.balance is not None:
            found |= {f"{where}: {key} of {_name(composer.balance)}": text for key, text in _of(composer.balance)}
    return found


def settings_that_held(composers: Composers, settings: Settings, **weights: Weight) -> Settings:
    """For a checkpoint: what the losses are still set to; what training moves, such as a warm-up, is left out."""
    now = loss_settings(composers, **weights)
    return {key: text for key, text in settings.items() if now.get(key) == text}


def keep_settings(
    composers: Composers, here: Settings, stored: Mapping[str, str], state: dict[str, Any], *, warn: bool = True
) -> None:
    """Warn of what a checkpoint was trained with and is set to something else here, which is what is used.

    Args:
        composers: those of here.
        here: what the losses are set to now.
        stored: what the checkpoint records of its own.
        state: the checkpoint's state_dict; buffers of class weights and their like are replaced by those of here.
        warn: whether to say what differs.
    """
    lines = []
    for key in (key for key in stored if key in here and here[key] != stored[key]):
        lines.append(f"{key} {here[key]} (the checkpoint: {stored[key]})")
        if (found := _buffer(key, composers)) is not None and found[0] in state:
            state[found[0]] = found[1].detach().clone()
    if lines and warn:
        rank_zero_warn(
            "the losses are set to other values than those that the checkpoint was trained with; the present ones are "
            f"used: {'; '.join(lines)}"
        )


def _buffer(key: str, composers: Composers) -> tuple[str, Tensor] | None:
    """The key in a state_dict, and the tensor, of a hyperparameter that is a buffer."""
    place, _, attribute = key.partition(": ")
    where, _, name = place.partition(".")
    if where not in composers:
        return None
    start, composer = composers[where]
    loss = composer.terms[name].loss if name in composer.terms else None
    buffers = dict(loss.named_buffers()) if isinstance(loss, nn.Module) else {}
    return (f"{start}losses.{name}.{attribute}", buffers[attribute]) if attribute in buffers else None


def _of(loss: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    if isinstance(loss, functools.partial):
        yield from {**dict(_of(loss.func)), **dict(_texts(loss.keywords.items()))}.items()
    elif isinstance(loss, types.MethodType):
        yield from _of(loss.__self__)  # type: ignore[arg-type]
    elif isinstance(loss, types.FunctionType):
        yield from _of_function(loss)
    elif not isinstance(loss, nn.Module):
        yield from _texts(getattr(loss, "__dict__", {}).items())
    if not isinstance(loss, nn.Module):
        return
    for path, part in loss.named_modules():
        start = f"{path}." if path else ""
        own = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
        if not isinstance(loss, SizedLoss):  # whose buffers are made for the data
            own |= {key: value for key, value in part._buffers.items() if value is not None}
        yield from ((f"{start}{key}", text) for key, text in _texts(own.items()))


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, str]]:
    """The values that a function was made with: its defaults, and what it closes over."""
    names, defaults = inspect.getfullargspec(function).args, function.__defaults__ or ()
    yield from _texts(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    yield from _texts((function.__kwdefaults__ or {}).items())
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is still empty
            yield from _texts([(name, cell.cell_contents)])


def _texts(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    for key, value in items:
        if (text := _text(value)) is not None:
            yield key, text


def _weight_text(weight: Weight) -> str | None:
    """A weight: of a function, its values at some epochs."""
    if (text := _text(weight)) is not None or not callable(weight):
        return text
    with suppress(Exception):  # one that needs a training around it
        return f"{[round(float(weight(epoch)), 6) for epoch in _EPOCHS]} at epochs {_EPOCHS}"
    return None


def _text(value: Any) -> str | None:
    """A number, a text, a list of them, a tensor or a frozen dataclass such as a schedule; None for any other value."""
    if isinstance(value, Tensor):
        return _tensor_text(value.detach())
    if isinstance(value, (bool, int, float, str, type(None), torch.dtype)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        parts = [_text(part) for part in value]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    if hasattr(value, "__dataclass_params__") and value.__dataclass_params__.frozen:
        parts = [_text(getattr(value, name)) for name in value.__dataclass_fields__]
        return None if None in parts else repr(value)
    return None


def _tensor_text(tensor: Tensor) -> str:
    if tensor.is_meta or tensor.layout != torch.strided:
        return f"{tuple(tensor.shape)}"
    plain = tensor.cpu()
    if plain.numel() <= 8:
        return str([round(each, 6) for each in plain.double().flatten().tolist()])
    digest = hashlib.sha256(plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return f"{tuple(tensor.shape)} of sha256 {digest[:12]}"


def _name(loss: Callable[..., Any]) -> str:
    while isinstance(loss, functools.partial):
        loss = loss.func
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{kind.__module__}.{kind.__qualname__}"
