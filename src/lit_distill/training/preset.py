"""What a data set's config knows better than a method: the weights of terms that work on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lit_distill._command.overrides import given_values


def preset_weights(config: DictConfig, given: Sequence[str]) -> dict[str, Any]:
    """The weights, by term, that ``preset.weights`` has for a config composed with the overrides ``given``.

    What the overrides say of a term's weight stands, and so does a schedule that the experiment has of its own.

    Returns:
        Numbers, or nodes of schedules.
    """
    weights = OmegaConf.to_container(config.preset.weights, resolve=True)
    assert isinstance(weights, dict)
    said = _weighted_by(given)
    return {
        term: weights[term]
        for term, node in config.losses.items()
        if weights.get(term) is not None and term not in said and not OmegaConf.is_dict(node.get("weight"))
    }


def _weighted_by(given: Sequence[str]) -> set[str]:
    """The terms whose weight overrides set: by its own key, within a mapping, or from a group."""
    said = set()
    for place, value in given_values(given):
        for name in reversed(place.split(".")):
            value = {name: value}
        losses = value.get("losses")
        if isinstance(losses, dict):
            said |= {str(term) for term, node in losses.items() if isinstance(node, dict) and "weight" in node}
    return said


def set_preset_weights(config: DictConfig, given: Sequence[str]) -> dict[str, Any]:
    """Write :func:`preset_weights` into the terms of ``config``, so that its run folder has what was trained with.

    Interpolations stay: in a stage of other epochs a schedule is as long as the stage.
    """
    weights = preset_weights(config, given)
    with open_dict(config):
        for term in weights:
            config.losses[term].weight = config.preset.weights[term]
    return weights


def describe_weight(weight: Any) -> str:
    """A weight in one line.

    Example:
        >>> describe_weight({"_target_": "lit_distill.schedules.Linear", "start": 0.0, "end": 1.0, "epochs": 5})
        'Linear(start=0, end=1, epochs=5)'
        >>> describe_weight(0.5)
        '0.5'
    """
    if isinstance(weight, Mapping):
        name = str(weight["_target_"]).rpartition(".")[2]
        rest = ", ".join(f"{key}={describe_weight(value)}" for key, value in weight.items() if key != "_target_")
        return f"{name}({rest})"
    return f"{weight:g}"
