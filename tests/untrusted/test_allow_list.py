"""The allow-list of untrusted configs: one error names all that is not admitted. tests/conf tries our own configs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lit_distill._command.command import conf_dir
from lit_distill.data import InputView
from lit_distill.runs.opened import load_run
from lit_distill.untrusted.check import check_targets, read_config


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", list(overrides))


def plain(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def test_a_run_folder_that_was_moved_writes_where_it_is(tmp_path: Path) -> None:
    config = composed("experiment=baseline_pptsmv2", "run_dir=/elsewhere/run")
    with pytest.raises(ValueError, match=r"callbacks\.best\.dirpath.*place to write"):
        check_targets(plain(config))
    checked = check_targets(plain(config), run_dir=tmp_path)
    assert checked["callbacks"]["best"]["dirpath"] == f"{tmp_path}/checkpoints"


def test_a_teacher_cache_writes_in_the_run_folder_alone(tmp_path: Path) -> None:
    config = composed("experiment=kd_pptsmv2", "teacher_cache=on", f"run_dir={tmp_path}/run")
    for folder in (str(tmp_path), "/etc", "~"):
        config.teacher_cache.folder = folder
        with pytest.raises(ValueError, match=r"teacher_cache\.folder .* place to write outside the run folder"):
            check_targets(plain(config), run_dir=tmp_path / "run")
    config.teacher_cache.folder = f"{tmp_path}/run/teachers"
    check_targets(plain(config), run_dir=tmp_path / "run")


def test_a_run_of_an_ensemble_of_views_is_opened(tmp_path: Path) -> None:
    given = [
        "experiment=kd_pptsmv2", "data=moving_digits_tiny", "teacher=frozen", f"run_dir={tmp_path}/run",
    ]  # fmt: skip
    config = composed(*given)
    member = OmegaConf.to_container(config.models.Student, resolve=True)
    view = {"_target_": "lit_distill.data.InputView", "num_frames": 2, "size": 16}
    config.models.Student = {
        "_target_": "lit_distill.models.Ensemble", "members": {"A": member, "B": member}, "inputs": {"A": view},
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    run = load_run(tmp_path / "run")
    network: Any = run._built("models", "Student", plain(config.models.Student), torch.nn.Module)
    assert network.inputs == {"A": InputView(num_frames=2, size=16)}


def test_all_that_is_not_admitted_is_told_at_once_with_its_key_and_how_to_admit_it() -> None:
    tree = {
        "models": {"Student": {"_target_": "my_package.Net"}, "Teacher": {"_target_": "torch.nn.Identity"}},
        "losses": [{"loss": {"_target_": "os.system"}}, {"_target_": "torch.nn.MSELoss"}],
    }
    with pytest.raises(ValueError, match=r"^2 things in an untrusted config are not admitted: ") as caught:
        check_targets(tree)
    message = str(caught.value)
    for part in ("models.Student: 'my_package.Net'", "losses.0.loss: 'os.system'", "--allow my_package", "allow=("):
        assert part in message
    assert "Teacher" not in message


def test_a_message_is_short_however_much_is_wrong() -> None:
    long = {"x" * 900: {"y" * 900: [{"_target_": f"os.system{number}" * 20} for number in range(99)]}}
    with pytest.raises(ValueError, match=r"^99 things .*; and 94 more\. If") as caught:
        check_targets(long)
    assert len(str(caught.value)) < 1_500


V2 = "torchvision.transforms.v2"


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": f"{V2}.Resize", "size": 60_000}, {"_target_": f"{V2}.Resize", "size": [224, 60_000]},
        {"_target_": f"{V2}.Resize", "_args_": [60_000]}, {"_target_": f"{V2}.CenterCrop", "size": [1, 1024]},
        {"_target_": f"{V2}.Resize", "size": math.inf}, {"_target_": f"{V2}.Resize", "size": math.nan},
        {"_target_": f"{V2}.RandomCrop", "size": 32, "padding": 10**6}, {"_target_": f"{V2}.Pad", "padding": 500},
        {"_target_": f"{V2}.Pad", "_args_": [500]}, {"_target_": f"{V2}.RandomZoomOut"},
        {"_target_": f"{V2}.ScaleJitter", "target_size": [64, 64]},
        {"_target_": f"{V2}.RandomRotation", "degrees": 45, "expand": True},
        {"_target_": f"{V2}.Compose", "transforms": [{"_target_": f"{V2}.Pad", "padding": 16}] * 32},
    ],
)  # fmt: skip
def test_a_transform_enlarges_no_image_without_end(node: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not admitted"):
        check_targets({"data": {"eval_transform": node}})


def test_usual_transforms_are_admitted() -> None:
    steps = [
        {"_target_": f"{V2}.RandomResizedCrop", "size": 224, "scale": [0.08, 1.0], "ratio": [0.75, 1.33]},
        {"_target_": f"{V2}.RandomCrop", "size": 32, "padding": 4}, {"_target_": f"{V2}.RandomHorizontalFlip"},
        {"_target_": f"{V2}.Resize", "size": [256, 256], "antialias": True},
        {"_target_": f"{V2}.Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.4, 57.1, 57.4]},
        {"_target_": f"{V2}.RandAugment", "num_ops": 2, "magnitude": 9},
        {"_target_": f"{V2}.RandomRotation", "degrees": 9},
    ]  # fmt: skip
    tree = {"transform": {"_target_": f"{V2}.Compose", "transforms": steps}}
    assert check_targets(tree) == tree


def test_a_message_holds_no_control_characters() -> None:
    with pytest.raises(ValueError, match="not admitted") as caught:
        check_targets({"a": {"_target_": "evil\x1b[2J\n" + "x" * 10_000}})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "users_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("import os\nfrom torch.nn import Linear\ndef net(width=1): return width\n")
    (folder / "parts.py").write_text("class Part:\n    pass\nTABLE = {}\n")
    (tmp_path / "users_package_of_another.py").write_text("def net(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("users_package")]:
        monkeypatch.delitem(sys.modules, name)
    return "users_package"


def test_a_package_is_admitted_by_the_caller(package: str) -> None:
    config = {"model": {"_target_": "users_package.net", "width": 3}, "part": {"_target_": "users_package.parts.Part"}}
    with pytest.raises(ValueError, match="not admitted"):
        check_targets(config)
    assert package not in sys.modules, "nothing is imported by a name that is not admitted"
    checked = check_targets(config, allow=[package])
    assert instantiate(OmegaConf.create(checked["model"])) == 3
    check_targets({"a": {"_target_": "users_package.net"}}, allow=["users_package.net"])


@pytest.mark.parametrize("target", [
    "users_package.os.system", "users_package.Linear", "users_package.net.__globals__", "users_package.parts.TABLE",
    "users_package.nothing", "users_package_of_another.net", "users_packag.net",
])  # fmt: skip
def test_an_admitted_package_admits_only_its_own(target: str, package: str) -> None:
    with pytest.raises(ValueError, match="not admitted"):
        check_targets({"a": {"_target_": target}}, allow=[package])


def test_nothing_is_imported_while_anything_is_refused(package: str) -> None:
    config = {"a": {"_target_": "users_package.net"}, "b": {"_target_": "os.system"}}
    with pytest.raises(ValueError, match="1 thing"):
        check_targets(config, allow=[package])
    assert package not in sys.modules


def test_the_config_cannot_admit_anything_itself() -> None:
    with pytest.raises(ValueError, match="not admitted"):
        check_targets({"allow": ["os", "my_package"], "a": {"_target_": "my_package.Net"}})


@pytest.mark.parametrize(
    "entry", ["os", "os.system", "hydra.utils", "builtins", "torch", "lightning", "", "a b", "a..b"]
)
def test_what_would_admit_anything_cannot_be_admitted(entry: str) -> None:
    with pytest.raises(ValueError, match="allow"):
        check_targets({}, allow=[entry])
    with pytest.raises(ValueError, match="collection of names"):
        check_targets({}, allow="my_package")


def test_interpolations_become_what_omegaconf_makes_of_them() -> None:
    tree: dict[str, Any] = {
        "a": 3, "b": {"c": "${a}", "d": "${.c}", "e": "${..a}-${.c}", "f": ["${a}", "${b.f[0]}", {"g": "${b.h}"}]},
        "i": "${b}", "j": "${i.c}", "k": None, "l": "${k}", "m": True, "n": "x${m}", "o": "???", "p": 1e-4, "q": "${p}",
    }  # fmt: skip
    tree["b"]["h"] = [1, 2]
    config = OmegaConf.create(tree)
    assert check_targets(plain(config)) == OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("tree", [{"a": "${b}"}, {"a": "${b.c}", "b": {"c": "???"}}, {"a": "x${b}", "b": {"c": 1}}])
def test_interpolations_that_lead_nowhere_are_told(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a: "):
        check_targets(tree)


def test_only_plain_values_are_taken() -> None:
    for odd in (object(), b"bytes", {1, 2}, Path("x")):
        with pytest.raises(ValueError, match="a: a config holds"):
            check_targets({"a": odd})
    with pytest.raises(ValueError, match="name"):
        check_targets({(1, 2): 3})


def test_a_card_is_read_too(tmp_path: Path) -> None:
    card = {"model": {"_target_": "lit_distill.models.PPTSMv2", "num_classes": 4, "num_frames": 2}, "sha256": "ab"}
    (tmp_path / "student.json").write_text(json.dumps(card))
    assert read_config(tmp_path / "student.json") == card
    (tmp_path / "student.json").write_text('{"a": ' * 100_000)
    with pytest.raises(ValueError, match="refused"):
        read_config(tmp_path / "student.json")
