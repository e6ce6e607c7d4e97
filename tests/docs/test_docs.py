"""The pages of docs/ hold: their Python runs, their commands compose, their YAML is an experiment, their links lead."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lit_distill._command.arguments import Arguments, open_data
from lit_distill._command.command import conf_dir
from lit_distill._command.completion import SCRIPTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "build" not in path.relative_to(DOCS).parts)
TEXTS = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in PAGES}
MADE = {"deploy.md"}  # by a script of its own, which its own test runs
PYTHON = [
    pytest.param(name, blocks, id=name)
    for name, text in TEXTS.items()
    if name not in MADE and (blocks := re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
]
FENCED = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMANDS = [
    pytest.param(name, command, id=f"{name}:{number}")
    for name, text in TEXTS.items()
    for number, command in enumerate(
        line
        for block in FENCED.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
        if re.search(r"(-m lit_distill\.|\blit-distill )", line)
    )
]
EXPERIMENTS = [
    pytest.param(block, id=f"{name}:{number}")
    for name, text in TEXTS.items()
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    if block.startswith("# @package _global_") and "/model@" in block
]


def test_there_is_something_to_hold() -> None:
    assert len(PYTHON) >= 6
    assert len(COMMANDS) >= 20
    assert len(EXPERIMENTS) >= 2


@pytest.mark.parametrize(("name", "blocks"), PYTHON)
def test_python_of_a_page_runs_from_top_to_bottom(
    name: str, blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any("from transformers " in block for block in blocks):
        pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, name, "exec"), names)


FORWARDING = ("compare", "search")  # what they do not know themselves, their trainings do


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_of_a_page_composes(page: str, command: str) -> None:
    found = re.search(r"(?:-m lit_distill\.|\blit-distill )(\w+)(.*)", command)
    assert found is not None
    name, text = found[1], re.sub(r"<\w+>", "x", found[2])
    if name == "completion":
        assert re.findall(r"\w+", text)[0] in SCRIPTS
        return
    if not (conf_dir() / f"{name}.yaml").is_file():
        assert name == "convert", f"there is no command {name}"
        return
    words = shlex.split(re.sub(r"--config-dir[ =]\S+", "", text), comments=True)
    sweep = bool({"-m", "--multirun"} & set(words))
    overrides = [
        word
        for word in Arguments(allow=True).overrides(words)
        if not word.startswith(("-", "hydra.run.dir=", "hydra.sweep.dir="))
    ]
    if sweep:  # the first of each value is a job of the sweep
        overrides = [word if "[" in word else word.split(",")[0] for word in overrides]
    if name in FORWARDING:
        known = {*yaml.safe_load((conf_dir() / f"{name}.yaml").read_text()), "sweep"}
        name, overrides = "train", [word for word in overrides if re.split(r"[.=]", word)[0] not in known]
        if not any(word.startswith("experiment=") for word in overrides):
            overrides.append("experiment=kd_pptsmv2")
    run_dir = ["++run_dir=x"] if name == "train" else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(name, open_data([*overrides, *run_dir]), return_hydra_config=sweep)
    if page == "recipes.md" and name == "train":
        assert config.models.Student is not None
        assert instantiate(config.data, _convert_="all").num_classes == config.data.num_classes


@pytest.mark.parametrize("block", EXPERIMENTS)
def test_an_experiment_of_a_page_composes(block: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "shown.yaml").write_text(block, encoding="utf-8")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "experiment=shown", "run_dir=x"])
    assert config.losses


@pytest.mark.parametrize("name", TEXTS)
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[name]):
        if not re.match(r"[a-z]+:", target):
            assert (DOCS / name).parent.joinpath(target).exists(), f"{name} links {target}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for name, text in TEXTS.items():
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            entries = re.findall(r"^(?:.*<)?([\w/]+)>?$", tree, re.MULTILINE)
            listed |= {str(Path(name).parent / entry) for entry in entries}
    assert {name.removesuffix(".md") for name in TEXTS} - {"index"} <= listed
