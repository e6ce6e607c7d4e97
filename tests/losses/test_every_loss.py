"""What CONTRIBUTING.md asks of each loss: a file that lacks one of its places fails here, by name."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import lit_distill.losses
from losses.cases import STEMS, cases_of, module_of, row_losses
from losses.checks import labels, logits

ROOT = Path(__file__).parents[2]
RESPONSE = row_losses()


@pytest.mark.parametrize("stem", STEMS)
def test_its_function_and_module_are_exported(stem: str) -> None:
    names = getattr(importlib.import_module(module_of(stem)), "__all__", None)
    assert names, f'{module_of(stem)} must say what it exports: __all__ = ["<Name>Loss", "{stem}_loss"]'
    missing = [name for name in names if not hasattr(lit_distill.losses, name)]
    assert not missing, f"src/lit_distill/losses/__init__.py lacks the line: from {module_of(stem)} import *"
    exported = [getattr(lit_distill.losses, name) for name in names]
    assert any(inspect.isfunction(x) for x in exported), f"{module_of(stem)} exports no function"
    assert any(isinstance(x, type) and issubclass(x, nn.Module) for x in exported), f"{module_of(stem)} has no module"


def test_no_two_losses_export_one_name() -> None:
    count = Counter(name for stem in STEMS for name in importlib.import_module(module_of(stem)).__all__)
    assert not [name for name, times in count.items() if times > 1]


@pytest.mark.parametrize("stem", STEMS)
def test_its_other_three_files_are_there(stem: str) -> None:
    for path in (f"conf/loss/{stem}.yaml", f"tests/losses/test_{stem}.py", f"conf/experiment/{stem}_pptsmv2.yaml"):
        assert (ROOT / path).is_file(), f"the loss {module_of(stem)} lacks {path}"


@pytest.mark.parametrize("stem", STEMS)
def test_its_test_file_says_how_it_runs_on_two_processes(stem: str) -> None:
    exported = vars(importlib.import_module(module_of(stem)))
    modules = {exported[name] for name in exported["__all__"] if isinstance(exported[name], type)}
    missing = modules - {type(case.make()) for case in cases_of(stem)}
    assert not missing, (
        f"tests/losses/test_{stem}.py has no case for {missing}: write CASES = [Case(<Name>Loss)] with Case of "
        "tests/losses/cases.py"
    )


@pytest.mark.parametrize("module", RESPONSE, ids=lambda module: module.__name__)
def test_a_module_has_the_hyperparameters_and_defaults_of_its_function(module: type[nn.Module]) -> None:
    exported = importlib.import_module(module.__module__).__all__
    (function,) = (getattr(lit_distill.losses, name) for name in exported if name != module.__name__)
    of_module = inspect.signature(module).parameters
    of_function = inspect.signature(function).parameters
    ours = {name: p.default for name, p in of_module.items() if name != "warmup_epochs"}
    theirs = {name: p.default for name, p in of_function.items() if p.kind is p.KEYWORD_ONLY and name != "mask"}
    assert ours == theirs
    assert all(p.kind is p.KEYWORD_ONLY for p in of_module.values()), "hyperparameters are keyword-only"
    signals = [name for name, p in of_function.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert signals in (["student", "teacher"], ["student", "teacher", "target"], ["student", "target"])


@pytest.mark.parametrize("module", RESPONSE, ids=lambda module: module.__name__)
def test_a_module_has_no_state_and_compiles_whole(module: type[nn.Module]) -> None:
    loss = module()
    assert not loss.state_dict()
    made = {"student": logits(4, 3, seed=1), "teacher": logits(4, 3, seed=2), "target": labels(4, 3)}
    signals = [value for name, value in made.items() if name in inspect.signature(loss.forward).parameters]
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*signals), loss(*signals))
