"""One server and one set of uninterrupted runs for all tests that kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.killing import Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def references(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of uninterrupted runs, made as they are asked for."""

    class References(dict[str, Path]):
        def __missing__(self, scenario: str) -> Path:
            folder = self[scenario] = tmp_path_factory.mktemp("reference") / "run"
            assert set(server.run(folder, scenario)["codes"]) == {0}, (folder / "log0.txt").read_text()
            return folder

    return References()
