"""What the tests of comparisons share: configs that are composed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
from hydra import compose
from omegaconf import DictConfig

from lit_distill.comparison import plan


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """A quarter of a CPU second for each config that a plan composes: the same arguments give the same config."""

    @cache
    def compose_once(name: str, overrides: tuple[str, ...]) -> DictConfig:
        return compose(name, list(overrides), return_hydra_config=True)

    def composed(name: str, overrides: Sequence[str], *, return_hydra_config: bool) -> DictConfig:
        assert return_hydra_config
        return copy.deepcopy(compose_once(name, tuple(overrides)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "compose", composed)
        yield
