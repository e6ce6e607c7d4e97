"""Every key that takes a path takes any path, in every command and in sweeps, and what is printed can be pasted."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

import processes
from lit_distill._command.arguments import as_hydra, path_argument, quote_paths, takes_path
from lit_distill._command.command import conf_dir
from lit_distill.searching.study import markdown

from .test_arguments import command

NAMES = [
    "plain", "lr=0.1", "a,b", "a, b", "[a]", "[a,b]", "{a: 1}", "a{0..3}.tar", "it's", "'a", "a'", "'a' b", '"a',
    'say "a"', "a b", " a", "a ", "$HOME", "a$", "a#b", "#a", "a:b", "a: b", "a\\b", "a\\", "a\\'", "\\", "(1)",
    "a)", "~x", "~x/y", "übung", "视频", "a?*", "a!", "a;b", "a|b", "a&b", "<a>", "`a`", "@a", "+a", "-a", "=", "a==",
    "true", "1e3", "a???", "a\tb", "${", "a${b", "choice(a", "%20", "null.ckpt",
]  # fmt: skip
KEYS = {
    "train": [
        "hydra.run.dir", "hydra.sweep.dir", "data.root", "data.train_list", "data.cache_dir", "+data.unlabelled",
        "models.Teacher.pretrained", "ckpt_path", "teacher_cache.folder", "trainer.default_root_dir",
        "stages.a.data.root", "callbacks.best.dirpath", "logger.csv.folder",
        "+stages.a.models.Student.pretrained",
    ],
    "test": ["run", "weights", "checkpoint", "output", "data.root", "data.test_list"],
    "predict": ["run", "weights", "input", "output", "checkpoint"],
    "select": ["run", "unlabelled", "output", "data.root"],
    "export": ["run", "weights", "input", "output"],
    "benchmark": ["run", "weights", "input", "output"],
    "doctor": ["data.root", "models.Teacher.pretrained"],
    "report": ["output", "data.root"],
    "compare": ["folder", "output", "teacher.weights"],
    "search": ["folder"],
    "index": ["data.root", "bad_list"],
    "pack": ["data.root", "output"],
}  # fmt: skip


def paste(line: str) -> list[str]:
    """The words that bash makes of a line."""
    pasted = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], check=True, capture_output=True, text=True)
    return pasted.stdout.split("\0")[:-1]


def value_of(override: Override) -> str:
    return str(OmegaConf.create({"x": override.value()}).x)


@pytest.mark.parametrize("sweep", [False, True], ids=["one", "sweep"])
@pytest.mark.parametrize("name", KEYS)
def test_any_name_of_a_file_is_taken(name: str, sweep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in NAMES:
        for key in KEYS[name]:
            if sweep and name in ("compare", "search"):
                continue  # they refuse it
            if "," in path or (path.startswith("[") and key == "run"):  # where it may mean several, the file decides
                Path(path).mkdir(exist_ok=True)
            overrides = command(name).overrides([*(["-m"] if sweep else []), f"{key}={path}"])
            assert command(name).overrides(overrides) == overrides
            taken = next(override for override in overrides if override.lstrip("+").startswith(f"{key.lstrip('+')}="))
            (parsed,) = OverridesParser.create().parse_overrides([taken])
            assert not parsed.is_sweep_override(), taken
            assert value_of(parsed) == path, taken


@pytest.mark.parametrize("forwarding", ["search", "compare"])
def test_what_is_forwarded_to_trainings_takes_any_name(forwarding: str) -> None:
    for path in NAMES:
        typed = f"models.Teacher.pretrained={path}"
        overrides = command(forwarding).overrides([typed])
        parsed = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(overrides)}
        (given,) = as_hydra([str(OmegaConf.create({"x": parsed["train"].value()}).x[0])])
        (override,) = OverridesParser.create().parse_overrides([given])
        assert value_of(override) == path


def test_hydra_composes_them() -> None:
    """All names in one composition, each as the folder of a stage, and the hardest as the value of other keys."""
    stages = {f"stages.s{number}.data.root": path for number, path in enumerate(NAMES)}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for path in ("it's", "a, b", "{a: 1}", "a\\'", "a${b"):
            keys = dict.fromkeys(("hydra.run.dir", "data.root", "models.Teacher.pretrained"), path)
            given = [*(f"{key}={value}" for key, value in keys.items()), *(f"+{key}={stages[key]}" for key in stages)]
            config: Any = compose(
                "train", as_hydra(["experiment=kd_pptsmv2", "run_dir=x", *given]), return_hydra_config=True
            )
            for key, value in (keys | stages).items():
                assert OmegaConf.select(config, key) == value
            stages = {}


def test_lists_sweeps_and_interpolations_stay_what_they_are() -> None:
    assert quote_paths(["runs=[a (1),b=2,'c,d']", "against=[]", "data.class_names=[cat,dog]"]) == [
        "runs=['a (1)','b=2','c,d']", "against=[]", "data.class_names=['cat','dog']",
    ]  # fmt: skip
    sweep = ["-m", "lr=0.1,0.2", "data.root=a=1,b (2)", "models.T.pretrained=choice(a,b)", "experiment=glob(*)"]
    assert quote_paths(sweep) == [
        "-m", "lr=0.1,0.2", "data.root='a=1','b (2)'", "models.T.pretrained=choice(a,b)", "experiment=glob(*)",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = as_hydra(["experiment=kd_pptsmv2", "run_dir=x", "data.root=${seed}/a b", "seed=7", "ckpt_path=null"])
        config = compose("train", given)
    assert config.data.root == "7/a b"
    assert config.ckpt_path is None


def test_the_home_folder_and_a_name_that_begins_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["data.root=~/a b", "output=~", "input=~x"]) == [
        "data.root='/home/me/a b'", "output='/home/me'", "input='~x'",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["hydra.run.dir", "data.root", "+models.Teacher.pretrained"])
@pytest.mark.parametrize("line_break", ["\n", "\r"])
def test_a_line_break_is_refused_in_one_line(key: str, line_break: str) -> None:
    with pytest.raises(ValueError, match="a path has no line breaks") as raised:
        command("train").overrides([f"{key}=a{line_break}b"])
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(key.lstrip("+"))


@pytest.mark.parametrize(
    "key", ["losses.kd.unlabelled", "preset.weights", "losses.ce.loss.weight", "seed", "~data.root"]
)
def test_other_keys_are_left_to_hydra(key: str) -> None:
    assert not takes_path(key)
    assert quote_paths([f"{key}=[1,2]"]) == [f"{key}=[1,2]"]


def test_what_is_printed_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[a]", "[a,b]"):
        Path(name).mkdir()
    paths = [*NAMES, "null", "'a'", "~", "~/a"]
    words = paste(" ".join(path_argument("run", path) for path in paths))
    for path, word in zip(paths, words, strict=True):
        (override,) = OverridesParser.create().parse_overrides(command("test").overrides([word]))
        assert value_of(override) == path


def test_a_study_shows_its_command_as_it_is_typed() -> None:
    record = {"train": ["data.root=a b"], "space": {}, "trials": [], "metric": "m", "direction": "maximize"}
    (line,) = (line for line in markdown(record).splitlines() if line.startswith("`"))
    assert shlex.split(line.split("`")[1])[-1] == "data.root=a b"


@pytest.mark.parametrize("options", [(), ("-m",)], ids=["one", "sweep"])
def test_a_run_folder_of_any_name_and_its_next_command(options: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "it's [a], b=1 #x $y 视频 "
    key = "hydra.sweep.dir" if options else "hydra.run.dir"
    given = [
        "experiment=dml_pptsmv2", "data=moving_digits_tiny", "data.batch_size=4", "data.eval_batch_size=4",
        "model@models.Teacher=pptsmv2", "trainer=cpu", "trainer.max_epochs=1", "+trainer.limit_train_batches=1",
        "+trainer.limit_val_batches=1", "doctor=false",
    ]  # fmt: skip
    result = processes.run(["-m", "lit_distill.train", *options, *given, f"{key}={folder}"])
    assert result.returncode == 0, result.stderr
    (run,) = (file.parent for file in folder.rglob("results.json"))
    shown = result.stdout[result.stdout.index("next:") :].splitlines()[1].strip()
    (_, _, _, *words) = shlex.split(shown)
    assert words[-1] == f"models.Teacher.pretrained={run}/checkpoints/best.ckpt#Teacher"
    pasted = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {shown}"], check=True, capture_output=True, text=True
    ).stdout
    again = processes.run(["-m", *pasted.split("\0")[2:-1], "--cfg", "job"])
    assert again.returncode == 0, again.stderr
    assert f"{run}/checkpoints/best.ckpt#Teacher" in OmegaConf.create(again.stdout).models.Teacher.pretrained
