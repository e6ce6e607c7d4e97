from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from faults.report import report_test


@pytest.fixture(scope="session", autouse=True)
def _caches_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Video indexes go to a temporary folder, not to the user's cache; a cache given for the tests is used."""
    with pytest.MonkeyPatch.context() as patch:
        if "LIT_DISTILL_CACHE" not in os.environ:
            patch.setenv("LIT_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_finish() -> None:
    """What all tests have imported is garbage of none: collections that walk it took a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The long run of the fault suite counts the tests of promises that stand elsewhere, once under several workers."""
    if report.when == "call" and "PYTEST_XDIST_WORKER" not in os.environ and not report.skipped:
        report_test(report.location[0], report.passed)
