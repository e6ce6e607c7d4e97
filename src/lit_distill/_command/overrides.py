"""The overrides of the running command as its user typed them, and what a config leaves to defaults."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pkgutil import resolve_name
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


def arguments_of(target: str) -> dict[str, Any]:
    """The arguments that a class or function takes by name, with their defaults (``inspect.Parameter.empty``: none).

    Of a class that takes further ones by ``**``, those of the class that it is derived from too.

    Args:
        target: full name, as in ``_target_``.

    Raises:
        ImportError, AttributeError: there is none of that name.

    Example:
        >>> arguments_of("lit_distill.data.ImageFolderDataModule")["labelled_share"]
        1.0
    """
    found = resolve_name(target)
    arguments: dict[str, Any] = {}
    for part in found.__mro__ if isinstance(found, type) else (found,):
        parameters = inspect.signature(part).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                arguments.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return arguments
