"""Builds what an untrusted config describes, from plain data alone: no text of it is interpreted a second time."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from inspect import signature
from pkgutil import resolve_name
from typing import Any, get_args

import torch
from torch import Tensor

from lit_distill.untrusted.check import check_targets, located
from lit_distill.untrusted.networks import held_to
from lit_distill.untrusted.plain import KeyPath, dotted
from lit_distill.untrusted.showing import short_errors

_TARGET = "_target_"
_OWN_KEYS = (_TARGET, "_args_", "_partial_", "_convert_", "_recursive_")


def build(
    config: Any,
    *,
    name: str = "",
    allow: Collection[str] = (),
    run_dir: str | os.PathLike[str] | None = None,
    weights_bytes: int = 0,
) -> Any:
    """Check an untrusted config against the allow-list, and build what it describes.

    A mapping with ``_target_`` is a call of that name: its other keys are arguments, built first; ``_args_`` are
    positional, and ``_partial_`` defers the call. Everything else is the plain data that it is.

    Args:
        config: nested mappings and lists.
        name: its place in the file, for messages.
        allow: as for :func:`lit_distill.untrusted.check.check_targets`.
        run_dir: as there.
        weights_bytes: of the files of its weights: see :func:`lit_distill.untrusted.networks.held_to`.

    Raises:
        ValueError: something is not admitted or asks for far more memory than its weights, an argument is missing, or a
            call does not take its arguments.

    Example:
        >>> build({"_target_": "torch.nn.Linear", "_args_": [2, 3]})
        Linear(in_features=2, out_features=3, bias=True)
    """
    checked = check_targets({name: config}, allow=allow, run_dir=run_dir)[name]
    with held_to(weights_bytes, name or "the config"):
        return _built(checked, (name,))


def _built(node: Any, path: KeyPath) -> Any:
    if isinstance(node, list):
        return [_built(item, (*path, number)) for number, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if node.get("_recursive_", True) or _TARGET not in node:
        node = {key: _built(item, (*path, key)) if key != _TARGET else item for key, item in node.items()}
    if _TARGET not in node:
        return node
    arguments = {key: value for key, value in node.items() if key not in _OWN_KEYS}
    if missing := [key for key, value in arguments.items() if value == "???"]:
        raise ValueError(
            f"{dotted((*path, missing[0]))}: expected a value for this argument of {node[_TARGET]}, got ???"
        )
    target = located(node[_TARGET])
    function = partial(target, *node.get("_args_", ()), **tensor_arguments(target, arguments))
    if node.get("_partial_"):
        return function
    try:
        with short_errors(dotted(path)):
            return function()
    except (ValueError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # what a call raises for arguments that are none of its own is of no common class
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{dotted(path)}: {node[_TARGET]} cannot be built of these arguments: {type(error).__name__}: {said}"
        ) from error


def with_tensors(node: Any) -> Any:
    """A config whose lists of numbers are tensors where what is built of them takes a tensor: weights of classes.

    Example:
        >>> with_tensors({"_target_": "torch.nn.CrossEntropyLoss", "weight": [1, 2]})["weight"]
        tensor([1., 2.])
    """
    if isinstance(node, list):
        return [with_tensors(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    inner = {key: with_tensors(value) for key, value in node.items()}
    if not isinstance(node.get(_TARGET), str):
        return inner
    try:
        target = resolve_name(node[_TARGET])
    except (ImportError, AttributeError, ValueError):
        return inner  # the builder says what is wrong
    return {**inner, **tensor_arguments(target, inner)}


def tensor_arguments(target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, lists of numbers as tensors where the target's annotation is a tensor, or a tensor or None."""
    lists = {key for key, value in arguments.items() if isinstance(value, list) and value and _is_numbers(value)}
    if not lists:
        return dict(arguments)
    try:
        taken = {name: one.annotation for name, one in signature(target, eval_str=True).parameters.items()}
    except (NameError, TypeError, ValueError, AttributeError):  # what Python cannot look into, or names nothing
        return dict(arguments)
    wanted = {key for key in lists if Tensor in (taken.get(key), *get_args(taken.get(key)))}
    return {
        key: torch.tensor(value, dtype=torch.get_default_dtype()) if key in wanted else value
        for key, value in arguments.items()
    }


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)
