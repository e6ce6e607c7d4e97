"""What shells complete: by the scripts that users source, and by what is known of a line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lit_distill._command.command import conf_dir
from lit_distill._command.completion import SCRIPTS, candidates
from lit_distill.cli import COMMANDS, main
from run_folders import environment


def complete(line: str) -> list[str]:
    """What the last word of a line may become; a line that ends in a space begins another word."""
    return candidates(line.split(" "), COMMANDS)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """`lit-distill` as an installation has it."""
    path = tmp_path / "bin" / "lit-distill"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m lit_distill "$@"\n')
    path.chmod(0o755)
    return path


def in_shell(shell: str, script: str, program: Path, cwd: Path) -> list[str]:
    bare = {"bash": "--norc", "fish": "--no-config", "zsh": "-f"}[shell]
    done = subprocess.run(
        [shell, bare, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=120, check=True,
        env={**environment(), "PATH": f"{program.parent}:/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_commands_and_what_each_takes() -> None:
    assert complete("te") == ["test "]
    assert {f"{name} " for name in COMMANDS} | {"completion ", "--help ", "--version "} == set(complete(""))
    assert complete("nonsense ") == []
    assert complete("completion z") == ["zsh "]
    assert complete("doctor --j") == ["--json "]
    assert complete("test --al") == ["--allow "]
    assert complete("train --al") == []
    assert complete("train --cfg j") == ["job "]
    assert complete("convert --m") == ["--model "]


def test_groups_and_their_choices() -> None:
    assert complete("train experiment=dkd_") == ["experiment=dkd_pptsmv2 "]
    assert complete("train experiment=kd_pptsmv2 model@models.T") == ["model@models.Teacher="]
    assert "model@models.Teacher=pptsm_resnet50 " in complete("train model@models.Teacher=pptsm_")
    assert complete("train -m experiment=kd_pptsmv2,dkd_") == ["experiment=kd_pptsmv2,dkd_pptsmv2 "]
    assert complete("train +loss@losses.more.loss=rkd_a") == ["+loss@losses.more.loss=rkd_angle "]
    assert complete("search sw") == ["sweep="]
    assert complete("compare experiments=[kd_pptsmv2,dkd_") == ["experiments=[kd_pptsmv2,dkd_pptsmv2"]


def test_keys_are_those_of_what_the_line_chooses() -> None:
    assert complete("train trainer.max_e") == ["trainer.max_epochs="]
    assert complete("train traine") == ["trainer.", "trainer="]
    assert complete("train losses.kd.w") == []
    assert complete("train experiment=kd_pptsmv2 losses.kd.w") == ["losses.kd.weight="]
    assert complete("train data=ucf101 data.val_l") == ["data.val_list="]
    assert complete("train data=image_folder data.val_l") == []
    assert complete("train data=ucf101 data.vie") == ["data.views=", "data.views_per_sample="], "what configs leave out"
    assert complete("train data=ucf101 data.views=") == ["data.views=center "]
    assert complete("train data=moving_digits data.cache_g") == ["data.cache_gb="]
    assert complete("train hydra.run.") == ["hydra.run.dir="]
    assert complete("compare trainer.max_e") == ["trainer.max_epochs="], "train's keys are forwarded"
    assert complete("compare teacher.ep") == ["teacher.epochs="]
    assert complete("test mod") == ["model="]
    assert complete("test nam") == []
    assert complete("compare plots=") == ["plots=false ", "plots=true "]
    assert complete("test split=") == ["split=test "]


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "clip [1].mp4").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complete("test run=r") == ["run=runs/"]
    assert complete("report r") == ["run=", "runs/", "runs="]
    assert complete("predict input=c") == ["input=clip [1].mp4 "]
    assert complete("predict input=~/c") == ["input=~/clip [1].mp4 "]
    assert complete("train models.Teacher.pretrained=c") == ["models.Teacher.pretrained=clip [1].mp4 "]
    assert complete("train --config-dir r") == ["runs/"]
    assert "clip [1].mp4 " in complete("convert ")


def test_configs_of_ones_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "of_mine.yaml").write_text(
        "# @package _global_\ndefaults: [kd_pptsmv2, {override /data: ucf101}, _self_]\nlosses: {mine: {weight: 2}}\n"
    )
    for given in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}", f"hydra.searchpath=[file://{tmp_path}]"):
        assert complete(f"train {given} experiment=of_m") == ["experiment=of_mine "]
        assert complete(f"train {given} experiment=of_mine losses.mi") == ["losses.mine."]
        assert complete(f"train {given} experiment=of_mine losses.kd.we") == ["losses.kd.weight="]
        assert "data.val_list=" in complete(f"train {given} experiment=of_mine data.v")


def keys(config: Mapping[str, Any], parent: str = "") -> list[str]:
    """Every key of a config that is completed: not those that Hydra instantiates by."""
    found = []
    for name, node in config.items():
        if not name.startswith("_"):
            found += keys(node, f"{parent}{name}.") if isinstance(node, dict) and node else [f"{parent}{name}"]
    return found


@pytest.mark.parametrize(
    "chosen",
    [
        ["experiment=kd_pptsmv2"],
        pytest.param(["experiment=dml_pptsmv2", "data=ucf101", "optimizer=adamw"], marks=pytest.mark.slow),
        pytest.param(["experiment=ensemble_pptsmv2", "callbacks=[default,media]"], marks=pytest.mark.slow),
        ["experiment=fitnet_stages_pptsmv2", "model@models.Student=pptsm_resnet50"],
        ["experiment=kd_image", "data=image_folder"],
    ],
    ids=" ".join,
)
def test_keys_are_those_that_hydra_composes(chosen: list[str]) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", chosen)
    line = f"train {' '.join(chosen)} "
    content = OmegaConf.to_container(composed)
    assert isinstance(content, dict)
    completed = cache(lambda parent: complete(f"{line}{parent}"))
    for key in keys({str(name): node for name, node in content.items()}):
        assert f"{key}=" in completed(key[: key.rfind(".") + 1]), key


@pytest.mark.parametrize(
    ("line", "words", "replies"),
    [
        ("lit-distill te", ["lit-distill", "te"], ["test "]),
        ("lit-distill train experiment=dkd_", ["lit-distill", "train", "experiment", "=", "dkd_"], ["dkd_pptsmv2 "]),
        ("lit-distill search sweep=", ["lit-distill", "search", "sweep", "="], ["dkd ", "kd ", "layers "]),
        (
            "lit-distill train experiment=kd_pptsmv2 model@models.T",
            ["lit-distill", "train", "experiment", "=", "kd_pptsmv2", "model", "@", "models.T"],
            ["models.Teacher="],
        ),
        ("lit-distill train trainer.max_e", ["lit-distill", "train", "trainer.max_e"], ["trainer.max_epochs="]),
        ("lit-distill doctor ", ["lit-distill", "doctor", ""], []),
    ],
)
def test_bash(line: str, words: list[str], replies: list[str], program: Path, tmp_path: Path) -> None:
    """With the words that bash makes of a line: it breaks at = and @, and expects what follows the break."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
        eval "$(lit-distill completion bash)"
        complete -p lit-distill >&2
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}
        _lit_distill lit-distill
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    found = in_shell("bash", script, program, tmp_path)
    assert found == replies or (not replies and "experiment=" in found)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(program: Path, tmp_path: Path) -> None:
    def replies(line: str) -> list[str]:
        return in_shell("fish", f"lit-distill completion fish | source; complete -C '{line}'", program, tmp_path)

    assert replies("lit-distill te") == ["test"]
    assert "experiment=kd_image" in replies("lit-distill train experiment=kd_")
    assert "experiment=" in replies("lit-distill train ")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(program: Path, tmp_path: Path) -> None:
    """With compadd in place of the editor's own, which prints what it is given."""
    script = """
        compdef() { :; }
        compadd() { shift 4; print -rl -- "$@"; }
        source <(lit-distill completion zsh)
        words=(lit-distill train experiment=dkd_) CURRENT=3
        _lit_distill
        words=(lit-distill train "") CURRENT=3
        _lit_distill
    """
    lines = in_shell("zsh", script, program, tmp_path)
    assert lines[0] == "experiment=dkd_pptsmv2 "
    assert "experiment=" in lines[1:]


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "completion expects a shell, bash, zsh, fish, got 'tcsh'" in capsys.readouterr().err
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.strip() == SCRIPTS["zsh"].strip()
