"""`python -m lit_distill.test`: its figures are those of a loop by hand, on one process and on two."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import processes
from image_folders import CLASSES as ANIMALS
from image_folders import write_images
from lit_distill import test as door
from lit_distill.data import average_views
from lit_distill.inference import test as command
from lit_distill.runs.opened import load_run
from run_folders import CLASSES, VIDEOS, composed, video_overrides, video_root, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_root(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", video_overrides(root))


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A run folder that a test may change."""
    return shutil.copytree(written, tmp_path / "run")


def report_of(*overrides: str) -> dict[str, Any]:
    return command.run(composed("test", "trainer=cpu", *overrides))


def by_hand(folder: Path, model: str, views: Any) -> tuple[torch.Tensor, torch.Tensor]:
    run = load_run(folder)
    network, data = run.model(model), run.data(views=views)
    data.setup("test")
    outputs, targets = [], []
    for batch in data.test_dataloader():
        inputs, target, _ = data.on_after_batch_transfer(batch, 0)
        with torch.no_grad():
            outputs.append(average_views(network, inputs).log_softmax(1))
        targets.append(target)
    return torch.cat(outputs), torch.cat(targets)


@pytest.mark.parametrize(("model", "views"), [("Student", "center"), ("Student", "dense"), ("Teacher", "center")])
def test_figures_are_those_of_a_loop_by_hand(folder: Path, model: str, views: str) -> None:
    report = report_of(f"run={folder}", f"model={model}", f"views={views}")
    log_probabilities, target = by_hand(folder, model, views)
    predicted = log_probabilities.argmax(1)
    assert report["samples"] == len(VIDEOS)
    assert report["left_out"] == 0
    assert report["top1"] == pytest.approx((predicted == target).double().mean().item())
    assert report["top5"] == 1.0
    wanted = torch.nn.functional.nll_loss(log_probabilities.double(), target).item()
    assert report["loss"] == pytest.approx(wanted, rel=1e-5)
    assert [row["name"] for row in report["classes"]] == list(CLASSES)
    assert [row["samples"] for row in report["classes"]] == [3, 2, 2]
    name = "_".join(["test", *([model] if model != "Student" else []), views])
    assert json.loads((folder / f"{name}.json").read_text()) == report
    with (folder / report["confusion"]).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list(CLASSES)
    counted = [[int(((target == t) & (predicted == p)).sum()) for p in range(3)] for t in range(3)]
    assert [[int(count) for count in row[1:]] for row in rows[1:]] == counted


def test_two_processes_give_what_one_gives(folder: Path) -> None:
    alone = report_of(f"run={folder}")
    ranks = processes.start_ranks(
        2, ["-m", "lit_distill.test", f"run={folder}", "trainer=ddp", "trainer.accelerator=cpu",
            "trainer.devices=2", f"output={folder}/two.json"], cwd=folder.parent,
    )  # fmt: skip
    outputs = [rank.communicate(300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], [errors[-3000:] for _, errors in outputs]
    assert sum(screen.count("written") for screen, _ in outputs) == 1
    two = json.loads((folder / "two.json").read_text())
    assert two["samples"] == alone["samples"] == 7, "uneven processes, no sample twice"
    assert two["classes"] == alone["classes"]
    assert two["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert two["calibration"]["ece"] == pytest.approx(alone["calibration"]["ece"], abs=1e-6)
    assert (folder / "two_confusion.csv").read_bytes() == (folder / "confusion.csv").read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"], "nothing is left where it was started"


def test_weights_alone_and_data_elsewhere(root: Path, folder: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(root, tmp_path / "with space, (moved)")
    for name in ("student.safetensors", "student.json"):
        shutil.copy(folder / name, tmp_path)
    report = report_of(f"weights={tmp_path}/student.safetensors", f"data.root={elsewhere}", "split=val")
    assert report["samples"] == 3
    assert (tmp_path / "test_val.json").is_file()
    assert report["data"]["root"] == str(elsewhere)


def test_videos_that_the_run_may_leave_out_are_counted(root: Path, folder: Path, tmp_path: Path) -> None:
    spoilt = shutil.copytree(root, tmp_path / "spoilt")
    (spoilt / "4.mp4").write_bytes(b"no video")
    with pytest.raises(Exception, match=r"4\.mp4"):
        report_of(f"run={folder}", f"data.root={spoilt}")
    assert not (folder / "test.json").exists()
    report = report_of(f"run={folder}", f"data.root={spoilt}", "+data.on_bad=quarantine", "+data.max_bad=1")
    assert (report["samples"], report["left_out"]) == (6, 1)


def test_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", val=3)
    overrides = ["experiment=dml_image", f"data.root={images}", "data.num_classes=3", "data.size=32",
                 "models.Student.name=resnet18", "models.Teacher.name=resnet18", "+data.num_workers=0"]  # fmt: skip
    folder = write_run(tmp_path / "run", overrides, class_names=ANIMALS)
    report = report_of(f"run={folder}")
    assert report["samples"] == 9
    assert [row["name"] for row in report["classes"]] == list(ANIMALS)
    with pytest.raises(Exception, match="views"):
        report_of(f"run={folder}", "views=dense")


def test_other_classes_than_in_training_are_refused(folder: Path) -> None:
    card = json.loads((folder / "student.json").read_text())
    card["class_names"] = ["jump", "swim", "run"]
    (folder / "student.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"class 1 is 'run' here and 'swim' in training"):
        report_of(f"run={folder}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "give run=<folder>, or weights=<file>"),
        (["run=/nowhere"], "no run folder /nowhere"),
        (["run={run}", "split=train"], "split is test or val, got 'train'"),
        (["run={run}", "model=Assistant"], "has no model 'Assistant': it has Student, Teacher"),
        (["run={run}", "data.root=/nowhere"], "no folder /nowhere, set data.root=<folder>"),
        (["run={run}", "checkpoint=third"], "give checkpoint=best|last"),
        (["run={run}", "views=three"], "'three'"),
        (["weights={run}"], "is a folder: give it as run="),
    ],
)
def test_a_mistake_is_one_clear_line(
    folder: Path,
    overrides: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["test", *(o.format(run=folder) for o in overrides)])
    with pytest.raises(SystemExit) as caught:
        door.main()
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
