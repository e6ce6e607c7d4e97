"""A diagnosis names what is wrong with a training, says nothing where nothing is, and changes nothing."""

from __future__ import annotations

import copy
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import LightningDataModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill._command.command import conf_dir
from lit_distill.data import VideoDataModule
from lit_distill.data.decoding.encode import write_video
from lit_distill.diagnosis.cost import measure
from lit_distill.diagnosis.diagnose import diagnose
from lit_distill.losses import KDLoss
from lit_distill.models.identity import state_sha256
from lit_distill.training import doctor, train


class Net(nn.Module):
    """A body, a head, and perhaps a branch that leads nowhere."""

    def __init__(self, *, unused: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)
        self.dropout = nn.Dropout(0.5)
        if unused:
            self.spare = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(self.norm(self.body(x)).relu()))
        return out


def data(count: int = 64) -> LightningDataModule:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    inputs = torch.randn(count, 4, generator=generator) * 0.1
    inputs[torch.arange(count), labels] += 3
    pairs = TensorDataset(inputs, labels)
    return LightningDataModule.from_datasets(pairs, pairs, batch_size=16)


def module(student: nn.Module, teacher: nn.Module | None = None, **losses: LossTerm) -> DistillModule:
    terms = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")), **losses}
    models = {"Student": student} if teacher is None else {"Student": student, "Teacher": teacher}
    return DistillModule(
        models, terms, frozen=[] if teacher is None else ["Teacher"], optimizer=partial(torch.optim.SGD, lr=0.1)
    )


def kd(weight: float = 1.0) -> LossTerm:
    return LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=weight)


def trained() -> nn.Module:
    """A teacher that knows the classes: the largest input names them."""
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3, 4) * 5)
        net.bias.zero_()
    return net


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    torch.manual_seed(0)
    diagnosis = diagnose(module(Net(), trained(), kd=kd()), data())
    assert diagnosis.findings == ()
    assert diagnosis.models["Student"].output_shape == (16, 3)
    assert (diagnosis.models["Teacher"].trainable, diagnosis.models["Teacher"].parameters) == (0, 15)
    assert diagnosis.terms["kd"].shapes == {"Student": (16, 3), "Teacher": (16, 3)}
    assert diagnosis.terms["kd"].gradient_norms["Student"] > 0
    assert diagnosis.accuracy is not None
    assert diagnosis.accuracy.top1["Teacher"] == 1.0


def test_gradient_norms_are_those_of_the_weighted_term() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    once, thrice = (
        diagnose(module(copy.deepcopy(net), trained(), kd=kd(weight)), data()).terms["kd"] for weight in (1.0, 3.0)
    )
    assert thrice.gradient_norms["Student"] == pytest.approx(3 * once.gradient_norms["Student"], rel=1e-5)
    assert thrice.value == pytest.approx(once.value)


@pytest.mark.parametrize(
    ("student", "teacher", "losses", "finding"),
    [
        (Net(unused=True), None, {}, "no term's gradient reaches 2 parameters of Student: spare.weight, spare.bias"),
        (Net(), nn.Linear(4, 3), {"kd": kd()}, "the frozen Teacher is no better than chance: top-1"),
        (Net(), trained(), {"kd": kd(1e9)}, r"term 'kd' pulls Student .* times as hard as 'ce'"),
        (
            Net(), trained(),
            {"dead": LossTerm(lambda a, b: 0 * a.sum() + 0 * b.sum(), pair=("Student", "Teacher"))},
            "term 'dead' gives no gradient to Student: its captures are dead ends",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    student: nn.Module, teacher: nn.Module | None, losses: dict[str, LossTerm], finding: str
) -> None:
    torch.manual_seed(1)
    if isinstance(teacher, nn.Linear) and "chance" in finding:
        nn.init.zeros_(teacher.weight)
    diagnosis = diagnose(module(student, teacher, **losses), data())
    assert len(diagnosis.findings) == 1
    with pytest.raises(AssertionError, match=finding):
        raise AssertionError(diagnosis.findings[0])


def test_a_teacher_below_its_student_is_named() -> None:
    weak = trained()
    assert isinstance(weak, nn.Linear)
    with torch.no_grad():
        weak.bias.copy_(torch.tensor([16.0, 0.0, 0.0]))  # half of what is class 1 or 2 goes to class 0
        weak.weight[2] *= 1.5
    diagnosis = diagnose(module(trained(), weak, kd=kd()), data())
    assert any("the frozen Teacher is below its student before training" in f for f in diagnosis.findings)


def test_wrong_classes_are_an_error_as_in_training() -> None:
    with pytest.raises(ValueError, match="Student gives 2 classes but the data has 3"):
        diagnose(module(Net(classes=2)), data())


def test_training_after_a_diagnosis_is_what_it_would_have_been() -> None:
    def weights(*, looked_at: bool) -> str:
        torch.manual_seed(5)
        net, source = module(Net(), trained(), kd=kd()), data()
        if looked_at:
            diagnose(net, source)
            measure(net, source, steps=2, epochs=1)
        Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False, accelerator="cpu").fit(net, datamodule=source)  # fmt: skip
        return state_sha256(net.state_dict())

    assert weights(looked_at=True) == weights(looked_at=False)


def test_the_cost_adds_up() -> None:
    cost = measure(module(Net()), data(), steps=2, epochs=10, accumulate=2)
    assert cost.steps == 20
    assert cost.hours == pytest.approx(cost.step_seconds * 20 / 3600)
    parameters = sum(p.numel() * 4 for p in Net().parameters())
    assert cost.bytes["parameters"] == cost.bytes["gradients"] == parameters
    assert cost.bytes["activations"] == sum(cost.kept_bytes.values()) >= 16 * 8 * 4
    assert list(cost.seconds) == ["data wait", "forward Student", "losses", "backward", "optimizer"]
    assert cost.step_seconds == pytest.approx(2 * sum(cost.seconds.values()))
    assert cost.validation_hours > 0
    assert cost.folder_bytes == 2 * cost.checkpoint_bytes + parameters
    with pytest.raises(ValueError, match="at least 1, got 0, 1, 1"):
        measure(module(Net()), data(), steps=0, epochs=1)


def tensors(count: int) -> tuple[Tensor, ...]:
    dataset = data(count).train_dataloader().dataset
    assert isinstance(dataset, TensorDataset)
    return dataset.tensors


class Slow(TensorDataset):
    """Ten milliseconds a sample."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        time.sleep(0.01)
        return tuple(tensor[index] for tensor in self.tensors)


def test_a_step_waits_for_data_that_workers_make_slower_than_it_trains() -> None:
    pairs = Slow(*tensors(64))
    slow = LightningDataModule.from_datasets(pairs, pairs, batch_size=8, num_workers=1)
    cost = measure(module(Net()), slow, steps=3, epochs=1)
    rest = sum(seconds for part, seconds in cost.seconds.items() if part != "data wait")
    assert cost.seconds["data wait"] > 0.06 - rest  # 8 samples take 80 ms, while the rest of a step is done


def test_a_frozen_network_keeps_nothing_for_the_backward_pass() -> None:
    cost = measure(module(Net(), trained(), kd=kd()), data(), steps=1, epochs=1)
    assert cost.kept_bytes["forward Teacher"] == 0 < cost.kept_bytes["forward Student"]


@pytest.mark.parametrize(("samples", "seen"), [(4, [0, 3, 6, 9]), (10, list(range(10))), (64, list(range(10)))])
def test_the_short_validation_is_spread_over_all_samples(samples: int, seen: list[int]) -> None:
    asked: list[int] = []

    class Counting(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            asked.append(index)
            return tuple(tensor[index] for tensor in self.tensors)

    val = Counting(*tensors(10))
    source = LightningDataModule.from_datasets(TensorDataset(*tensors(12)), val, batch_size=4)
    accuracy = diagnose(module(Net(), trained(), kd=kd()), source, validation_samples=samples).accuracy
    assert asked == seen
    assert accuracy is not None
    assert accuracy.samples == len(seen)


class Colors(nn.Module):
    """Classes by the mean color of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, video: Tensor) -> Tensor:
        out: Tensor = self.fc(video.mean((1, 3, 4)))
        return out


@pytest.mark.parametrize("stored", ["video", "frames"])
@pytest.mark.parametrize(
    ("size", "aspect", "found"),
    [
        ((48, 48), "fixed", "of the 4 training videos looked at by more than 5 %: 48x48 becomes 32x42, 31 % off"),
        ((96, 54), "fixed", "96x54 becomes 42x32, 35 % off its shape; set data.aspect=keep"),
        ((48, 48), "keep", None),
        ((64, 48), "fixed", None),
        ((32, 32), "fixed", None),  # at the scale already, so nothing is scaled
    ],
)
def test_videos_that_the_published_scaling_stretches_are_named(
    stored: Any, size: tuple[int, int], aspect: Any, found: str | None, tmp_path: Path
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, size[1], size[0], 3), np.uint8)
    lines: list[str] = []
    for name in "abcd":
        if stored == "video":
            write_video(tmp_path / f"{name}.mp4", frames)
            lines.append(f"{name}.mp4 {len(lines) % 3}")
        else:
            (tmp_path / name).mkdir()
            for number, frame in enumerate(frames, 1):
                Image.fromarray(frame).save(tmp_path / name / f"img_{number:05}.jpg")
            lines.append(f"{name} {len(frames)} {len(lines) % 3}")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    videos = VideoDataModule(
        root=tmp_path, train_list="list.txt", val_list="list.txt", num_classes=3, num_frames=3, size=28, scale=32,
        aspect=aspect, format=stored, batch_size=2, num_workers=0,
    )  # fmt: skip
    findings = diagnose(module(Colors()), videos, validation_samples=0).findings
    assert [finding for finding in findings if "data.aspect=fixed" in finding] == list(findings)
    assert len(findings) == (found is not None)
    assert (found or "") in "".join(findings)


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "train",
            ["experiment=baseline_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1",
             f"data.root={folder / 'data'}", f"run_dir={folder / 'run'}"],
        )  # fmt: skip
    train.run(config)
    return folder


def test_a_teacher_of_another_preprocessing_is_named(teacher_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "doctor",
            ["experiment=kd_pptsmv2", "model@models.Teacher=pptsmv2", "data=moving_digits_tiny", "as_json=true",
             f"data.root={teacher_run / 'data'}", "+data.mean=[0.5,0.5,0.5]", "steps=0", "run_dir=unused",
             f"models.Teacher.pretrained={teacher_run / 'run' / 'student.safetensors'}"],
        )  # fmt: skip
    diagnosis, cost = doctor.run(config)
    assert cost is None
    assert any("Teacher was trained on inputs normalised by another mean" in f for f in diagnosis.findings)
    told = json.loads(capsys.readouterr().out)  # nothing else is said there
    assert told["findings"] == list(diagnosis.findings)
    assert told["models"]["Teacher"]["frozen"] is True
