"""Each file of a run folder, each variable of the environment, is spelled in one module of the package."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
import yaml

from lit_distill import _files
from lit_distill._command import launch
from lit_distill._command.command import conf_dir
from lit_distill.runs import names, resume
from run_folders import composed

SOURCE = Path(names.__file__).parents[1]
NAMES = {str(value): name for name, value in vars(names).items() if name.isupper() and isinstance(value, (str, Path))}
FILES = sorted(name for name in NAMES if "." in name.lstrip("."))
FOLDERS = sorted(name for name in NAMES if "." not in name and name not in (names.BEST, names.LAST))
VARIABLES = {
    _files.CACHE_VARIABLE: "_files.py",
    launch.STARTED: "_command/launch.py",
    resume.RUN_VARIABLE: "runs/resume.py",
    "HYDRA_FULL_ERROR": "_command/run.py",
}
# Configs name files by themselves; the test below holds them against the owner.
CONFIGS = {
    ("callbacks/default.yaml", "dirpath: ${run_dir}/checkpoints"),
    ("logger/tensorboard.yaml", "name: tensorboard"),
}


def literals(file: Path) -> list[tuple[int, str, bool]]:
    """Every text of a module that is no docstring, its line, and whether a path is joined by it alone."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    documents = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    joined = {id(node.right) for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    return [
        (node.lineno, node.value, id(node) in joined)
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
    ]


@pytest.fixture(scope="module")
def modules() -> dict[str, list[tuple[int, str, bool]]]:
    return {str(file.relative_to(SOURCE)): literals(file) for file in SOURCE.rglob("*.py")}


def spelled(text: str, *, joined: bool = False) -> list[str]:
    """The names of :mod:`lit_distill.runs.names` that a text spells; those of folders as parts of a path alone."""
    found = [name for name in FILES if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text)]
    return found + [name for name in FOLDERS if (joined and text == name) or re.search(rf"(?<![\w.])/?{name}/", text)]


@pytest.mark.parametrize(
    ("text", "joined", "found"),
    [
        ("metrics.csv", False, ["metrics.csv"]), ("{run}/metrics.csv", False, ["metrics.csv"]),
        ("the student.safetensors of a run", False, ["student.safetensors"]), ("checkpoints/", False, ["checkpoints"]),
        ("stages", False, []), ("stages", True, ["stages"]), ("my_metrics.csv", False, []), ("stages.2", False, []),
    ],
)  # fmt: skip
def test_a_second_spelling_is_seen(text: str, joined: bool, found: list[str]) -> None:
    assert spelled(text, joined=joined) == found


def test_no_other_module_spells_the_name_of_a_file_of_a_run(modules: dict[str, list[tuple[int, str, bool]]]) -> None:
    assert len(modules) > 150
    again = [
        f"{file}:{line}: {name} is {NAMES[name]} of runs/names.py"
        for file, texts in modules.items()
        if file != "runs/names.py"
        for line, text, joined in texts
        for name in spelled(text, joined=joined)
    ]
    assert not again, "\n".join(again)


def test_configs_spell_names_only_where_they_are_held_against_the_owner() -> None:
    again = set()
    for file in conf_dir().rglob("*.yaml"):
        content = yaml.safe_load(file.read_text()) or {}
        texts = file.read_text().partition("\n  help:")[0].splitlines()
        place = str(file.relative_to(conf_dir()))
        for line in (text.partition(" #")[0].strip() for text in texts if not text.lstrip().startswith("#")):
            is_folder = any(line.endswith(f" {name}") for name in FOLDERS) and place.startswith("logger/")
            if spelled(f"{line}/" if line.endswith("checkpoints") else line) or is_folder:
                again.add((place, line))
        assert isinstance(content, dict)
    assert again == CONFIGS


def test_configs_say_what_the_owner_says() -> None:
    config = composed("train", "experiment=dml_pptsmv2", "logger=tensorboard", "run_dir=run")
    best, last = config.callbacks.best, config.callbacks.last
    assert Path(best.dirpath, best.filename + names.CHECKPOINT_SUFFIX) == "run" / names.BEST_CHECKPOINT
    assert last.dirpath == best.dirpath == os.path.join("run", names.CHECKPOINTS)
    assert config.logger.tensorboard.name == names.TENSORBOARD


def test_each_variable_of_the_environment_has_one_owner(modules: dict[str, list[tuple[int, str, bool]]]) -> None:
    found = {
        (name, file)
        for file, texts in modules.items()
        for _, text, _ in texts
        for name in re.findall(r"LIT_DISTILL_[A-Z_]+|HYDRA_FULL_ERROR", text)
    }
    assert found == set(VARIABLES.items())
    used = {name for file in conf_dir().rglob("*.yaml") for name in re.findall(r"oc\.env:(\w+)", file.read_text())}
    assert used == {launch.STARTED}


def test_another_run_inherits_nothing_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.STARTED, "2026-01-01")
    monkeypatch.setenv("OTHER", "kept")
    resume.export_run_environment(resume.ResumePoint(Path("/run"), None, False, ""))
    environment = resume.environment_of_other_run()
    assert environment["OTHER"] == "kept"
    assert not {launch.STARTED, resume.RUN_VARIABLE} & environment.keys()
    assert resume.RUN_VARIABLE in os.environ
    resume.clear_run_environment()
    assert resume.RUN_VARIABLE not in os.environ
