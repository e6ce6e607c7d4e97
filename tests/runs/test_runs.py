"""A run read back: the right weights in bare networks, the preprocessing of evaluation, one line for each fault."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_distill import load_student
from lit_distill.data import read_frames
from lit_distill.data.preprocess import Preprocess
from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.runs.opened import load_run
from lit_distill.runs.run import Run, _answering
from run_folders import CLASSES, VIDEOS, video_overrides, video_root, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_root(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def stored(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", video_overrides(root))


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(stored, tmp_path / "run")


def edited(file: Path, **changes: Any) -> None:
    content = yaml.safe_load(file.read_text())
    for path, value in changes.items():
        *parts, last = path.split("__")
        node = content
        for part in parts:
            node = node[part]
        node[last] = value
    file.write_text(json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content))


def equal_state(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def test_the_student_is_bare_ready_and_the_stored_one(stored: Path) -> None:
    for path in (stored, stored / "student.safetensors", str(stored)):
        student = load_student(path)
        assert isinstance(student, PPTSMv2)
        assert not any(module.training for module in student.modules())
        assert equal_state(student, load_file(stored / "student.safetensors"))


def batch_of(run: Run, views: Any) -> Tensor:
    data = run.data(views=views, eval_batch_size=len(VIDEOS))
    data.setup("test")
    (batch,) = list(data.test_dataloader())
    inputs: Tensor = data.on_after_batch_transfer(batch, 0)[0]
    return inputs


@pytest.mark.parametrize("views", ["center", "dense"])
def test_a_path_becomes_the_tensor_of_evaluation(root: Path, stored: Path, views: Any) -> None:
    wanted = batch_of(load_run(stored), views)
    student = load_student(stored, views=views)
    preprocess: Any = student.preprocess
    for number in range(len(VIDEOS)):
        assert torch.equal(preprocess(root / f"{number}.mp4")[0], wanted[number]), VIDEOS[number]


@pytest.mark.parametrize("views", ["center", "dense"])
def test_frames_decoded_elsewhere_become_it_too(root: Path, folder: Path, views: Any) -> None:
    edited(folder / "config.yaml", data__resize="exact")
    run = load_run(folder)
    wanted, preprocess = batch_of(run, views), run.preprocess(views=views)
    for number, (frames, *_) in enumerate(VIDEOS):
        video = read_frames(root / f"{number}.mp4", range(frames))
        assert torch.equal(preprocess(video)[0], wanted[number]), VIDEOS[number]
        assert torch.equal(preprocess(torch.from_numpy(video))[0], wanted[number])


def test_the_preprocessing_tells_what_it_does(stored: Path) -> None:
    preprocess: Any = load_student(stored).preprocess
    assert isinstance(preprocess, Preprocess)
    assert preprocess.class_names == CLASSES
    assert (preprocess.frames, preprocess.size, preprocess.scale) == (4, 28, 32)
    assert preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert preprocess.input_shape == (4, 3, 28, 28)
    with pytest.raises(ValueError, match=r"expected the frames of a video \(T, H, W, 3\), RGB of type uint8"):
        preprocess(torch.zeros(4, 3, 28, 28))


def test_the_student_needs_no_data(folder: Path) -> None:
    edited(folder / "config.yaml", data__root="/nowhere")
    assert load_student(folder).preprocess.class_names == CLASSES  # type: ignore[union-attr]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_any_model_comes_out_of_either_checkpoint(stored: Path, checkpoint: str) -> None:
    run = load_run(stored)
    state = torch.load(stored / "checkpoints" / f"{checkpoint}.ckpt", weights_only=True)["state_dict"]
    for name, kind in (("Student", PPTSMv2), ("Teacher", PPTSMResNet)):
        own = {key.removeprefix(f"models.{name}."): v for key, v in state.items() if key.startswith(f"models.{name}.")}
        for given in (checkpoint, str(stored / "checkpoints" / f"{checkpoint}.ckpt")):
            model = run.model(name, checkpoint=given)
            assert isinstance(model, kind)
            assert equal_state(model, own)


def test_a_frozen_teacher_comes_from_its_own_file_and_must_be_unchanged(
    root: Path, stored: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "teacher.ckpt"
    shutil.copy(stored / "checkpoints" / "best.ckpt", weights)
    frozen = ["experiment=kd_pptsmv2", *video_overrides(root)[1:], f"models.Teacher.pretrained='{weights}#Teacher'"]
    run = load_run(write_run(tmp_path / "kd", frozen))
    assert equal_state(run.model("Teacher"), load_run(stored).model("Teacher").state_dict())
    shutil.copy(stored / "checkpoints" / "last.ckpt", weights)
    with pytest.raises(ValueError, match=r"teacher.ckpt#Teacher has changed since .* Teacher is not what it was then"):
        run.model("Teacher")
    weights.unlink()
    with pytest.raises(ValueError, match=r"Teacher was frozen, .* can't be loaded: no weights file"):
        run.model("Teacher")


def spoil_weights(folder: Path) -> None:
    file = folder / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


FAULTS = {
    "weights changed": (spoil_weights, r"student.safetensors is not the file that its card describes: its sha256 is"),
    "card lost": (lambda f: (f / "student.json").unlink(), r"has no card student.json beside it"),
    "config lost": (lambda f: (f / "config.yaml").unlink(), r"run is no run folder: it has no config.yaml"),
    "config empty": (lambda f: (f / "config.yaml").write_text(""), r"config.yaml is (no config of a run|refused)"),
    "no models": (lambda f: edited(f / "config.yaml", models={}), r"it names no models or no data"),
    "class names": (
        lambda f: edited(f / "student.json", class_names=["jump", "run"]),
        r"contradicts itself: 3 classes of Student, 3 of the data, 2 class names",
    ),
    "classes": (lambda f: edited(f / "config.yaml", data__num_classes=4), r"contradicts itself|does not fit"),
    "network": (
        lambda f: edited(f / "config.yaml", models__Student__class_expand=17),
        r"student.safetensors, Student does not fit PPTSMv2: .*last_conv",
    ),
    "code in the model": (
        lambda f: edited(f / "config.yaml", models__Student={"_target_": "os.system", "command": "true"}),
        r"not admitted: models.Student: 'os.system'",
    ),
    "code in the data": (
        lambda f: edited(f / "config.yaml", data__mix={"_target_": "os.system", "command": "true"}),
        r"not admitted: data.mix: 'os.system'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_one_line(folder: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value)


def test_what_is_not_built_need_not_be_admitted(folder: Path) -> None:
    edited(folder / "config.yaml", losses__dml__loss={"_target_": "my_package.MyLoss"})
    assert load_student(folder) is not None


def test_wrong_places_and_names_are_told(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run folder: did you mean .*one\?"):
        load_run(stored.parent)
    with pytest.raises(FileNotFoundError, match="no run folder"):
        load_run(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_run(tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match=r"has no model 'Assistant': it has Student, Teacher"):
        load_run(stored).model("Assistant")
    shutil.copy(stored / "student.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no card .*student.json: student.safetensors needs it beside it"):
        load_run(tmp_path / "student.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no epoch3.ckpt to take Student from: give checkpoint=best\|last"):
        load_run(stored).model(checkpoint="epoch3.ckpt")


class Structured(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x * 2, "aux": x}


@pytest.mark.parametrize("answer", ["out", {"Student": "out"}])
def test_a_network_that_gives_a_structure_gives_its_answer_to_the_commands(answer: Any) -> None:
    x = torch.ones(2, 3)
    network = _answering(Structured(), "Student", answer)
    assert torch.equal(network(x), x * 2)
    assert torch.equal(torch.export.export(network, (x,)).module()(x), x * 2)
    assert isinstance(_answering(Structured(), "Teacher", {"Student": "out"})(x), dict)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, "3", [3]])
def test_what_is_no_number_of_classes_is_refused(number: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes: expected a number, got "):
        _ = Run(folder=tmp_path, config={"data": {"num_classes": number}}).num_classes
