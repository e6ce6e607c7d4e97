"""What an import loads: the losses torch alone, the module Lightning, a command that only answers neither."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lit_distill.cli import COMMANDS
from run_folders import environment

HEAVY = {
    "PIL", "av", "hydra", "lightning", "matplotlib", "numpy", "omegaconf", "rich", "safetensors", "sklearn", "torch",
    "torchmetrics", "torchvision",
}  # fmt: skip
ANSWER = """
import runpy, sys
sys.argv = {words!r}
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit:
    pass
"""


def loaded_by(program: str, *, after: str = "pass") -> set[str]:
    """The modules that a program loads in a process of its own, without those that another statement loads before."""
    watched = (
        f"import sys, json\n{after}\nbefore = set(sys.modules)\n{program}\n"
        "print('\\n' + json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", watched], env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def roots(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_the_losses_load_torch_and_no_more_of_it_than_torch_itself() -> None:
    loaded = loaded_by("import lit_distill.losses", after="import torch")
    assert not roots(loaded) & HEAVY
    assert not [module for module in loaded if module.startswith("torch.")]
    assert len([module for module in loaded if not module.startswith("lit_distill")]) < 30


def test_the_module_loads_lightning_and_no_more_than_lightning_itself() -> None:
    loaded = loaded_by("from lit_distill import DistillModule, LossComposer, LossTerm", after="import lightning")
    assert roots(loaded) & HEAVY <= {"lightning", "safetensors", "torch"}
    assert len(loaded) < 200


def test_the_package_by_itself_loads_nothing_heavy() -> None:
    assert not roots(loaded_by("import lit_distill; lit_distill.__version__")) & HEAVY


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_only_answers_loads_nothing_heavy(command: str, option: str) -> None:
    loaded = loaded_by(ANSWER.format(words=[command, option], module=f"lit_distill.{command}"))
    assert f"lit_distill.{command}" not in loaded, "it runs as the main module"
    assert "lit_distill._version" in loaded
    assert not roots(loaded) & HEAVY


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["nonsense"],
        ["train", "--help"],
        ["completion", "bash"],
        ["completion", "--", "compare", "trainer.max_"],
    ],
)
def test_the_program_of_all_commands_loads_nothing_heavy(words: list[str]) -> None:
    loaded = loaded_by(ANSWER.format(words=["lit-distill", *words], module="lit_distill"))
    assert "lit_distill.cli" in loaded
    assert not roots(loaded) & HEAVY
