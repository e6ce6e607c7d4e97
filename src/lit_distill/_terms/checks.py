"""What a term's loss expects of its signals, and whether these have it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill._terms.graph import SHAPES, activates
from lit_distill.losses._numerics import ONE_CLASS, first_of
from lit_distill.losses.base import Signal, tensors_of

Expected: TypeAlias = Literal["logits", "binary logits", "log-probabilities", "alike"]

_KINDS: dict[Expected, tuple[Any, ...]] = {
    "logits": (nn.CrossEntropyLoss, F.cross_entropy),
    "binary logits": (
        nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss,
        F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss,
    ),
    "log-probabilities": (nn.NLLLoss, nn.KLDivLoss, F.nll_loss, F.kl_div),
    "alike": (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, F.mse_loss, F.l1_loss, F.smooth_l1_loss),
}  # fmt: skip

_KL = (nn.KLDivLoss, F.kl_div)
_SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid)
_MANY = 8  # classes: all logits of several samples in [0, 1] are no accident then
_TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 3e-2}


def expected_of(loss: Callable[..., Any]) -> Expected | None:
    """What a loss expects of its signals, where that is known: torch's losses, and this package's on logits.

    Example:
        >>> expected_of(nn.CrossEntropyLoss()), expected_of(nn.TripletMarginLoss())
        ('logits', None)
    """
    if getattr(loss, "expects_logits", False):
        return "logits"
    return first_of([expected for expected, kinds in _KINDS.items() if _is_one_of(loss, kinds)])


def require_classes(loss: Callable[..., Any], arguments: Sequence[Signal]) -> None:
    """Raise ValueError where a loss over classes gets signals of one class, which teach nothing.

    The losses of this package look themselves: see ``losses.response``.

    Example:
        >>> require_classes(nn.CrossEntropyLoss(), [torch.zeros(4, 1), torch.zeros(4, 1)])
        Traceback (most recent call last):
        ValueError: expected at least two classes, got (4, 1): the softmax of one logit is 1 whatever it is, ...
    """
    expected = expected_of(loss)
    for tensor in tensors_of(arguments[0]):
        shape = tuple(tensor.shape)
        over_classes = _is_one_of(loss, _KINDS["logits"]) or (expected == "log-probabilities" and len(shape) == 2)
        if over_classes and shape and shape[min(1, len(shape) - 1)] == 1:
            raise ValueError(f"expected at least two classes, got {shape}: {ONE_CLASS}")


def wrong_values(
    loss: Callable[..., Any], arguments: Sequence[Signal], modules: Sequence[Sequence[nn.Module]]
) -> list[tuple[int, int, str]]:
    """Signals that a loss does not expect, by their values: probabilities for logits, logits for log-probabilities.

    A few values that lie in [0, 1] by accident are not taken for probabilities: the rows of at least two samples must
    sum to 1, or a sigmoid must have made them. It waits for the device.

    Args:
        loss: of the term.
        arguments: its two signals, and the third.
        modules: for each signal, the modules that gave its tensors.

    Returns:
        Which argument, which tensor of it, and what is wrong.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
        >>> wrong_values(nn.CrossEntropyLoss(), [logits, torch.tensor([0, 1])], [[], []])
        []
        >>> wrong_values(nn.CrossEntropyLoss(), [logits.softmax(1), torch.tensor([0, 1])], [[], []])[0][2]
        'its rows sum to 1 and lie in [0, 1], as after a softmax, where the loss expects logits'
    """
    expected = expected_of(loss)
    if expected is None:
        return _activated_twice(loss, arguments, modules)
    if expected == "alike":
        kinds = [isinstance(each, Tensor) and each.ndim == 2 and _is_distribution(each) for each in arguments[:2]]
        fault = "its rows sum to 1 and lie in [0, 1], as after a softmax, and the other's do not"
        between_models = bool(modules[0]) and bool(modules[1])
        return [(kinds.index(True), 0, fault)] if between_models and kinds[0] != kinds[1] else []
    found = []
    sides = 2 if getattr(loss, "expects_logits", False) or _is_one_of(loss, _KL) else 1
    for side, signal in enumerate(arguments[:sides]):
        for place, tensor in enumerate(tensors_of(signal)):
            made_by = modules[side][place] if place < len(modules[side]) else None
            if (why := _fault(loss, expected, side, tensor, made_by)) is not None:
                found.append((side, place, why))
    return found


def _activated_twice(
    loss: Callable[..., Any], arguments: Sequence[Signal], modules: Sequence[Sequence[nn.Module]]
) -> list[tuple[int, int, str]]:
    """Probabilities of a model that a custom loss takes the softmax or sigmoid of, by its graph."""
    found = []
    for side, made_by in enumerate(modules[:2]):
        tensors = tensors_of(arguments[side])
        for place, (tensor, module) in enumerate(zip(tensors, made_by, strict=False)):
            if (why := _fault(loss, "logits", side, tensor, module)) is None:
                continue
            leaf = tensor.detach().requires_grad_()
            given = list(arguments)
            given[side] = (
                leaf if isinstance(arguments[side], Tensor) else [*tensors[:place], leaf, *tensors[place + 1 :]]
            )
            with suppress(Exception), torch.enable_grad():
                if activates(loss(*given), leaf):
                    found.append((side, place, why))
    return found


def _fault(
    loss: Callable[..., Any], expected: Expected, side: int, tensor: Tensor, made_by: nn.Module | None
) -> str | None:
    if expected == "log-probabilities" and side == 1 and not _takes_log_target(loss):
        good = not _rows(tensor) or _is_distribution(tensor)
        return None if good else "its rows are no probabilities, as the loss expects of a target: apply softmax"
    if expected == "log-probabilities":
        good = _is_log_probabilities(tensor)
        return None if good else "its rows are no log-probabilities, as the loss expects: apply log_softmax"
    if _is_distribution(tensor):
        return "its rows sum to 1 and lie in [0, 1], as after a softmax, where the loss expects logits"
    if expected == "binary logits" and _rows(tensor) and _is_log_probabilities(tensor):
        return "its rows are logarithms of probabilities, as after a log_softmax, where the loss expects logits"
    if _is_squashed(tensor, made_by):
        return "it lies in [0, 1], as after a sigmoid, where the loss expects logits"
    return None


def found_nothing(value: Tensor) -> bool:
    """Whether a term's value is a constant 0, as of a loss that found no pair or position to average over.

    Only a value without a graph is looked at, which waits for the device.

    Example:
        >>> found_nothing(torch.zeros(())), found_nothing(torch.ones(()))
        (True, False)
    """
    return not value.requires_grad and not float(value.detach())


def _tolerance(tensor: Tensor) -> float:
    return _TOLERANCE.get(tensor.dtype, 1e-4)


def _rows(tensor: Tensor) -> list[Tensor]:
    """The rows of classes, in float64, in the two places where classes may stand; of several samples alone."""
    if not tensor.is_floating_point() or tensor.ndim < 2 or len(tensor) < 2:
        return []
    whole = tensor.detach().double()
    return [whole.movedim(dim, -1).flatten(0, -2) for dim in {1, tensor.ndim - 1} if tensor.shape[dim] > 1]


def _is_distribution(tensor: Tensor) -> bool:
    slack = _tolerance(tensor)
    return any(
        bool(((rows.sum(dim=1) - 1).abs() <= slack).all() & (rows >= 0).all() & (rows <= 1 + slack).all())
        for rows in _rows(tensor)
    )


def _is_log_probabilities(tensor: Tensor) -> bool:
    rows = _rows(tensor)
    slack = 10 * _tolerance(tensor)
    return not rows or any(bool((each.logsumexp(dim=1).abs() <= slack).all()) for each in rows)


def _is_squashed(tensor: Tensor, made_by: nn.Module | None) -> bool:
    """Whether a tensor is a sigmoid's: by its graph, by its module, or by many values that all lie in [0, 1]."""
    if not tensor.is_floating_point() or not bool(((tensor >= 0) & (tensor <= 1)).all()):
        return False
    node = tensor.grad_fn
    if node is not None:
        while node is not None and node.name().startswith(SHAPES):
            node = next((following for following, _ in node.next_functions), None)
        return node is not None and node.name().startswith(("Sigmoid", "Hardsigmoid"))
    last = None if made_by is None else list(made_by.modules())[-1]
    return isinstance(last, _SIGMOIDS) or (
        any(rows.shape[1] >= _MANY for rows in _rows(tensor)[:1]) and not bool((tensor == 0).any())  # of a ReLU
    )


def _is_one_of(loss: Callable[..., Any], kinds: Sequence[Any]) -> bool:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return any(isinstance(loss, kind) if isinstance(kind, type) else loss is kind for kind in kinds)


def _takes_log_target(loss: Callable[..., Any]) -> bool:
    given = loss.keywords.get("log_target") if isinstance(loss, functools.partial) else None
    return bool(getattr(loss, "log_target", False) if given is None else given)
