"""`lit-distill`: one line a command, each with its help, and paths as they are."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.util import find_spec

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import processes
from lit_distill import cli
from lit_distill._command.arguments import OF_A_RUN, quote_paths

PATHS = st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)


def test_help_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in ("train", "test", "predict", "pack", "convert"):
        assert f"  {name} " in said
    for name in cli.COMMANDS:
        assert f"\n  {name} " in said
        assert find_spec(f"lit_distill.{name}") is not None


def test_no_command_and_an_unknown_one_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["predct"]) == 2
    assert "no command 'predct'; did you mean predict?" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")  # other tests imported it
def test_every_command_has_a_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cli.COMMANDS:
        monkeypatch.setattr(sys, "argv", ["lit-distill", name, "--help"])
        with suppress(SystemExit):  # argparse ends the process, Hydra's do not
            cli.main()
        assert f"python -m lit_distill.{name}" in capsys.readouterr().out


def test_a_command_ends_with_its_own_exit_code() -> None:
    result = processes.run(["-m", "lit_distill.cli", "predict", "run=/nowhere", "input=a.mp4"])
    assert result.returncode == 1
    assert result.stderr.startswith("error: no run folder /nowhere")


@given(PATHS)
def test_any_path_is_taken_literally(path: str) -> None:
    (override,) = OF_A_RUN.overrides([f"input={path}"])
    assert OF_A_RUN.overrides([override]) == [override], "processes of one command get what it got"
    quoted = path[0] in "'\"" and path[-1] == path[0]
    if not quoted and path not in ("null", "~") and not path.startswith("~/") and "${" not in path:
        (parsed,) = OverridesParser.create().parse_overrides([override])
        assert str(parsed.value()) == path


def test_the_command_that_a_run_prints_at_its_end_is_taken() -> None:
    """``kd_pptsmv2 models.Teacher.pretrained='…/best.ckpt#Teacher'``, as a shell hands it over."""
    given = ["models.Teacher.pretrained=run (1)/best.ckpt#Teacher", "ckpt_path=a,b.ckpt", "+models.X.pretrained=x#y"]
    parsed = OverridesParser.create().parse_overrides(quote_paths(given))
    assert [str(override.value()) for override in parsed] == ["run (1)/best.ckpt#Teacher", "a,b.ckpt", "x#y"]
    result = processes.run(["-m", "lit_distill.train", "experiment=kd_pptsmv2", given[0], "--cfg", "job"])
    assert result.returncode == 0, result.stderr
    assert "pretrained: run (1)/best.ckpt#Teacher" in result.stdout


def test_sweeps_keep_their_lists() -> None:
    sweep = OF_A_RUN.overrides(["-m", "run=a,b", "model=Student,Teacher"])
    assert sweep == ["-m", "run='a','b'", "named=Student,Teacher"]
    parsed = OverridesParser.create().parse_overrides(sweep[1:])
    assert [list(override.sweep_string_iterator()) for override in parsed] == [["'a'", "'b'"], ["Student", "Teacher"]]
