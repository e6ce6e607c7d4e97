"""What loggers write is read back by the tools' own readers, without a network."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm, loggers
from lit_distill.loggers import EventFiles, MetricsCSV, MLflow, WeightsAndBiases
from lit_distill.media.pictures import Picture, taker_of


def train(logger: Any, folder: Path) -> DistillModule:
    torch.manual_seed(0)
    module = DistillModule(
        {"Student": torch.nn.Linear(4, 3)},
        {"ce": LossTerm(torch.nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    loader = DataLoader(TensorDataset(torch.randn(12, 4), torch.arange(12) % 3), batch_size=2)
    Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=2, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    ).fit(module, loader)  # fmt: skip
    return module


def test_event_files_hold_every_figure_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = train(EventFiles(tmp_path), tmp_path)
    assert [path.name.split(".")[0] for path in (tmp_path / "tensorboard").iterdir()] == ["events"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = events.Scalars("train/ce")
    assert [point.step for point in points] == [1, 3, 5]
    assert points[-1].value == pytest.approx(module.last_terms["train/ce"])


def test_an_evaluation_replaces_no_row_of_the_training(tmp_path: Path) -> None:
    module = train(MetricsCSV(tmp_path), tmp_path)
    file = tmp_path / "metrics.csv"
    whole = file.read_text()
    assert [line.split(",")[0] for line in whole.splitlines()] == ["step", "1", "3", "5"]
    file.write_text(f"{whole}6,0,0.")  # of a writer that was killed
    loader = DataLoader(TensorDataset(torch.randn(4, 4), torch.arange(4) % 3), batch_size=2)
    logger = MetricsCSV(tmp_path)
    for evaluate in (Trainer.validate, Trainer.test):
        run = Trainer(accelerator="cpu", logger=logger, enable_progress_bar=False, default_root_dir=tmp_path)
        evaluate(run, module, loader, verbose=False)
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "3", "5", "0", "0"]
    for row, before in zip(rows, csv.DictReader(whole.splitlines()), strict=False):
        assert before.items() <= row.items()
    assert rows[3]["val/loss"]
    assert rows[4]["test/loss"]

    logger.load_state_dict({"row": {"step": 3, "train/loss": 0.5}})  # then gone on with from an earlier step
    logger.log_metrics({"train/loss": 0.25}, step=5)
    logger.finalize("success")
    with file.open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "0", "0", "3", "5"]
    logger.load_state_dict({"row": {"step": 3, "train/loss": 0.5}})
    logger.finalize("success")
    with file.open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1", "0", "0", "3"]


def test_without_tensorboard_a_line_says_so_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, "is_installed", lambda package: False)
    logger = EventFiles(tmp_path)
    assert "pip install 'lit-distill[tensorboard]'" in capsys.readouterr().out
    train(logger, tmp_path)
    assert logger.experiment is None
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(("kind", "package"), [(WeightsAndBiases, "wandb"), (MLflow, "mlflow")])
def test_a_logger_that_was_asked_for_names_its_extra(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loggers, "is_installed", lambda name: False)
    with pytest.raises(ModuleNotFoundError, match=rf"logger={package} needs {package}: pip install"):
        kind(tmp_path)


def test_mlflow_keeps_the_figures_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    logger = MLflow(tmp_path / "run")
    module = train(logger, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/run/mlflow.db")
    history = client.get_metric_history(logger.run_id, "train/ce")
    assert [point.step for point in history] == [1, 3, 5]
    assert history[-1].value == pytest.approx(module.last_terms["train/ce"])


def test_wandb_writes_an_offline_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(WeightsAndBiases(tmp_path / "run"), tmp_path)
    wandb.finish()
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))
    assert "wandb" in sys.modules


def pictures() -> list[Picture]:
    still = Image.new("RGB", (20, 10), (200, 30, 30))
    moving = [Image.new("RGB", (12, 8), (40 * place, 0, 0)) for place in range(3)]
    return [Picture.of("confusion", "of all classes", [still]), Picture.of("wrong_1", "true run", moving)]


def test_mlflow_keeps_pictures_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    logger = MLflow(tmp_path / "run")
    take = taker_of(logger)
    assert take is not None
    take(pictures(), 7)
    (folder,) = (tmp_path / "run" / "mlflow").rglob("step_00000007")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        picture.file: picture.content for picture in pictures()
    }


def test_wandb_keeps_pictures_in_the_offline_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    take = taker_of(WeightsAndBiases(tmp_path / "run"))
    assert take is not None
    take(pictures(), 7)
    wandb.finish()
    (media,) = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media")
    (moving,) = media.rglob("wrong_1_*.gif")
    assert moving.read_bytes() == pictures()[1].content
    (still,) = media.rglob("confusion_*.png")
    assert Image.open(still).convert("RGB").getpixel((5, 5)) == (200, 30, 30)
