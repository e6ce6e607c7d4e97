"""The overrides of the running command as its user typed them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


def typed_overrides() -> list[str]:
    """The overrides of the running command as they were typed: an interpolation within one is not resolved."""
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(override) for override in cast(list[Any], overrides)]


def given_values(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Where in the config each override puts what, as typed: interpolations are not resolved.

    Args:
        overrides: in Hydra's words; of a choice from a group the place is its package.

    Example:
        >>> list(given_values(["seed=1", "+losses.kd={weight: 2}", "model@models.Teacher=resnet50"]))
        [('seed', 1), ('losses.kd', {'weight': 2}), ('models.Teacher', 'resnet50')]
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        yield override.package or override.key_or_group, override.value()
