from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _caches_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Video indexes go to a temporary folder, not to the user's cache; a cache given for the tests is used."""
    with pytest.MonkeyPatch.context() as patch:
        if "LIT_DISTILL_CACHE" not in os.environ:
            patch.setenv("LIT_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
