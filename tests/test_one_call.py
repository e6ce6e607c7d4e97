"""distill(): two networks and two loaders in, the student and its gain out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lit_distill
from lit_distill import DistillModule, LossTerm, losses
from lit_distill.losses import KDLoss
from lit_distill.one_call import METHODS, distill
from lit_distill.schedules import WarmupCosine

EXPERIMENTS = Path(lit_distill.__file__).parents[2] / "conf" / "experiment"


def convolutional(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 4),
    )  # fmt: skip


def trained(width: int) -> nn.Module:
    network = convolutional(width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.03)
    for _ in range(6):
        for images, labels in quarters(64, 0):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
            optimizer.step()
    return network


def quarters(count: int, seed: int) -> DataLoader[Any]:
    """Images whose class is the quarter that is bright."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def one_step(folder: Path) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


def test_the_student_comes_back_with_its_gain_and_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    student, teacher = convolutional(4), trained(8)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    done = distill(student, teacher, quarters(64, 0), quarters(64, 1), max_epochs=6, lr=0.03, folder=tmp_path)
    assert done.student is student
    assert not student.training
    assert done.start is not None
    assert done.end is not None
    assert done.gain is not None
    assert done.gain == done.end - done.start > 0.2
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    state = load_file(tmp_path / "student.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    correct = [(student(images).argmax(dim=1) == labels).float() for images, labels in quarters(64, 1)]
    assert torch.cat(correct).mean().item() == pytest.approx(done.end), "the weights of the best epoch"
    printed = capsys.readouterr().out
    assert done.code in printed
    assert f"({100 * done.gain:+.1f})" in printed
    assert (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("method", METHODS)
def test_the_printed_code_makes_the_module_that_was_trained(method: str, tmp_path: Path) -> None:
    student, teacher = convolutional(2), convolutional(4)
    done = distill(
        student, teacher, quarters(16, 0), method=method, trainer=one_step(tmp_path), folder=tmp_path, verbose=False
    )
    assert (done.start, done.end, done.gain) == (None, None, None)
    scope: dict[str, Any] = {
        **vars(losses), "DistillModule": DistillModule, "LossTerm": LossTerm, "WarmupCosine": WarmupCosine,
        "torch": torch, "nn": nn, "partial": partial, "student": convolutional(2), "teacher": convolutional(4),
    }  # fmt: skip
    exec(done.code, scope)
    written = scope["module"]
    assert list(map(repr, written.composer.terms.values())) == list(map(repr, done.module.composer.terms.values()))
    assert written.frozen == done.module.frozen == (() if METHODS[method].peers else ("Teacher",))
    written.build((torch.zeros(4, 1, 8, 8), torch.arange(4)))


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_those_of_the_experiments(method: str) -> None:
    text = (EXPERIMENTS / f"{method}_pptsmv2.yaml").read_text(encoding="utf-8")
    terms = yaml.safe_load(text)["losses"]
    weight = terms[method].get("weight", 1.0)
    if isinstance(weight, dict):  # a ramp
        weight = weight["end"]
    assert METHODS[method].weight == weight
    assert METHODS[method].cross_entropy == terms["ce"].get("weight", 1.0)
    assert dict(METHODS[method].arguments) == terms[method].get("loss", {})
    assert METHODS[method].labels == (terms[method].get("target") == "GroundTruth")


def test_layers_are_found_by_resolution_and_by_the_logits(tmp_path: Path) -> None:
    done = distill(
        convolutional(2), nn.Sequential(convolutional(3)), quarters(16, 0), method=["kd", "rkd", "vid", "similarity"],
        trainer=one_step(tmp_path), folder=tmp_path, verbose=False,
    )  # fmt: skip
    terms = done.module.composer.terms
    assert [ref.text for ref in terms["rkd"].references] == ["Student.8:input", "Teacher.0.8:input"]
    assert [ref.text for ref in terms["vid"].references] == ["Student.2", "Student.5", "Teacher.0.2", "Teacher.0.5"]
    assert [ref.text for ref in terms["similarity"].references] == ["Student.5", "Teacher.0.5"]


def test_ones_own_terms_weights_and_optimizer(tmp_path: Path) -> None:
    done = distill(
        convolutional(2), convolutional(4), quarters(16, 0), method="kd", weights={"ce": 0.5, "kd": 2.0},
        losses={"hot": LossTerm(KDLoss(temperature=9.0), pair=("Student", "Teacher"))},
        optimizer=partial(torch.optim.SGD, lr=0.1), trainer=one_step(tmp_path), folder=tmp_path, verbose=False,
    )  # fmt: skip
    assert {name: term.weight for name, term in done.module.composer.terms.items()} == {"ce": 0.5, "kd": 2.0, "hot": 1}
    assert isinstance(done.trainer.optimizers[0], torch.optim.SGD)


def only_vectors() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "fancy"}, "method is one of kd, dkd, .*got 'fancy': for another loss"),
        ({"method": []}, "method is one of kd, .* got none"),
        ({"method": ["kd", "dml"]}, "dml trains the teacher as well"),
        ({"weights": {"dkd": 1.0}}, "weights is of some of ce, kd, got dkd"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        ({"method": "fitnet", "student": only_vectors()}, r"no feature maps \(B, C, H, W\) in Student"),
        ({"method": "rkd", "student": nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())}, "no linear classifier in Stud"),
    ],
)
def test_what_it_cannot_do_is_said_before_training(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"student": convolutional(2), "teacher": convolutional(2), "folder": tmp_path, "verbose": False}
    call = partial(distill, train=quarters(16, 0), **{**given, "trainer": one_step(tmp_path), **arguments})
    if "max_epochs" in arguments:
        call = partial(call, trainer=None)
    with pytest.raises(ValueError, match=message):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:top1 and top5 of")
def test_outputs_that_are_no_logits_are_refused(tmp_path: Path) -> None:
    maps = nn.Conv2d(1, 4, 3, padding=1)
    pixels = TensorDataset(torch.randn(8, 1, 8, 8), torch.randint(4, (8, 8, 8)))
    loader: DataLoader[Any] = DataLoader(pixels, batch_size=4)
    with pytest.raises(ValueError, match=r"needs logits .* build a DistillModule with your own metrics"):
        distill(maps, nn.Conv2d(1, 4, 1), loader, loader, trainer=one_step(tmp_path), folder=tmp_path, verbose=False)
