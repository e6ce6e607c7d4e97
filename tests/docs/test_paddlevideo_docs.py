"""docs/paddlevideo.md: its commands compose to the values of its table, and what it shows is what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir
from lit_distill._command.overrides import arguments_of

TEXT = (Path(__file__).parents[2] / "docs" / "paddlevideo.md").read_text(encoding="utf-8")
RECIPES = ["DML, 16", "DML, 8", "alone, 16", "alone, 8", "self, 16"]


def table(*header: str) -> list[list[str]]:
    """The rows of the table with this header."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in TEXT.splitlines() if line[:1] == "|"]
    start = rows.index(list(header)) + 2
    end = next((i for i in range(start, len(rows)) if len(rows[i]) != len(header)), len(rows))
    return [row for row in rows[start:end] if not set(row[0]) <= {"-"}]


def commands() -> dict[str, list[str]]:
    found = dict(re.findall(r"^\| ([a-zA-Z]+, \d+) +\| `(experiment=[^`]+)`", TEXT, flags=re.MULTILINE))
    assert list(found) == RECIPES
    return {recipe: command.split() for recipe, command in found.items()}


def value_of(config: DictConfig, key: str) -> Any:
    """What the config says; or else the default of the class or function that the section above names."""
    value = OmegaConf.select(config, key)
    if value is None and "." in key:
        section, _, name = key.rpartition(".")
        node = OmegaConf.select(config, section)
        if node is None:
            return None
        target = node.get(
            "_target_", "lit_distill.LossTerm" if section.split(".")[0] in ("losses", "val_losses") else None
        )
        return arguments_of(target).get(name)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_composes_to_the_published_values(recipe: str, tmp_path: Path) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=open_data([*commands()[recipe], f"run_dir={tmp_path}"]))
    rows = table("setting", "PaddleVideo", "here", *RECIPES)
    assert len(rows) > 30
    for setting, _, key, *values in rows:
        listed = values[RECIPES.index(recipe)]
        got = value_of(config, key.strip("`"))
        if key.endswith("_target_`") and isinstance(got, str):
            assert got.rpartition(".")[2] == listed, f"{setting}: {key}"
        else:
            expected = None if listed == "–" else yaml.safe_load(listed)
            assert (list(got) if isinstance(got, tuple) else got) == expected, f"{setting}: {key}"


def test_what_the_converter_writes_is_shown_as_it_composes(tmp_path: Path) -> None:
    """The experiment in the docs is a good one, and equals the recipe's command but for the places of the files."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "shown.yaml").write_text(shown, encoding="utf-8")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        ours = compose("train", overrides=open_data([*commands()["DML, 16"], "run_dir=x"]))
        theirs = compose("train", overrides=[f"hydra.searchpath=[file://{tmp_path}]", "experiment=shown", "run_dir=x"])
    keys = [key.strip("`") for _, _, key, *_ in table("setting", "PaddleVideo", "here", *RECIPES)]
    for key in keys:
        other = key.replace("losses.ce.", "losses.ce_student.")
        assert _plain(value_of(ours, key)) == _plain(value_of(theirs, other)), key


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_the_commands_of_the_page_name_models_that_exist() -> None:
    shown = re.search(r"`--model` is `(pptsmv2)`, `(pptsm_resnet18)`, ((?:`\d+`(?:, | or )?)+)", TEXT)
    assert shown is not None
    depths = re.findall(r"\d+", shown[3])
    for name in (shown[1], shown[2], *(f"pptsm_resnet{depth}" for depth in depths)):
        assert (conf_dir() / "model" / f"{name}.yaml").is_file()
