"""A trial run of modules leaves no trace: what a forward pass moves is as it was afterwards."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

_REGISTERED = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (list, dict, set, tuple, deque)
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState)


@contextmanager
def on_trial(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules within it; parameters that learn, buffers, attributes, flags and random states are restored.

    The trial works on copies of buffers, and of tensors and containers among the attributes, however deep, so that the
    originals are not touched: running statistics, observers of quantization, states that a network carries from batch
    to batch, counters. A part that makes parameters or submodules in its first forward pass (``nn.LazyLinear``) keeps
    what it made. The copies of parameters take no more memory than their gradients will in training; those of frozen
    models, which may be large, are restored in embeddings with ``max_norm`` alone.

    Args:
        modules: all that may run.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with on_trial([norm]):
        ...     _ = norm(torch.randn(4, 2))
        >>> norm.num_batches_tracked.item(), norm.running_mean.tolist()
        (0, [0.0, 0.0])
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    copies: dict[int, Any] = {}  # one a tensor, so that those that share it still do
    with isolate_rng(), ExitStack() as stack:
        for part in parts:
            if not isinstance(part, (LazyModuleMixin, torch.jit.ScriptModule)):
                stack.enter_context(_restored(part, copies))
        yield


@contextmanager
def _restored(part: nn.Module, copies: dict[int, Any]) -> Iterator[None]:
    def copied(value: Any) -> Any:
        if isinstance(value, Tensor) and not value.requires_grad:
            return copies.setdefault(id(value), value.detach().clone())
        if isinstance(value, torch.Generator):
            return copies.setdefault(id(value), value.clone_state())
        if isinstance(value, _RANDOM):
            return copies.setdefault(id(value), copy.deepcopy(value))
        if type(value) in _CONTAINERS:
            return copies[id(value)] if id(value) in copies else copied_container(value)
        return value

    def copied_container(value: Any) -> Any:
        if isinstance(value, (tuple, set)):
            copies[id(value)] = type(value)(map(copied, value))
            return copies[id(value)]
        made = copies[id(value)] = value.copy()  # known before its entries, which may lead back to it
        entries = (
            {key: copied(entry) for key, entry in value.items()} if isinstance(value, dict) else map(copied, value)
        )
        _refill(made, entries if isinstance(value, dict) else list(entries))
        return made

    attributes = {key: value for key, value in vars(part).items() if key not in _REGISTERED}
    contents = {key: value.copy() for key, value in attributes.items() if type(value) in (list, dict, set, deque)}
    buffers, built = dict(part._buffers), _built(part)
    rewritten = [(p, p.detach().clone()) for p in part._parameters.values() if p is not None and _may_write(part, p)]
    vars(part).update({key: copied(value) for key, value in attributes.items()})
    part._buffers.update({key: copied(value) for key, value in buffers.items()})
    try:
        yield
    finally:
        for parameter, value in rewritten:
            if not torch.equal(parameter, value):
                with torch.no_grad():
                    parameter.copy_(value)
        untouched = _built(part) == built
        if untouched:
            part._buffers.clear()
        part._buffers.update(buffers)
        if untouched:
            for key in vars(part).keys() - attributes.keys() - set(_REGISTERED):
                del vars(part)[key]
            for key, content in contents.items():
                _refill(attributes[key], content)
            vars(part).update(attributes)


def shortens(part: nn.Module) -> bool:
    """Whether a forward pass shortens the vectors that it looks up, in the parameter."""
    return isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None


def _may_write(part: nn.Module, parameter: nn.Parameter) -> bool:
    plain = type(parameter) is nn.Parameter and not parameter.is_meta
    return plain and (parameter.requires_grad or shortens(part))


def _built(part: nn.Module) -> list[tuple[str, int]]:
    """The parameters and submodules of a part, to see whether it made some."""
    return [(key, id(value)) for of in (part._parameters, part._modules) for key, value in of.items()]


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.update(content) if isinstance(container, (dict, set)) else container.extend(content)
