"""The published optimizer: torch's SGD over parameter groups that the networks themselves know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # also the base of SyncBatchNorm

_Factory = TypeVar("_Factory", bound=Callable[..., torch.optim.Optimizer])


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn alike.

    Attributes:
        name: of the group, within its model.
        params: the parameters.
        lr_multiplier: times the optimizer's learning rate.
        weight_decay: instead of the optimizer's; None keeps that one.
    """

    name: str
    params: tuple[nn.Parameter, ...]
    lr_multiplier: float = 1.0
    weight_decay: float | None = None


@runtime_checkable
class GroupsParameters(Protocol):
    """A model that says which of its parameters learn differently."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters of the model, each in one group."""


def published_groups(model: nn.Module, fast: nn.Linear | None) -> list[ParameterGroup]:
    """The parameter groups of PaddleVideo's PP-TSM networks.

    BatchNorm's scale and shift do not decay. The layer ``fast`` learns 5 times (weight) and 10 times (bias) as fast;
    its weight decays by 1e-4 whatever the optimizer says, its bias not at all. All else is ordinary, biases included.

    Args:
        model: the network.
        fast: its fast layer: the attention of PP-TSMv2, the classifier of a PP-TSM ResNet; None without one.
    """
    norms = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
    special = set() if fast is None else {id(p) for p in fast.parameters()}
    parameters = list(model.parameters())
    groups = [
        ParameterGroup("weights", tuple(p for p in parameters if id(p) not in norms | special)),
        ParameterGroup("norms", tuple(p for p in parameters if id(p) in norms), weight_decay=0.0),
    ]
    if fast is not None:
        weight, bias = fast.parameters()
        groups.append(ParameterGroup("fast_weight", (weight,), lr_multiplier=5.0, weight_decay=1e-4))
        groups.append(ParameterGroup("fast_bias", (bias,), lr_multiplier=10.0, weight_decay=0.0))
    return groups


def takes_models(factory: _Factory) -> _Factory:
    """Mark an optimizer factory as called with ``(models, extra_parameters)`` instead of a list of parameters.

    :class:`lit_distill.DistillModule` passes the trainable models by name, and the parameters of the losses.
    """
    factory.takes_models = True  # type: ignore[attr-defined]
    return factory


@takes_models
def paddle_momentum(
    models: Mapping[str, nn.Module],
    extra_parameters: Sequence[nn.Parameter] = (),
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = True,
) -> torch.optim.SGD:
    r"""PaddleVideo's ``Momentum``: plain :class:`torch.optim.SGD` with the networks' own parameter groups.

    .. math:: g' = g + \lambda p, \qquad v = \mu v + g', \qquad p = p - \eta\, k\, (g' + \mu v)

    with k the group's learning-rate multiplier and λ its own weight decay where it has one. The decay enters the
    gradient before the momentum, so torch's arithmetic is Paddle's. A model takes part by a method
    ``parameter_groups() -> list[ParameterGroup]``, as :class:`~lit_distill.models.PPTSMv2` and
    :class:`~lit_distill.models.PPTSMResNet` do; any other is one plain group. Parameters that need no gradient are left
    out, and one that several models share is trained once, in the group of the first.

    Args:
        models: trainable models by name.
        extra_parameters: parameters of the losses, one plain group.
        lr: base learning rate η, above 0.
        momentum: μ, in [0, 1).
        weight_decay: λ, at least 0.
        nesterov: the formula above; False steps along v.

    Raises:
        ValueError: a value is out of its range, or nothing is left to train.

    Example:
        >>> optimizer = paddle_momentum({"Student": nn.Linear(4, 2)}, lr=0.05)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [('Student/all', 0.05, 0.0001)]
    """
    if not lr > 0:
        raise ValueError(f"paddle_momentum expects lr above 0, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"paddle_momentum expects momentum in [0, 1), got {momentum}")
    if weight_decay < 0:
        raise ValueError(f"paddle_momentum expects weight_decay of at least 0, got {weight_decay}")
    named = [(f"{name}/{group.name}", group) for name, model in models.items() for group in groups_of(model)]
    named.append(("losses", ParameterGroup("losses", tuple(extra_parameters))))
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for name, group in named:
        params = [p for p in group.params if p.requires_grad and id(p) not in seen]
        seen.update(map(id, params))
        if params:
            decay = weight_decay if group.weight_decay is None else group.weight_decay
            groups.append({"params": params, "name": name, "lr": lr * group.lr_multiplier, "weight_decay": decay})
    if not groups:
        raise ValueError(f"paddle_momentum finds nothing to train in {sorted(models)}: all parameters are frozen")
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def groups_of(model: nn.Module) -> list[ParameterGroup]:
    """The groups that a model says, or all of its parameters as one."""
    if isinstance(model, GroupsParameters):
        return model.parameter_groups()
    return [ParameterGroup("all", tuple(model.parameters()))]
