"""What a data set's config knows better than a method: which weights networks start from, and those of terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from lit_distill._command.overrides import given_values
from lit_distill.models.shipped import read_card
from lit_distill.training.stages import moved_models

_NOT_COMPARED = ("num_classes", "dropout", "init", "pretrained", "reset_head")
"""Arguments of a network that weights fit whatever their values: the classifier is reinitialized."""


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


def set_preset_start(config: DictConfig) -> list[str]:
    """Let each network of a config start from the pretrained weights of its data's preset that fit it.

    ``preset.init`` is ``pretrained``, or ``scratch`` for random weights; ``preset.pretrained`` lists the weights. A
    network that has weights already (``models.<name>.pretrained``), begins as an earlier stage left it, or is frozen,
    is left as it is: what a frozen network teaches is the user's choice.

    Args:
        config: of an ordinary run, or of a stage; it then names the weights, and is what a run folder stores. A run of
            several stages is left as it is: each of its stages has a config.

    Returns:
        A line a network: what it starts from, or why it starts from random weights.

    Raises:
        ValueError: ``preset.init`` is neither of the two.
    """
    init, names = config.preset.get("init", "scratch"), config.preset.get("pretrained") or []
    if init not in ("pretrained", "scratch"):
        raise ValueError(f"preset.init is pretrained or scratch, got {init!r}")
    if not names or config.get("stages") or config.get("generations") is not None:
        return []
    moved = moved_models(config.callbacks)
    left = {*config.frozen, *moved, *(config.get("start") or {})}
    lines = []
    for model, node in config.models.items():
        if model in left:
            continue
        for place, network in _networks(node):
            whose = ".".join((str(model), *place))
            if init == "scratch":
                lines.append(f"{whose} starts from random weights (preset.init=scratch)")
                continue
            values = cast("dict[str, Any]", OmegaConf.to_container(network, resolve=True))
            faults = {str(name): _misfit(values, read_card(name)["model"]) for name in names}
            name = next((name for name, fault in faults.items() if not fault), None)
            if name is None:
                why = [f"{name} has {fault}" for name, fault in faults.items() if not fault.startswith("_target_")]
                lines.append(f"{whose} starts from random weights: {'; '.join(why) or 'the preset has none for it'}")
                continue
            with open_dict(network):
                network.pretrained, network.reset_head = name, True
            lines.append(f"{whose} starts from {name}, pretrained on {read_card(name)['about']} (preset.init)")
    return lines


def _networks(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], DictConfig]]:
    """The networks of a model's config that may read a weights file and name none, and their places in it."""
    if not isinstance(node, DictConfig):
        return
    if "pretrained" in node:
        if node.pretrained is None:
            yield place, node
        return
    for key, value in node.items():
        yield from _networks(value, (*place, str(key)))


def _misfit(network: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """The first argument in which a network differs from one that weights belong to; empty where they fit."""
    for key in sorted(network.keys() | trained.keys(), key=lambda key: (key != "_target_", key)):
        if key not in _NOT_COMPARED and network.get(key) != trained.get(key):
            return f"{key}={trained.get(key)}, not {network.get(key)}"
    return ""
