"""Lightning's callbacks that average weights, or prune them, and frozen models, which are none of theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from torch import nn

from lit_distill._lightning import AVERAGING_METHODS, average_of, pruned_modules

_STOCHASTIC = (
    "pl_module_contains_batch_norm", "update_parameters", "transfer_weights", "reset_batch_norm_and_save_state",
)  # fmt: skip


def leave_frozen_alone(trainer: Trainer, module: LightningModule, frozen: Collection[str]) -> None:
    """Have averaging callbacks average what is trained alone; once the losses have their parameters.

    ``WeightAveraging`` (``EMAWeightAveraging`` with it) and ``StochasticWeightAveraging`` pair the module's tensors
    with those of a copy, which they made before a loss was sized. The copy is made again here, without the frozen
    models, which are not among the module's while the callback works on it.

    Raises:
        ValueError: ``ModelPruning`` prunes a frozen model.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelPruning):
            _refuse_pruning(callback, module, frozen)
        if not isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
            continue
        with _hidden(frozen, module):
            callback.setup(trainer, module, stage="fit")
        for name in AVERAGING_METHODS if isinstance(callback, WeightAveraging) else _STOCHASTIC:
            vars(callback).pop(name, None)  # of a fit before
            setattr(callback, name, _out_of_sight(getattr(callback, name), frozen))
        if isinstance(callback, WeightAveraging):
            average = average_of(callback)
            average.update_parameters = _out_of_sight(average.update_parameters, frozen)
            average.load_state_dict = _without_keys(average.load_state_dict, frozen)


def complete_averaged(checkpoint: dict[str, Any]) -> None:
    """Give an averaged ``state_dict`` the tensors that are not averaged: those of frozen models that callbacks move."""
    current = checkpoint.get("current_model_state")
    if isinstance(current, Mapping):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: state.get(key, value) for key, value in current.items()}


def _refuse_pruning(callback: ModelPruning, module: LightningModule, frozen: Collection[str]) -> None:
    pruned = {id(part) for part in pruned_modules(callback)}
    models: Any = module.models
    for name in frozen:
        if any(id(part) in pruned for part in models[name].modules()):
            raise ValueError(
                f"ModelPruning would prune {name}, which is frozen: give the layers of the student, such as "
                "parameters_to_prune=[(layer, 'weight') for layer in module.models['Student'].modules() "
                "if isinstance(layer, nn.Conv2d)]"
            )


def _out_of_sight(function: Callable[..., Any], frozen: Collection[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def hiding(*args: Any, **kwargs: Any) -> Any:
        modules = [each for each in (*args, *kwargs.values()) if isinstance(each, LightningModule)]
        with _hidden(frozen, *modules):
            return function(*args, **kwargs)

    return hiding


def _without_keys(load: Callable[..., Any], frozen: Collection[str]) -> Callable[..., Any]:
    starts = tuple(f"module.models.{name}." for name in frozen)

    @functools.wraps(load)
    def loading(state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return load({key: value for key, value in state.items() if not key.startswith(starts)}, *args, **kwargs)

    return loading


@contextmanager
def _hidden(names: Collection[str], *modules: LightningModule) -> Iterator[None]:
    """Take models out of modules for a while."""
    whole: list[tuple[nn.ModuleDict, dict[str, nn.Module]]] = []
    for module in modules:
        models: Any = module.models
        whole.append((models, dict(models.items())))
    try:
        for models, parts in whole:
            for name in names:
                if name in parts:
                    del models[name]
        yield
    finally:
        for models, parts in whole:
            models.clear()
            models.update(parts)
