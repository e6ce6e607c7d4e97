"""What users type and what Hydra gets, for every command."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lit_distill._command.command import Command
from lit_distill.cli import COMMANDS

TYPED = {
    "train": ["experiment=kd_pptsmv2", "models.Teacher.pretrained=a (1).ckpt#Teacher", "+x=1", "~y"],
    "test": ["run=a (1)", "model=Teacher", "--allow", "mine", "--allow=other.Model", "split=val"],
    "predict": ["run=a", "input=it's, here.mp4", "model=Teacher"],
    "select": ["run=a", "unlabelled=b, c", "model=Teacher", "--allow=mine"],
    "export": ["weights=a=b.safetensors", "output=c d.onnx"],
    "benchmark": ["run=a", "input=b.mp4", "model=Teacher"],
    "doctor": ["experiment=kd_pptsmv2", "--json"],
    "report": ["a (1)", "b", "split=test", "--allow", "mine"],
    "compare": [
        "experiments=[baseline,kd]", "teacher=null", "overrides={kd: ['a=1']}", "data=moving_digits",
        "--config-dir", "x",
    ],
    "search": ["experiment=kd_pptsmv2", "sweep=kd", "space={seed: [0, 1]}", "hydra.job.chdir=true"],
    "index": ["data=video_list", "data.root=a b"],
    "pack": ["data=video_list", "output=a b"],
}  # fmt: skip


def command(name: str) -> Command:
    found = importlib.import_module(f"lit_distill.{name}").main
    assert isinstance(found, Command)
    return found


def test_every_command_is_here() -> None:
    here = {*TYPED, "convert"}  # convert takes its arguments without Hydra
    assert here == set(COMMANDS), (
        f"TYPED of this file and COMMANDS of cli.py differ by {', '.join(sorted(here ^ set(COMMANDS)))}: "
        "give each command in TYPED arguments as a user types them"
    )


@pytest.mark.parametrize("name", TYPED)
def test_hydra_reads_what_was_typed_and_a_process_started_by_it_gets_the_same(name: str) -> None:
    overrides = command(name).overrides(TYPED[name])
    assert command(name).overrides(overrides) == overrides
    OverridesParser.create().parse_overrides(overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("test", ["run='a (1)'", "named=Teacher", "split=val", "++allow=[mine,other.Model]"]),
        ("doctor", ["experiment=kd_pptsmv2", "as_json=true"]),
        ("report", ["split=test", "++allow=[mine]", "runs=['a (1)','b']"]),
        (
            "search",
            ["sweep=kd", "++space={seed: [0, 1]}", "train=['experiment=kd_pptsmv2','hydra.job.chdir=true']"],
        ),
        (
            "compare",
            [
                "experiments=[baseline,kd]", "teacher.experiment=null", "++overrides={kd: ['a=1']}", "config_dir='x'",
                "train=['data=moving_digits']",
                r"command='python -m lit_distill.compare experiments=[baseline,kd] teacher=null "
                r""""overrides={kd: [\'a=1\']}" data=moving_digits --config-dir x'""",
            ],
        ),
    ],
)  # fmt: skip
def test_what_hydra_gets(name: str, overrides: list[str]) -> None:
    assert command(name).overrides(TYPED[name]) == overrides


@pytest.mark.parametrize(
    ("name", "typed", "message"),
    [
        ("test", ["--allow"], "--allow expects a package, such as --allow my_package, got ''"),
        ("predict", ["--allow", "a b"], "--allow expects a package, such as --allow my_package, got 'a b'"),
        ("search", ["-m"], "search is a sweep itself: give sweep=<name> or space={…}, not -m"),
        ("search", ["--multirun"], "search is a sweep itself"),
        ("compare", ["+hydra.run.dir=x"], r"hydra.run.dir is what compare sets itself, .*, not \+hydra.run.dir=x"),
        ("report", ["a", "run=b"], "give folders by themselves or as run=…, not both: a"),
        ("report", ["a", "runs=[b]"], "not both: a"),
    ],
)
def test_what_means_something_else_is_refused(name: str, typed: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(name).overrides(typed)


def test_an_option_keeps_its_value() -> None:
    for name in ("report", "compare", "search"):
        for option in (["--cfg", "job"], ["-c", "hydra"], ["--package", "a"], ["--config-name", "b"]):
            assert command(name).overrides(option)[:2] == option


def test_a_folder_whose_name_has_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert command("report").overrides([f"{tmp_path}/a=b"]) == [f"runs=['{tmp_path}/a=b']"]
