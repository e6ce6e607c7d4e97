"""Image classifiers of torchvision and timm are distilled by commands alone, end to end on a few small JPEGs."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import load_file

from image_folders import CLASSES, write_images
from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir
from lit_distill._command.run import user_error_text
from lit_distill.models.state_files import file_sha256
from lit_distill.training.train import build_module, run

PAGE = (Path(__file__).parents[1] / "docs" / "images.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +python -m lit_distill\.train (.*?[^\\])$", PAGE, re.MULTILINE | re.DOTALL)
SMALL = [
    "data.size=32", "data.batch_size=4", "+data.num_workers=0", "trainer=cpu", "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1", "callbacks.progress=null",
]  # fmt: skip


def composed(*overrides: str, root: Path, run_dir: Path) -> DictConfig:
    given = [*overrides, *SMALL, f"data.root={root}", f"data.num_classes={len(CLASSES)}", f"run_dir={run_dir}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", open_data(given))


def train(*overrides: str, root: Path, run_dir: Path) -> dict[str, Any]:
    results = run(composed(*overrides, root=root, run_dir=run_dir))
    assert all(math.isfinite(value) for value in results["final"].values())
    return results


def written(run_dir: Path) -> dict[str, Any]:
    """The card of the student, whose weights fill the network that the card describes."""
    card: dict[str, Any] = json.loads((run_dir / "student.json").read_text())
    state = load_file(run_dir / "student.safetensors")
    instantiate({**card["model"], "pretrained": None}).load_state_dict(state, strict=True)
    assert card["class_names"] == list(CLASSES)
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    assert {file for file in files if not file.startswith("tensorboard/")} == {
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.csv", "results.json", "student.json",
        "student.safetensors",
    }  # fmt: skip
    return card


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a teacher, trained alone."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    results = train("experiment=baseline_image", "models.Student.name=resnet18", root=images, run_dir=folder)
    assert "val/Student/top1" in results["final"]
    return folder


def test_the_trained_teacher_is_described(teacher: Path) -> None:
    assert written(teacher)["model"] == {
        "_target_": "lit_distill.models.torchvision_model", "name": "resnet18", "num_classes": 3, "pretrained": None,
    }  # fmt: skip


def test_kd_from_a_trained_torchvision_teacher(images: Path, teacher: Path, tmp_path: Path) -> None:
    weights = teacher / "student.safetensors"
    results = train(
        "experiment=kd_image", "models.Teacher.name=resnet18", f"models.Teacher.pretrained={weights}",
        "models.Student.name=mobilenet_v3_small", "data.mix={_target_: lit_distill.data.CutMix}", root=images,
        run_dir=tmp_path,
    )  # fmt: skip
    assert {"val/Student/top1", "val/Teacher/top1", "train/ce", "train/kd", "val/kd"} <= results["final"].keys()
    taught = json.loads((teacher / "results.json").read_text())["best"]["val/Student/top1"]
    assert results["final"]["val/Teacher/top1"] == pytest.approx(taught), "the teacher is the one that was trained"
    card = written(tmp_path)
    assert card["teachers"]["Teacher"]["loaded_sha256"] == file_sha256(weights)
    stored = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert not any(key.startswith("models.Teacher.") for key in stored)


def test_dml_with_a_student_of_timm(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = train(
        "experiment=dml_image", "model@models.Student=timm", "models.Student.name=mobilenetv3_small_050",
        "models.Teacher.name=resnet18", root=images, run_dir=tmp_path / "dml",
    )  # fmt: skip
    assert {"val/Student/top1", "val/Teacher/top1", "train/dml", "train/ce_teacher"} <= results["final"].keys()
    assert written(tmp_path / "dml")["model"]["_target_"] == "lit_distill.models.timm_model"
    assert "experiment=kd_image models.Teacher.pretrained=" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow  # tests/test_train.py has it of a run on clips
def test_a_peer_teaches_alone_after_dml(images: Path, tmp_path: Path) -> None:
    train("experiment=dml_image", "models.Teacher.name=resnet18", root=images, run_dir=tmp_path / "dml")
    peer = f"{tmp_path / 'dml' / 'checkpoints' / 'best.ckpt'}#Teacher"
    train(
        "experiment=kd_image", "models.Teacher.name=resnet18", f"models.Teacher.pretrained='{peer}'", root=images,
        run_dir=tmp_path / "kd",
    )  # fmt: skip


def test_a_timm_teacher_teaches_features_to_a_torchvision_student(images: Path, tmp_path: Path) -> None:
    """Taps by the networks' own names, in-place activations behind them and all."""
    results = train(
        "experiment=dml_image", "model@models.Teacher=timm", "models.Teacher.name=resnet18",
        "+loss@losses.hint.loss=fitnet", "+losses.hint.pair=[Student.layer2,Teacher.layer3]", root=images,
        run_dir=tmp_path,
    )  # fmt: skip
    assert "train/hint" in results["final"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=kd_image"], r"Teacher is frozen but has no weights: give models\.Teacher\.pretrained=<file>"),
        (["experiment=baseline_image", "models.Student.name=resnet17"], r"has no classifier .*the closest are \["),
        (["experiment=baseline_image", "data.num_classes=4"], r"data\.num_classes is 4, .*: set data\.num_classes=3"),
        (["experiment=baseline_image", "data.num_classes=???"], r"data\.num_classes"),
        (["experiment=baseline_image", "data.root=nowhere"], r"no folder nowhere .*, set data\.root=<folder>"),
        (["experiment=baseline_image", "models.Student.num_classes=9"],
         r"Student gives 9 classes but the data has 3: .*models\.Student\.num_classes=3"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(images: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    given = [*SMALL, f"data.root={images}", f"data.num_classes={len(CLASSES)}", *overrides, f"run_dir={tmp_path}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", open_data(given))
    with pytest.raises(Exception, match=message) as caught:
        run(config)
    text = user_error_text(caught.value)
    assert text is not None
    assert "\n" not in text


def test_weights_that_do_not_fill_a_frozen_teacher(images: Path, teacher: Path, tmp_path: Path) -> None:
    """A classifier reset for other classes would teach nonsense."""
    overrides = [
        "experiment=kd_image", "models.Teacher.name=resnet18", "models.Teacher.num_classes=5",
        f"models.Teacher.pretrained={teacher / 'student.safetensors'}", "+models.Teacher.reset_head=true",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="Teacher is frozen but its weights file does not fill it"):
        train(*overrides, root=images, run_dir=tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_page_builds_its_module(command: str, tmp_path: Path) -> None:
    """The Teacher's weights aside, which the page names and nobody has."""
    overrides = [word for word in shlex.split(command.replace("\\\n", " ")) if not word.startswith("hydra.run.dir=")]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", open_data([*overrides, f"run_dir={tmp_path}"]))
    instantiate(config.data)
    config.frozen = []
    for model in config.models.values():
        model.pretrained = None
    assert build_module(config).student == "Student"


def test_the_page_has_commands_and_a_config_that_reads_small_images(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 5
    (tmp_path / "my" / "data").mkdir(parents=True)
    (tmp_path / "my" / "data" / "cifar.yaml").write_text(PAGE.partition("```yaml\n")[2].partition("```")[0])
    write_images(tmp_path / "images", side=32)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [f"hydra.searchpath=[file://{tmp_path / 'my'}]", "experiment=baseline_image",
                                   "data=cifar", f"data.root={tmp_path / 'images'}", "data.num_classes=3",
                                   f"run_dir={tmp_path}"])  # fmt: skip
    data = instantiate(config.data)
    data.setup("fit")
    assert {data.datasets[split][0][0].shape for split in ("train", "val")} == {(3, 32, 32)}
    assert config.preset.epochs == 90
