from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _compiled_alone() -> Iterator[None]:
    """What a test compiled is forgotten after it: losses share a wrapper, of which only eight forms are compiled."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
