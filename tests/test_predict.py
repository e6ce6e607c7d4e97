"""`python -m lit_distill.predict`: what test says of each file, in order, with bad files as rows, and nothing lost."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from image_folders import CLASSES as ANIMALS
from image_folders import write_images
from lit_distill import predict as door
from lit_distill.data.preprocess import Preprocess
from lit_distill.inference import predict as command
from lit_distill.inference import test as test_command
from lit_distill.inference.predictions import Prediction, Top, predict_files
from lit_distill.inference.rows import RowFile
from lit_distill.runs.opened import load_run
from run_folders import CLASSES, VIDEOS, composed, video_overrides, video_root, write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_root(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", video_overrides(root))


@pytest.fixture
def spoilt(root: Path, tmp_path: Path) -> Path:
    """The videos, of which the fourth is none, and a file that nobody takes for a video."""
    folder = shutil.copytree(root, tmp_path / "spoilt (1), ü=x")
    (folder / "3.mp4").write_bytes(b"no video")
    return folder


def predicted(*overrides: str) -> int:
    return command.run(composed("predict", "num_workers=0", *overrides))


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("views", ["center", "dense"])
def test_probabilities_are_those_of_test(root: Path, run: Path, tmp_path: Path, views: str) -> None:
    output = tmp_path / "out.jsonl"
    failed = predicted(f"run={run}", f"input={root}/test.txt", f"output={output}", "topk=9", f"views={views}")
    report = test_command.run(
        composed("test", f"run={run}", "trainer=cpu", f"output={tmp_path}/test.json", f"views={views}")
    )
    rows = rows_of(output)
    assert failed == 0
    assert [row["input"] for row in rows] == [f"{root}/{number}.mp4" for number in range(len(VIDEOS))]
    scores = [{top["class"]: top["score"] for top in row["top"]} for row in rows]
    targets = [number % 3 for number in range(len(VIDEOS))]
    for row, score in zip(rows, scores, strict=True):
        assert sum(score.values()) == pytest.approx(1.0, abs=1e-6)
        assert list(score.values()) == sorted(score.values(), reverse=True)
        assert [top["name"] for top in row["top"]] == [CLASSES[label] for label in score]
    right = [next(iter(score)) == target for score, target in zip(scores, targets, strict=True)]
    assert sum(right) / len(right) == pytest.approx(report["top1"])
    confidences = sum(max(score.values()) for score in scores) / len(scores)
    told = sum(b["samples"] * b["confidence"] for b in report["calibration"]["bins"]) / len(scores)
    assert confidences == pytest.approx(told, rel=1e-5)
    if all(score[target] > 0 for score, target in zip(scores, targets, strict=True)):
        loss = -sum(math.log(score[target]) for score, target in zip(scores, targets, strict=True)) / len(scores)
        assert loss == pytest.approx(report["loss"], rel=1e-4)


def test_a_bad_file_is_a_row_and_the_others_are_as_without_it(root: Path, run: Path, spoilt: Path) -> None:
    whole, part = root.parent / "whole.jsonl", spoilt.parent / "part (1).csv"
    predicted(f"run={run}", f"input={root}", f"output={whole}", "topk=2")
    assert predicted(f"run={run}", f"input={spoilt}", f"output={part}", "topk=2") == 1
    with part.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["input"]).name for row in rows] == [f"{number}.mp4" for number in range(len(VIDEOS))]
    for number, (row, wanted) in enumerate(zip(rows, rows_of(whole), strict=True)):
        if number == 3:
            assert row["error"]
            assert row["class_1"] == row["score_2"] == ""
        else:
            assert row["error"] == ""
            assert [row["name_1"], row["name_2"]] == [top["name"] for top in wanted["top"]]
            assert [float(row["score_1"]), float(row["score_2"])] == pytest.approx(
                [top["score"] for top in wanted["top"]], rel=1e-4, abs=1e-9
            )


def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    code: Any = 0
    try:
        door.main()
    except SystemExit as caught:
        code = caught.code
    out, err = capsys.readouterr()
    return code, out, err


def test_exit_codes_and_screen(
    run: Path, spoilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command_line(
        monkeypatch, capsys, f"run={run}", f"input={spoilt}", "num_workers=0", "topk=1", "batch_size=2"
    )
    assert code == 3
    lines = out.splitlines()
    assert len(lines) == len(VIDEOS)
    assert "error: " in lines[3]
    assert any(name in lines[0] for name in CLASSES)
    assert lines[0].endswith(" %")
    assert "6 of 7 classified" in err
    assert "1 can't be read" in err
    assert "3 of other kinds passed over" in err  # the lists
    code, out, _ = command_line(monkeypatch, capsys, f"run={run}", f"input={spoilt}/0.mp4", "model=Teacher")
    assert code == 0
    assert all(name in out for name in CLASSES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run={run}"], "give input="),
        (["run={run}", "input={root}", "view=dense"], "there is no 'view'; did you mean views?"),
        (["run={run}", "input="], "give input="),
        (["run=", "input={root}"], "give run=<folder>, or weights=<file>"),
        (["run={run}", "input={root}", "views=dens"], "views are center or dense, got 'dens'"),
        (["input=a.mp4"], "give run=<folder>, or weights=<file>"),
        (["run={run}", "input=/nowhere.mp4"], "no file or folder /nowhere.mp4"),
        (["run={run}", "input={run}"], "holds no videos"),
        (["run={run}", "input={root}", "output=a.txt"], "output is a file .jsonl or .csv, got a.txt"),
        (["run={run}", "input={root}", "topk=0"], "topk must be at least 1"),
        (["run={run}", "input={root}", "batch_size=0"], "batch_size must be at least 1"),
        (["run={run}", "input={root}", "device=abacus"], "device=abacus is not available"),
        (["run={run}", "input={root}", "resume=true"], "resume=true goes on with an output="),
        (["run={run}", "input={root}", "--allow"], "--allow expects a package"),
    ],
)
def test_a_mistake_is_one_clear_line(
    run: Path,
    root: Path,
    overrides: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = command_line(monkeypatch, capsys, *(text.format(run=run, root=root) for text in overrides))
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_workers_change_nothing(root: Path, run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{workers}.jsonl" for workers in (0, 2)]
    for workers, file in zip((0, 2), files, strict=True):
        predicted(f"run={run}", f"input={root}", f"output={file}", f"num_workers={workers}", "batch_size=2")
    assert files[0].read_bytes() == files[1].read_bytes()


class Stub:
    """A classifier of two classes that is stopped at its n-th batch."""

    def __init__(self, stops_at: int = 0) -> None:
        self.batches, self.stops_at = 0, stops_at

    def __call__(self, batch: Tensor) -> Tensor:
        self.batches += 1
        if self.batches == self.stops_at:
            raise KeyboardInterrupt
        return torch.rand(len(batch), 3, generator=torch.Generator().manual_seed(int(batch.sum()))).softmax(1)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_command_goes_on(
    run: Path, spoilt: Path, tmp_path: Path, suffix: str, torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / f"out.{suffix}"
    arguments = [f"run={run}", f"input={spoilt}", "batch_size=1", "resume=true"]
    monkeypatch.setattr(command, "open_classifier", lambda *_, **__: Stub())
    assert predicted(*arguments, f"output={tmp_path}/whole.{suffix}") == 1
    monkeypatch.setattr(command, "open_classifier", lambda *_, **__: Stub(stops_at=5))
    with pytest.raises(KeyboardInterrupt):
        predicted(*arguments, f"output={output}")
    assert not output.exists()
    (part,) = tmp_path.glob("out.*.part")
    if torn:
        with part.open("ab") as file:
            file.write(b'{"input": "/a/b')
    last = Stub()
    monkeypatch.setattr(command, "open_classifier", lambda *_, **__: last)
    assert predicted(*arguments, f"output={output}") == 1, "the bad file of the first part counts"
    assert last.batches == 2
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_another_command_does_not_go_on_with_it(tmp_path: Path) -> None:
    def opened(**changes: Any) -> RowFile:
        settings: dict[str, Any] = {"inputs": ["a", "b"], "topk": 1, "made_by": {"weights": "1"}, "resume": True}
        return RowFile(tmp_path / "out.jsonl", **{**settings, **changes})

    opened().write([Prediction("a", (Top(0, "x", 0.5),))])
    assert opened().done == 1
    for changes in ({"topk": 2}, {"made_by": {"weights": "2"}}, {"inputs": ["a", "c"]}, {"resume": False}):
        assert opened(**changes).done == 0


@pytest.mark.parametrize("content", ['{"input": "a", "error": ""}\n{"inp', "torn"])
def test_what_a_part_links_to_is_not_cut_off(content: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"inputs": ["a", "b"], "topk": 1, "made_by": {}}
    part = RowFile(tmp_path / "a.jsonl", **settings).part
    other = tmp_path / "other"
    other.write_text(content)
    part.unlink()
    part.symlink_to(other)
    with pytest.raises(ValueError, match="expected the part of a table, a regular file, got a symbolic link"):
        RowFile(tmp_path / "a.jsonl", **settings, resume=True)
    assert other.read_text() == content


def test_memory_does_not_grow_with_the_number_of_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(self: Preprocess, path: str) -> Tensor:
        read.append(path)
        return torch.zeros(4, 3, 28, 28, dtype=torch.uint8)

    monkeypatch.setattr(Preprocess, "read", reading)
    preprocess = load_run(run).preprocess()
    batches: Iterator[list[Prediction]] = predict_files(Stub(), preprocess, ["x"] * 10_000, batch_size=4)
    assert len(next(batches)) == 4
    assert len(read) == 4, "no file is read before it is its turn"


def test_images_in_folders(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", val=2)
    overrides = ["experiment=dml_image", f"data.root={images}", "data.num_classes=3", "data.size=32",
                 "models.Student.name=resnet18", "models.Teacher.name=resnet18"]  # fmt: skip
    folder = write_run(tmp_path / "run", overrides, class_names=ANIMALS)
    (images / "val" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8")
    (images / "val" / "cat" / "clip.mp4").touch()
    output = tmp_path / "out.jsonl"
    assert predicted(f"run={folder}", f"input={images}/val", f"output={output}") == 1
    rows = rows_of(output)
    assert [Path(row["input"]).name for row in rows] == ["0.jpg", "1.jpg", "broken.jpg", *["0.jpg", "1.jpg"] * 2]
    assert "can't read the image" in rows[2]["error"]
    assert {top["name"] for top in rows[0]["top"]} == set(ANIMALS)


def test_names_that_move_the_cursor_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = command._Screen(2, bar=False)
    screen.show([Prediction("a\x1b[2J.mp4", (Top(0, "x\x1b]0;", 0.5),)), Prediction("[red]b.mp4", error="\x07")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]b.mp4" in out
