"""The commands of docs/scaling.md compose, and its arithmetic is that of the table in benchmarks/RESULTS.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("-m lit_distill.train ")[2]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if "lit_distill.train" in line
]


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    sweep = words[0] == "-m"
    overrides = [word for word in words if word != "-m" and not word.startswith("hydra.run.dir=")]
    if sweep:  # the first of each value is a job of the sweep
        overrides = [word.split(",")[0] for word in overrides]
    if any(word.startswith("hydra/launcher=") for word in overrides):
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", open_data([*overrides, f"run_dir={tmp_path}"]), return_hydra_config=sweep)
    assert config.models.Student is not None
    if "trainer=ddp" in overrides:
        assert config.trainer.strategy == "ddp"


def test_the_options_that_the_page_names_exist(tmp_path: Path) -> None:
    named = ["trainer.strategy=fsdp", "+trainer.sync_batchnorm=true", "+losses.rkd_angle.loss.gather=true",
             "data.num_frames=8", "optimizer=sgd", "trainer.precision=bf16-mixed", "resume=auto"]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        compose("train", open_data(["experiment=rkd_angle_pptsmv2", "data=kinetics400", *named, f"run_dir={tmp_path}"]))


def test_the_memory_is_that_of_the_benchmark() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for network in ("Student: PPTSMv2", "Teacher: PPTSMResNet"):
        row = next(line for line in results.splitlines() if line.startswith(f"| {network} |"))
        *_, full, half = (cell.strip() for cell in row.strip("|").split("|"))
        assert f"| {full} | {half} |" in PAGE
