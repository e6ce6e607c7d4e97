from __future__ import annotations

import gc
import os
import pickle
import sys
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.default_element import InputDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, grammar_parser

from faults.report import report_test
from lit_distill._command.command import conf_dir

# A file stays in one worker: those that take long begin first, the longest at the front.
LONGEST = (
    "faults/test_kill_resume.py", "conf/test_configs.py", "faults/test_kill_stages.py", "faults/test_deadlock.py",
    "ddp/test_torchrun.py", "comparison/test_compare.py", "faults/test_signals.py", "faults/test_checkpoints.py",
    "data/moving_digits/test_moving_digits.py",
    "test_export.py", "ddp/test_every_loss.py", "test_examples.py", "test_image_experiments.py", "test_train.py",
    "training/test_run_stages.py", "data/test_cache.py", "callbacks/test_teacher_cache.py", "test_convert.py",
    "docs/test_deploy_page.py", "test_imports.py", "test_test_command.py", "test_benchmark.py", "test_wheel.py",
    "conf/test_loss_experiments.py", "curves/test_curves.py", "faults/test_frozen.py",
    "teacher_cache/test_teacher_store.py", "test_index.py",
    "runs/test_recipes_resume.py", "faults/test_mutants.py", "test_example_folders.py", "test_sweep.py",
    "paddlevideo/test_paddlevideo_end_to_end.py", "test_search.py", "module/test_best_peer.py",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _caches_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Video indexes go to a temporary folder, not to the user's cache; a cache given for the tests is used."""
    with pytest.MonkeyPatch.context() as patch:
        if "LIT_DISTILL_CACHE" not in os.environ:
            patch.setenv("LIT_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _configs_parsed_once() -> Iterator[None]:
    """Hydra parses conf/ again for each composition, a third of its time; no test changes these files.

    What it does again for each file of a composition, another third, is done where it is needed: the choices that an
    entry of a defaults list refers to, and the trees of equal interpolations.
    """
    load, folder = ConfigRepository.load_config, str(conf_dir())
    parsed: dict[tuple[str, str], bytes] = {}

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or (source.path != folder and source.scheme() != "pkg"):
            return load(self, config_path)
        if (source.path, config_path) not in parsed:
            parsed[source.path, config_path] = pickle.dumps(load(self, config_path))
        result: ConfigResult | None = pickle.loads(parsed[source.path, config_path])
        return result

    choices_of = defaults_list._create_interpolation_map

    def choices_if_needed(overrides: Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig:
        needed = any(default.is_interpolation() for default in defaults)
        return choices_of(overrides, defaults, self_added) if needed else OmegaConf.create()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        patch.setattr(defaults_list, "_create_interpolation_map", choices_if_needed)
        patch.setattr("omegaconf.base.parse", cache(grammar_parser.parse))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one at the end."""
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports leave no garbage: collections that walk what they made took a third of the time of collecting tests.

    Workers write the bytecode of tests and package even where PYTHONDONTWRITEBYTECODE is set: another third.
    """
    gc.disable()
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = written and "PYTEST_XDIST_WORKER" not in os.environ
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = written
        gc.collect()
        gc.freeze()  # nor are they walked while the tests run, which took a tenth of that time
        gc.enable()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The long run of the fault suite counts the tests of promises that stand elsewhere, once under several workers."""
    if report.when == "call" and "PYTEST_XDIST_WORKER" not in os.environ and not report.skipped:
        report_test(report.location[0], report.passed)
