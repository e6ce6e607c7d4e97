"""What CONTRIBUTING.md asks of each callback: a file that lacks one of its places fails here, by name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

import lit_distill.callbacks
from lit_distill.callbacks import exact_resume
from lit_distill.untrusted.targets import rule_of

PACKAGE = lit_distill.callbacks.__name__
STEMS = sorted(path.stem for path in Path(lit_distill.callbacks.__file__).parent.glob("[!_]*.py"))
PLACE_WORDS = {"path", "paths", "dir", "dirs", "directory", "file", "files", "filename", "folder", "root", "index"}


def classes_of(stem: str) -> list[type[Callback]]:
    module = importlib.import_module(f"{PACKAGE}.{stem}")
    found = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Callback)]
    return [x for x in found if x.__module__ == module.__name__ and not x.__name__.startswith("_")]


@pytest.mark.parametrize("stem", STEMS)
def test_it_is_exported(stem: str) -> None:
    classes = classes_of(stem)
    assert classes, f"{PACKAGE}.{stem} has no public Callback: a helper's file begins with _"
    for cls in classes:
        assert cls.__name__ in lit_distill.callbacks.__all__, (
            f"src/lit_distill/callbacks/__init__.py lacks the line: from {PACKAGE}.{stem} import {cls.__name__}, and "
            f'"{cls.__name__}" in __all__'
        )


@pytest.mark.parametrize("stem", STEMS)
def test_the_state_that_it_restores_has_a_row(stem: str) -> None:
    for cls in classes_of(stem):
        restores = {"load_state_dict", "on_load_checkpoint"} & vars(cls).keys()
        assert not restores or f" callbacks.{cls.__name__} " in (exact_resume.__doc__ or ""), (
            f"{cls.__name__} restores state: add a row with the key callbacks.{cls.__name__} to the table in "
            "src/lit_distill/callbacks/exact_resume.py, and the callback to the run in "
            "tests/callbacks/test_exact_resume.py that the table is compared with"
        )


@pytest.mark.parametrize("stem", STEMS)
def test_an_untrusted_config_cannot_have_it_write_anywhere(stem: str) -> None:
    for cls in classes_of(stem):
        rule = rule_of(f"{PACKAGE}.{cls.__name__}")
        assert rule is not None
        for name, parameter in inspect.signature(cls).parameters.items():
            names_a_place = PLACE_WORDS & set(name.split("_")) or "Path" in str(parameter.annotation)
            assert not names_a_place or name in rule.written, (
                f"{name} of {cls.__name__} names a place: add it to _PLACES in src/lit_distill/untrusted/targets.py, "
                "so that an untrusted config keeps it inside the run folder"
            )
