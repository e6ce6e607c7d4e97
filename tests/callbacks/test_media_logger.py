"""MediaLogger: what is drawn is what was predicted, training is the same with it, and no logger is asked too much."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import ExactResume, LastCheckpoint, MediaLogger, StepSeed
from lit_distill.callbacks.media_logger import draw, is_last
from lit_distill.data.catalogue.samples import Sample
from lit_distill.loggers import EventFiles, MetricsCSV, is_installed
from lit_distill.media.drawing import (
    AGREE,
    CELL,
    CONFUSED,
    MARGIN,
    RIGHT,
    SIDE,
    WRONG,
    confusion_image,
    most_confused,
    shade,
)
from lit_distill.media.findings import Findings
from lit_distill.media.pictures import Picture

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES, SAMPLES, FRAMES, PIXELS = 4, 22, 3, 6


def bytes_of(samples: int, seed: int, *, frames: int = FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, frames, 3, PIXELS, PIXELS) if frames else (samples, 3, PIXELS, PIXELS)
    return (torch.randint(0, 3, shape, generator=generator) * 64 + 50).to(torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


class Clips(LightningDataModule):
    """Batches (inputs, target, index) with the attributes of this library's data modules."""

    mean, std = MEAN, STD
    class_names = ("run", "jump", "跳", "a name that is much too long for the room that there is beside a matrix")

    def __init__(self, *, frames: int = FRAMES, batch: int = 5) -> None:
        super().__init__()
        self.batch = batch
        self.pixels = bytes_of(SAMPLES, 2, frames=frames)
        self.targets = torch.randint(0, CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(3))
        self.train_pixels = bytes_of(8, 4, frames=frames)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(normalised(self.train_pixels), torch.arange(8) % CLASSES), batch_size=4)

    def val_dataloader(self) -> DataLoader[Any]:
        inputs = normalised(self.pixels)
        return DataLoader(TensorDataset(inputs, self.targets, torch.arange(SAMPLES)), batch_size=self.batch)


def module(*, frames: int = FRAMES, student: nn.Module | None = None) -> DistillModule:
    torch.manual_seed(0)
    features = max(1, frames) * 3 * PIXELS**2
    models: dict[str, nn.Module] = {
        name: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(features, CLASSES))
        for name in ("Student", "Teacher")
    }
    if student is not None:
        models["Student"] = student
    terms = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    return DistillModule(models, terms, frozen=["Teacher"], optimizer=partial(torch.optim.SGD, lr=0.1))


def trainer(folder: Path, callbacks: Sequence[Any], logger: Any = True, **more: Any) -> Trainer:
    arguments: dict[str, Any] = {"max_epochs": 1, **more}
    return Trainer(
        accelerator="cpu", devices=1, logger=MetricsCSV(folder) if logger is True else logger, log_every_n_steps=1,
        callbacks=[StepSeed(), *callbacks], enable_checkpointing=any(isinstance(c, LastCheckpoint) for c in callbacks),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **arguments,
    )  # fmt: skip


def answers(trained: DistillModule, data: Clips, name: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        highest = trained.eval().models[name](normalised(data.pixels)).softmax(1).max(1)
    return highest.indices, highest.values


def corner(image: Image.Image, row: int, column: int, size: int) -> tuple[int, ...]:
    x, y = (side - MARGIN - (size - at) * CELL + 3 for side, at in zip(image.size, (column, row), strict=True))
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("frames", [FRAMES, 0], ids=["clips", "images"])
def test_what_is_drawn_is_what_was_predicted(frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Findings] = []
    captions: dict[str, str] = {}

    def drawn_of(findings: Findings, trainer: Trainer) -> list[Picture]:
        seen.append(findings)
        pictures = draw(findings, trainer)
        captions.update({picture.name: picture.caption for picture in pictures})
        return pictures

    monkeypatch.setattr("lit_distill.callbacks.media_logger.draw", drawn_of)
    trained, data = module(frames=frames), Clips(frames=frames)
    trainer(tmp_path, [MediaLogger(clips=8)]).fit(trained, data)
    (folder,) = (tmp_path / "media").iterdir()
    assert folder.name == "step_00000001", "that of the row of metrics.csv"
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].startswith("1,")

    predicted, confidence = answers(trained, data, "Student")
    matrix = torch.zeros(CLASSES, CLASSES)
    for true, taken_for in zip(data.targets, predicted, strict=True):
        matrix[true, taken_for] += 1
    image = Image.open(folder / "confusion.png").convert("RGB")
    for true in range(CLASSES):
        for taken_for in range(CLASSES):
            share = float(matrix[true, taken_for] / matrix[true].sum())
            colour = shade(AGREE if true == taken_for else CONFUSED, share)
            assert corner(image, true, taken_for, CLASSES) == colour

    wrong = sorted((-float(confidence[n]), n) for n in range(SAMPLES) if predicted[n] != data.targets[n])[:8]
    (findings,) = seen
    assert [clip.place for clip in findings.clips] == [place for _, place in wrong]
    ending = "gif" if frames else "png"
    assert {p.name for p in folder.glob("wrong_*")} == {f"wrong_{n}.{ending}" for n in range(1, 9)}
    theirs = answers(trained, data, "Teacher")
    assert {bool(theirs[0][place] == data.targets[place]) for _, place in wrong} == {True, False}
    for number, clip in enumerate(findings.clips, 1):
        assert clip.target == data.targets[clip.place]
        for name, (classes, shares) in (("Student", (predicted, confidence)), ("Teacher", theirs)):
            assert clip.said[name][0] == classes[clip.place]
            assert clip.said[name][1] == pytest.approx(float(shares[clip.place]))
        told = [f"true {data.class_names[clip.target]}"]
        for name, (taken_for, confidence_of_it) in clip.said.items():
            told.append(f"{name} {data.class_names[taken_for]} {100 * confidence_of_it:.1f} %")
        assert captions[f"wrong_{number}"] == " · ".join([*told, f"sample {clip.place}"])
        pixels = data.pixels[clip.place] if frames else data.pixels[clip.place][None]
        assert torch.equal(clip.frames, pixels), "as they were before they were normalised"
        file = Image.open(folder / f"wrong_{number}.{ending}")
        assert getattr(file, "n_frames", 1) == len(pixels)
        factor = SIDE // PIXELS
        for place, frame in enumerate(pixels):
            file.seek(place)
            shown = file.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.NEAREST, (0, 0, SIDE, SIDE))
            assert factor * PIXELS == SIDE
            drawn = torch.from_numpy(np.array(shown)).int().permute(2, 0, 1)
            assert (drawn - frame.int()).abs().max() <= 8, "but for 256 colours a clip"
        if not frames:  # where colours are exact
            for line, (taken_for, _) in enumerate(clip.said.values(), 1):
                band = np.array(file.convert("RGB"))[SIDE + 4 + 16 * line : SIDE + 16 + 16 * line].reshape(-1, 3)
                colours = {tuple(pixel) for pixel in band.tolist()}
                assert (RIGHT in colours, WRONG in colours) == (taken_for == clip.target, taken_for != clip.target)


def test_training_is_the_same_with_it_and_it_runs_no_model(tmp_path: Path) -> None:
    calls: dict[str, list[int]] = {"with": [], "without": []}
    states = {}
    for kind, callbacks in (("with", [MediaLogger(every_n_validations=1)]), ("without", [])):
        trained = module()
        trained.models["Student"].register_forward_hook(lambda *_, kind=kind: calls[kind].append(1))
        trainer(tmp_path / kind, callbacks, max_epochs=3).fit(trained, Clips())
        states[kind] = (trained.state_dict(), torch.get_rng_state())
    assert len(calls["with"]) == len(calls["without"])
    assert torch.equal(states["with"][1], states["without"][1]), "no random number is drawn"
    for name, value in states["with"][0].items():
        assert torch.equal(value, states["without"][0][name])
    assert (tmp_path / "with" / "metrics.csv").read_bytes() == (tmp_path / "without" / "metrics.csv").read_bytes()
    assert len(list((tmp_path / "with" / "media").iterdir())) == 3


def test_every_so_many_validations_and_the_last_are_drawn_and_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, ckpt: Path | None = None) -> Path:
        callbacks = [MediaLogger(every_n_validations=3, clips=2), ExactResume(), LastCheckpoint(folder)]
        trainer(folder, callbacks, max_epochs=epochs).fit(module(), Clips(), ckpt_path=ckpt, weights_only=True)
        return folder

    steps = [2 * epoch + 1 for epoch in (0, 3, 5)]
    whole = run(tmp_path / "whole", 6)
    assert sorted(p.name for p in (whole / "media").iterdir()) == [f"step_{step:08d}" for step in steps]
    run(tmp_path / "broken", 2)
    run(tmp_path / "broken", 6, tmp_path / "broken" / "last.ckpt")
    for step in steps:
        for file in (whole / "media" / f"step_{step:08d}").iterdir():
            assert file.read_bytes() == (tmp_path / "broken" / file.relative_to(whole)).read_bytes()
    (tmp_path / "broken" / "media" / "step_00000099").mkdir()
    run(tmp_path / "broken", 1)
    assert [p.name for p in (tmp_path / "broken" / "media").iterdir()] == ["step_00000001"], (
        "of the run that stands here"
    )


def test_a_validation_afterwards_leaves_the_pictures_and_the_rows_of_the_training(tmp_path: Path) -> None:
    trained = module()
    trainer(tmp_path, [MediaLogger(every_n_validations=1)], max_epochs=2).fit(trained, Clips())
    media, rows = tmp_path / "media", (tmp_path / "metrics.csv").read_text().splitlines()
    files = {file: file.read_bytes() for file in media.rglob("*.*")}
    assert {file.parent.name for file in files} == {"step_00000001", "step_00000003"}
    (media / "step_00000000").mkdir()
    (media / "step_00000000" / "of_before").touch()
    run = trainer(tmp_path, [MediaLogger()])
    (validated,) = run.validate(trained, Clips(), verbose=False)
    assert {file: file.read_bytes() for file in files} == files
    assert {p.name for p in media.iterdir()} == {"step_00000000", "step_00000001", "step_00000003"}
    assert (media / "step_00000000" / "confusion.png").is_file()
    assert not (media / "step_00000000" / "of_before").exists()
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    assert after[:-1] == rows
    row = dict(zip(after[0].split(","), after[-1].split(","), strict=True))
    assert row["step"] == "0"
    assert float(row["val/Student/top1"]) == pytest.approx(validated["val/Student/top1"])

    run.fit(module(), Clips())  # another training of this folder, which began with a validation
    now = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in now[1:]] == ["0", "0", "1"]
    assert now[1] == after[-1], "the validation stays, the first training's rows are replaced"
    assert {p.name for p in media.iterdir()} == {"step_00000000", "step_00000001"}


class Stream(IterableDataset[tuple[Tensor, ...]]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self.data[place] for place in range(len(self.data)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_epochs": 5},
        {"max_epochs": 7, "check_val_every_n_epoch": 2},
        {"max_epochs": 3, "val_check_interval": 3},
        {"max_epochs": 5, "val_check_interval": 3, "check_val_every_n_epoch": 2},
        {"max_epochs": 3, "val_check_interval": 5, "check_val_every_n_epoch": None},
        {"max_epochs": -1, "max_steps": 19, "val_check_interval": 5, "check_val_every_n_epoch": None},
        {"max_epochs": -1, "max_steps": 20, "val_check_interval": 5, "check_val_every_n_epoch": None},
        {"max_epochs": -1, "max_steps": 21},
        {"max_epochs": -1, "max_steps": 24},
        {"max_epochs": -1, "max_steps": 33, "check_val_every_n_epoch": 2},
        {"max_epochs": 9, "max_steps": 7, "accumulate_grad_batches": 3},
        {"max_epochs": 9, "max_steps": 8, "val_check_interval": 4, "accumulate_grad_batches": 3},
        {"max_epochs": 4, "limit_train_batches": 5, "val_check_interval": 2},
        {"max_epochs": 7, "limit_train_batches": 5, "check_val_every_n_epoch": 3},
    ],
    ids=str,
)
def test_the_last_validation_is_known_wherever_it_falls(arguments: dict[str, Any]) -> None:
    told = said_to_be_last(arguments, stream=False)
    assert len(told) > 1
    assert told == [False] * (len(told) - 1) + [True]


@pytest.mark.parametrize(
    ("arguments", "is_known"),
    [
        ({"max_epochs": 5}, True),
        ({"max_epochs": 7, "check_val_every_n_epoch": 2}, True),
        ({"max_epochs": 7, "limit_train_batches": 5, "check_val_every_n_epoch": 3}, True),
        ({"max_epochs": -1, "max_steps": 19, "val_check_interval": 5, "check_val_every_n_epoch": None}, True),
        ({"max_epochs": 9, "max_steps": 8, "val_check_interval": 4, "accumulate_grad_batches": 3}, True),
        ({"max_epochs": 3, "val_check_interval": 3}, False),
        ({"max_epochs": -1, "max_steps": 21}, False),
        ({"max_epochs": 2, "val_check_interval": "00:00:00:00"}, True),
    ],
    ids=str,
)
def test_of_a_stream_it_is_known_as_far_as_its_length_does_not_matter(
    arguments: dict[str, Any], is_known: bool
) -> None:
    told = said_to_be_last(arguments, stream=True)
    assert len(told) > 1
    assert told == [False] * (len(told) - 1) + [is_known]


def said_to_be_last(arguments: dict[str, Any], *, stream: bool) -> list[bool]:
    """Of each validation of a training with 8 batches an epoch."""
    told: list[bool] = []

    class Told(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                told.append(is_last(trainer))

    data = Clips(batch=SAMPLES)
    rows = TensorDataset(normalised(data.train_pixels), torch.arange(8) % CLASSES)
    loader: DataLoader[Any] = DataLoader(Stream(rows) if stream else rows, batch_size=1)
    Trainer(
        accelerator="cpu", logger=False, callbacks=[Told()], enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **arguments,
    ).fit(module(), loader, data.val_dataloader())  # fmt: skip
    return told


def test_dense_views_show_the_one_in_the_middle() -> None:
    views = normalised(torch.stack([bytes_of(2, seed) for seed in (1, 2, 3)], dim=1))
    found = Findings("Student", 4, (MEAN, STD))
    found.add({"Student": torch.eye(2)}, views, torch.tensor([1, 0]), None)
    assert torch.equal(found.clips[0].frames, bytes_of(2, 2)[0])


def test_samples_without_a_label_are_not_judged() -> None:
    pixels = bytes_of(3, 1)
    found = Findings("Student", 4, (MEAN, STD))
    found.add({"Student": torch.eye(3)}, normalised(pixels), torch.tensor([-1, 1, 0]), torch.tensor([7, 8, 9]))
    whole = found.of_all_ranks(False)
    assert whole.cells["Student"] == {(1, 1): 1, (0, 2): 1}
    assert [clip.place for clip in whole.clips] == [9]
    assert torch.equal(whole.clips[0].frames, pixels[2])


def test_of_many_classes_the_most_confused_are_drawn_and_rows_hold_all_samples() -> None:
    cells = {(c, c): 5 for c in range(400)} | {(7, 300): 6, (300, 7): 2, (11, 12): 3}
    assert most_confused(cells, 400) == [7, 11, 12, 300]
    cells |= {(7, 99): 1}
    cells |= {(c, c + 1): 3 for c in range(100, 140)}
    shown = most_confused(cells, 400)
    assert len(shown) == 24
    assert shown[-1] == 300
    image = confusion_image(cells, [f"class {c}" for c in range(400)], "many")
    row = shown.index(7)
    assert image.getpixel((image.width - MARGIN - CELL + 3, image.height - MARGIN - (24 - row) * CELL + 3)) == shade(
        CONFUSED, 1 / 12
    ), "the last column is that of the others"


def test_a_target_beyond_the_scores_is_told() -> None:
    found = Findings("Student", 4, (MEAN, STD))
    found.add({"Student": torch.eye(2)}, normalised(bytes_of(2, 1)), torch.tensor([0, 5]), None)
    assert found.of_all_ranks(False).reason == "Student gives scores of 2 classes, a target is 5"
    assert draw(found, Trainer(barebones=True)) == []


def test_a_clip_names_its_file_below_the_datas_folder() -> None:
    found = Findings("Student", 1, (MEAN, STD))
    found.add({"Student": torch.eye(2)}, normalised(bytes_of(2, 1)), torch.tensor([1, 1]), torch.tensor([1, 0]))
    run = Trainer(barebones=True)
    listed = [Sample("/data/val/x.mp4", 0), Sample("/data/val/run/7.mp4", 1)]
    run.datamodule = SimpleNamespace(root="/data", datasets={"val": SimpleNamespace(samples=listed)})  # type: ignore[attr-defined]
    assert draw(found.of_all_ranks(False), run)[-1].caption == "true 1 · Student 0 73.1 % · val/run/7.mp4"


def test_foreign_data_do_not_end_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Foreign(Clips):
        mean, std = 0.5, 0.2  # type: ignore[assignment]
        class_names = range(CLASSES)  # type: ignore[assignment]
        datasets = ("train", "val")

    run = trainer(tmp_path, [MediaLogger(every_n_validations=1)], max_epochs=2)
    run.fit(module(), Foreign())
    told = " ".join(capsys.readouterr().out.split())
    assert run.current_epoch == 2
    reason = "mean and std of the data module are expected to be 3 numbers each, got 0.5 and 0.2, give MediaLogger("
    assert told.count(f"no clips: how the clips were normalised is not known: {reason}") == 1
    assert {p.name for p in tmp_path.rglob("*.png")} == {"confusion.png", "classes_Teacher.png"}
    run = trainer(tmp_path / "given", [MediaLogger(mean=MEAN, std=STD)])
    run.fit(module(), Foreign())
    assert len(list((tmp_path / "given").rglob("wrong_*.gif"))) == 4, "its datasets are no mapping, so without names"

    class Worse(Clips):
        class_names = 3  # type: ignore[assignment]

    capsys.readouterr()
    run = trainer(tmp_path / "worse", [MediaLogger(every_n_validations=1)], max_epochs=2)
    run.fit(module(), Worse())
    assert run.current_epoch == 2
    assert capsys.readouterr().out.count("media: no pictures: TypeError: ") == 1


def test_a_logger_that_cannot_begin_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(EventFiles):
        @property
        def experiment(self) -> Any:
            if run.validating:
                raise OSError("the disk is full")

    pictures = MediaLogger(every_n_validations=1)
    run = trainer(tmp_path, [pictures], logger=[Broken(tmp_path), MetricsCSV(tmp_path)], num_sanity_val_steps=0)
    run.fit(module(), Clips())
    assert capsys.readouterr().out.count("media: no pictures in Broken: OSError: the disk is full") == 1
    assert (tmp_path / "media" / "step_00000001" / "confusion.png").is_file()


def test_what_is_left_out_has_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Unlabelled(Clips):
        has_unlabelled = True

        def __init__(self) -> None:
            super().__init__()
            self.targets = torch.full_like(self.targets, -1)

    trainer(tmp_path, [MediaLogger(every_n_validations=1)], max_epochs=2).fit(module(), Unlabelled())
    assert capsys.readouterr().out.count("media: no pictures: no sample has a label") == 1
    assert not (tmp_path / "media").exists()

    found = Findings("Student", 0, None)
    found.add({"Student": torch.eye(2), "Teacher": torch.ones(2, 7), "Peer": [1]}, None, torch.tensor([0, 1]), None)
    assert found.of_all_ranks(False).left_out == {
        "Teacher": "it gives scores of 7 classes, Student of 2",
        "Peer": "it gives no class scores (B, C)",
    }


class Deaf(Logger):
    name, version = "deaf", "0"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * PIXELS**2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x.flatten(2)).permute(0, 2, 1)  # (B, C, T): a class a frame
        return scores


def test_where_nothing_can_be_drawn_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, [MediaLogger(every_n_validations=1)], logger=Deaf(), max_epochs=2).fit(module(), Clips())
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("media: no pictures: no logger takes any (Deaf)") == 1

    class FrameLabels(Clips):
        def train_dataloader(self) -> DataLoader[Any]:
            inputs = normalised(self.train_pixels)
            return DataLoader(TensorDataset(inputs, torch.zeros(8, FRAMES, dtype=torch.long)), batch_size=4)

        def val_dataloader(self) -> DataLoader[Any]:
            return self.train_dataloader()

    every = module(student=Features())
    with pytest.warns(UserWarning, match=r"top1 .* left out: its output is \(4, 4, 3\)"):
        trainer(tmp_path / "features", [MediaLogger(every_n_validations=1)], max_epochs=2).fit(every, FrameLabels())
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("no pictures: Student gives no class scores (B, C)") == 1
    assert "(4, 4, 3)" in told
    assert not (tmp_path / "features" / "media").exists()


def test_samples_that_are_no_pictures_have_a_confusion_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Vectors(Clips):
        def __init__(self) -> None:
            super().__init__()
            self.pixels, self.train_pixels = self.pixels.flatten(1), self.train_pixels.flatten(1)

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(self.train_pixels.float() / 255, torch.arange(8) % CLASSES), batch_size=4)

        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(self.pixels.float() / 255, self.targets), batch_size=4)

    trainer(tmp_path, [MediaLogger()]).fit(module(), Vectors())
    told = " ".join(capsys.readouterr().out.split())
    assert (
        told.count(
            "media: no clips: clips are shown of inputs (B, T, 3, H, W) or (B, 3, H, W), got torch.float32 (4, 324)"
        )
        == 1
    )
    (first,) = (tmp_path / "media").iterdir()
    assert {file.name for file in first.iterdir()} == {"confusion.png", "classes_Teacher.png"}


def test_without_mean_and_std_clips_are_asked_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Clips()
    bare = (data.train_dataloader(), data.val_dataloader())
    trainer(tmp_path, [MediaLogger()]).fit(module(), *bare)
    assert "give MediaLogger(mean=…, std=…)" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.rglob("wrong_*"))
    trainer(tmp_path, [MediaLogger(mean=MEAN, std=STD)]).fit(module(), *bare)
    assert len(list(tmp_path.rglob("wrong_*.gif"))) == 4


def test_a_logger_that_fails_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "media").write_text("a file is in the way")
    run = trainer(tmp_path, [MediaLogger(every_n_validations=1)], max_epochs=2)
    run.fit(module(), Clips())
    told = capsys.readouterr().out
    assert told.count("media: no pictures in MetricsCSV: ") == 1
    assert run.current_epoch == 2


@pytest.mark.skipif(not is_installed("tensorboard"), reason="needs tensorboard")
@pytest.mark.parametrize("kind", [EventFiles, partial(TensorBoardLogger, name="tensorboard", version="")])
def test_event_files_hold_the_files_as_they_are(kind: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [MetricsCSV(tmp_path / "csv"), kind(tmp_path)]
    trainer(tmp_path, [MediaLogger()], logger=loggers).fit(module(), Clips())
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (folder,) = (tmp_path / "csv" / "media").iterdir()
    files = {f"val/{file.stem}": file.read_bytes() for file in folder.iterdir()}
    assert set(events.Tags()["images"]) == set(files)
    for tag, content in files.items():
        (event,) = events.Images(tag)
        assert (event.step, event.encoded_image_string) == (1, content)
        assert (event.width, event.height) == Image.open(io.BytesIO(content)).size


def test_lightnings_own_csv_logger_has_them_in_its_folder(tmp_path: Path) -> None:
    trainer(tmp_path, [MediaLogger()], logger=CSVLogger(tmp_path, name="mine")).fit(module(), Clips())
    assert (tmp_path / "mine" / "version_0" / "media" / "step_00000001" / "confusion.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_validations": 0}, "every_n_validations is a number from 1, got 0"),
        ({"clips": -1}, "clips is a number from 0, got -1"),
        ({"mean": MEAN}, "mean and std are given together"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 numbers each"),
        ({"mean": 0.5, "std": 0.2}, "3 numbers each"),
        ({"mean": MEAN, "std": (0.2, "a", 0.3)}, "3 numbers each"),
    ],
)
def test_a_value_out_of_range_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MediaLogger(**arguments)


def test_another_module_is_told() -> None:
    with pytest.raises(ValueError, match="MediaLogger is of the models of a DistillModule, got a LightningModule"):
        MediaLogger().on_validation_start(Trainer(logger=False, barebones=True), LightningModule())
