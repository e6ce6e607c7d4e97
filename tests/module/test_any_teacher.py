"""Teachers as they are: functions and exported programs, of other classes, sizes and normalisations than the data."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossTerm
from lit_distill.data import InputView
from lit_distill.losses import KDLoss

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
CE = LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth"))
KD = LossTerm(KDLoss(), ("Student", "Teacher"))


def module(teacher: Any, **given: Any) -> DistillModule:
    torch.manual_seed(0)
    return DistillModule(
        {"Student": nn.Linear(4, 3), "Teacher": teacher},
        {"ce": CE, "kd": KD},
        optimizer=partial(torch.optim.SGD, lr=0.1),
        **{"frozen": ["Teacher"], **given},
    )


def kd_of(made: DistillModule) -> Tensor:
    made.build((X, Y))
    with made.composer.capture(made.named) as signals:
        made.run_models(X, signals)
    return made.composer(signals, Y).unweighted["kd"]


def trained(made: LightningModule) -> Trainer:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    trainer.fit(made, loader, loader)
    return trainer


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.fc(x), "more": x}


@pytest.mark.parametrize("as_file", [False, True])
def test_a_teacher_of_more_classes_teaches_those_that_the_data_has(tmp_path: Path, as_file: bool) -> None:
    (tmp_path / "classes.txt").write_text("5\n0\n\n2\n", encoding="utf-8")
    teacher = Named()
    made = module(teacher, classes={"Teacher": tmp_path / "classes.txt" if as_file else [5, 0, 2]})
    expected = KDLoss()(made.models["Student"](X), teacher.fc(X)[:, [5, 0, 2]])
    torch.testing.assert_close(kd_of(made), expected.detach(), rtol=1e-6, atol=1e-6)
    assert "val/Teacher/top1" in trained(made).callback_metrics


def test_classes_of_maps_and_tokens_are_selected_where_they_stand() -> None:
    made = DistillModule(
        {"Student": nn.Conv2d(3, 2, 1), "Teacher": nn.Conv2d(3, 5, 1)},
        {"mse": LossTerm(nn.MSELoss(), ("Student", "Teacher"))},
        frozen=["Teacher"],
        classes={"Teacher": [4, 1]},
    )
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(made.run_models(images, evaluate=True)["Teacher"], made.models["Teacher"](images)[:, [4, 1]])


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"Teacher": [6, 0, 1]}, r"classes names 6, but Teacher gives \(8, 6\): count from 0"),
        ({"Student": [0, 1, 2]}, r"classes names \['Student'\], which learn: build them with the classes of the data"),
        ({"Techer": [0]}, r"classes names \['Techer'\], but the models are"),
        ({"Teacher": [0, 0, 1]}, r"classes of Teacher are the different indices, from 0, .* got \[0, 0, 1\]"),
        ({"Teacher": ["a"]}, r"classes of Teacher are the different indices"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        module(Named(), classes=classes).build((X, Y))


def test_a_teacher_of_other_classes_is_told_of_it() -> None:
    with pytest.raises(ValueError, match=r"Teacher gives 6 classes but the data has 3: .* classes={'Teacher': \["):
        module(Named()).build((X, torch.eye(3)[Y]))


def by_weights(x: Tensor) -> Tensor:
    return x[:, :3] * 2.0


def exported() -> Any:
    torch.manual_seed(1)
    return torch.export.export(
        nn.Linear(4, 3).eval(), (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)
    )


@pytest.mark.parametrize("make", [lambda: by_weights, exported], ids=["function", "program"])
def test_functions_and_exported_programs_teach(make: Any) -> None:
    teacher = make()
    run = teacher if callable(teacher) and not hasattr(teacher, "module") else teacher.module()
    made = module(teacher)
    torch.testing.assert_close(kd_of(made), KDLoss()(made.models["Student"](X), run(X)).detach())
    assert "val/Teacher/top1" in trained(made).callback_metrics
    with pytest.raises(ValueError, match=r"Teacher is a function or a program, which cannot learn: freeze it, frozen"):
        module(teacher, frozen=[])


class Session:
    """Has what is asked of a session of ONNX Runtime."""

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x")]

    def run(self, names: None, given: dict[str, Any]) -> list[Any]:
        return [given["x"][:, :3] * 2.0]

    def __deepcopy__(self, memo: Any) -> Session:
        raise TypeError("cannot be copied")


def test_a_session_teaches() -> None:
    made = copy.deepcopy(module(Session()))
    torch.testing.assert_close(kd_of(made), KDLoss()(made.models["Student"](X), by_weights(X)).detach())


def test_a_program_of_one_batch_size_says_how_to_export_it() -> None:
    program = torch.export.export(nn.Linear(4, 3).eval(), (X,))
    with pytest.raises(
        ValueError, match=r"the exported program refuses a batch of another form .* with dynamic_shapes"
    ):
        module(program).build((X[:4], Y[:4]))


class Own(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Own):
    pass


def test_a_function_teaches_a_module_that_exists() -> None:
    trainer = trained(Distilled().distill(lambda x: by_weights(x), student="net", losses={"kd": KD}))
    assert "distill/kd" in trainer.callback_metrics


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.25, 0.5, 1.0])


def normalised(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 4, 3, 8, 8)])
def test_a_teacher_sees_pixels_by_its_own_normalisation(shape: tuple[int, ...]) -> None:
    pixels = torch.rand(shape)
    view = InputView.of({"mean": HALF[0], "std": HALF[1]})
    seen = view.of_data(*IMAGENET)(normalised(pixels, *IMAGENET))
    torch.testing.assert_close(seen, normalised(pixels, *HALF), rtol=1e-5, atol=1e-5)
    raw = InputView(mean=HALF[0], std=HALF[1], data_mean=[0.0] * 3, data_std=[1.0] * 3, size=4)
    assert torch.equal(raw(pixels), raw.of_data(*IMAGENET)(pixels))
    torch.testing.assert_close(raw(pixels), InputView(size=4)(normalised(pixels, *HALF)), rtol=1e-5, atol=1e-5)


def test_the_data_module_says_how_batches_are_normalised() -> None:
    made = DistillModule(
        {"Student": nn.Conv2d(3, 2, 1), "Teacher": nn.Conv2d(3, 2, 1)},
        {"mse": LossTerm(nn.MSELoss(), ("Student", "Teacher"))},
        frozen=["Teacher"],
        inputs={"Teacher": {"mean": HALF[0], "std": HALF[1]}},
    )
    pixels = torch.rand(2, 3, 8, 8)
    inputs = normalised(pixels, *IMAGENET)
    with pytest.raises(ValueError, match="how the batches are normalised is not known, as no data module has mean"):
        made.run_models(inputs, evaluate=True)
    made.expect_normalisation_of(SimpleNamespace(mean=IMAGENET[0], std=IMAGENET[1]))
    found = made.run_models(inputs, evaluate=True)["Teacher"]
    torch.testing.assert_close(found, made.models["Teacher"](normalised(pixels, *HALF)), rtol=1e-5, atol=1e-5)


def test_of_a_mapping_the_pictures_are_seen() -> None:
    view = InputView(size=4)
    batch = {"pixel_values": torch.rand(2, 3, 8, 8), "ids": torch.zeros(2, 5)}
    seen = view.of_batch(batch)
    assert seen["pixel_values"].shape == (2, 3, 4, 4)
    assert seen["ids"] is batch["ids"]
    with pytest.raises(ValueError, match=r"expected one entry of clips or images, got \[\] of \['ids'\]"):
        view.of_batch({"ids": batch["ids"]})


@pytest.mark.parametrize(
    "given", [{"mean": [0.5]}, {"mean": [0.5], "std": [0.0]}, {"data_mean": [0.5, 1], "data_std": [1]}]
)
def test_mean_and_deviation_go_together(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mean and .*std go together, a number a channel, std above 0"):
        InputView.of(given)
