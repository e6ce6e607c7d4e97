"""The commands of docs/recipes.md compose, and what they train is built."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lit_distill import schedules
from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("-m lit_distill.train ")[2]
    for block in re.findall(r"```bash\n(.*?)```", PAGE.replace("\\\n", " ").replace("$PWD", "/here"), re.DOTALL)
    for line in block.splitlines()
    if "lit_distill.train" in line
]


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_training_command_composes(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    overrides = [word.split(",")[0] if words[0] == "-m" else word for word in words]
    overrides = [
        word.replace("=<file>", "=a.ckpt") for word in overrides if word != "-m" and not word.startswith("hydra.")
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", open_data([*overrides, f"run_dir={tmp_path}"]))
    assert config.models.Student is not None
    assert instantiate(config.data, _convert_="all").num_classes == config.data.num_classes


def test_every_schedule_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    public = {
        name for name, value in vars(schedules).items()
        if isinstance(value, type) and issubclass(value, schedules.Schedule) and value is not schedules.Schedule
    }  # fmt: skip
    assert {*rows, "Constant"} >= public
