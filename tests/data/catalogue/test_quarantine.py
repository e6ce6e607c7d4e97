from __future__ import annotations

import json
import shutil
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import processes
from lit_distill.callbacks import Quarantine
from lit_distill.data import VideoDataModule, VideoError
from lit_distill.data.catalogue.quarantine import (
    Admission,
    BadVideo,
    PartialBatch,
    QuarantineError,
    QuarantineList,
    from_json,
)
from lit_distill.data.datasets import collate
from lit_distill.data.samplers import seeded

from ..conftest import grey, write_images, write_lines
from ..recorder import Recorder, quiet_trainer

PROGRAM = Path(__file__).with_name("quarantine_on_two_processes.py")
BAD = {5: "run/1.mp4", 10: "swim/2.mp4"}  # of the 12 in train.txt; the first is one of the 7 in val.txt too


@pytest.fixture
def broken(videos: Path, tmp_path: Path) -> Path:
    """The usual root with two files that are no videos."""
    root = tmp_path / "root"
    shutil.copytree(videos, root)
    for name in BAD.values():
        (root / name).write_bytes(b"\0" * 999)
    return root


def make(root: Path, **arguments: Any) -> VideoDataModule:
    given = {
        "root": root, "train_list": "train.txt", "val_list": "val.txt", "num_classes": 3, "num_frames": 2, "size": 28,
        "scale": 32, "batch_size": 4, "num_workers": 0, "on_bad": "quarantine", "max_bad": 2,
    }  # fmt: skip
    return VideoDataModule(**{**given, **arguments})


def fit(
    root: Path, *, epochs: int = 3, ckpt_path: Path | None = None, folder: Path | None = None, **arguments: Any
) -> Recorder:
    recorder = Recorder()
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[Quarantine(folder=folder)])
    trainer.fit(recorder, datamodule=make(root, **arguments), ckpt_path=ckpt_path, weights_only=True)
    return recorder


def order(epoch: int, without: set[int] = set()) -> list[int]:  # noqa: B006
    positions = list(range(12))
    seeded("order", 0, epoch).shuffle(positions)
    return [position for position in positions if position not in without]


def batches(positions: list[int], size: int = 4) -> list[list[int]]:
    return [positions[start : start + size] for start in range(0, len(positions) - size + 1, size)]


@pytest.mark.parametrize("workers", [0, 2])
def test_by_default_a_bad_video_stops_the_run(broken: Path, workers: int) -> None:
    with pytest.raises(VideoError, match=r"(run/1|swim/2)\.mp4: "):
        fit(broken, on_bad="raise", num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_videos_leave_their_batches_then_the_order(broken: Path, tmp_path: Path, workers: int) -> None:
    seen = fit(broken, num_workers=workers, folder=tmp_path).seen
    first = [[position for position in batch if position not in BAD] for batch in batches(order(0))]
    assert seen["train"] == [first, batches(order(1, set(BAD))), batches(order(2, set(BAD)))]
    # an epoch of fewer batches still ends with a validation, which sees every readable video once
    assert [sorted(chain(*epoch)) for epoch in seen["val"]] == 3 * [[0, 1, 2, 3, 4, 6]]
    told = json.loads((tmp_path / "quarantine.json").read_text())["videos"]
    assert [(entry["path"], entry["split"], entry["epoch"]) for entry in told] == [
        ("run/1.mp4", "train", 0),
        ("swim/2.mp4", "train", 0),
    ]
    assert all("Invalid data" in entry["reason"] for entry in told)


def test_what_is_left_out_is_logged_and_told(broken: Path) -> None:
    screen, recorder = StringIO(), Recorder()
    console = Console(file=screen, width=200)
    trainer = quiet_trainer(max_epochs=2, callbacks=[Quarantine(console=console)])
    trainer.fit(recorder, datamodule=make(broken))
    assert [float(trainer.callback_metrics[f"{split}/left_out"]) for split in ("train", "val")] == [2, 1]
    assert "2 of at most 2 videos can't be read" in screen.getvalue()
    assert screen.getvalue().count("run/1.mp4: ") == screen.getvalue().count("swim/2.mp4: ") == 1


def test_without_bad_videos_nothing_is_left_out(videos: Path, tmp_path: Path) -> None:
    whole, policy = fit(videos, on_bad="raise").seen, fit(videos, max_bad=0, folder=tmp_path).seen
    assert whole == policy
    assert not list(tmp_path.glob("quarantine.json"))


@pytest.mark.parametrize("workers", [0, 2])
def test_past_max_bad_the_run_stops_and_names_the_files(broken: Path, tmp_path: Path, workers: int) -> None:
    with pytest.raises(QuarantineError, match=r"2 videos can't be read, data\.max_bad allows 1: .*") as caught:
        fit(broken, max_bad=1, num_workers=workers, folder=tmp_path)
    for name in BAD.values():
        assert f"{name} (" in str(caught.value)
    assert len(json.loads((tmp_path / "quarantine.json").read_text())["videos"]) == 2
    with pytest.raises(QuarantineError, match=r"1 videos can't be read, data\.max_bad allows 0: run/1"):
        fit(broken, max_bad=0)
    with pytest.raises(ValueError, match="max_bad must be at least 0"):
        make(broken, max_bad=-1)


def test_videos_of_all_splits_count_together_and_once(broken: Path) -> None:
    (broken / "jump/1.mp4").write_bytes(b"")
    write_lines(broken / "val.txt", ["jump/0.mp4 0", "jump/1.mp4 0", "run/1.mp4 1"])
    write_lines(broken / "train.txt", ["jump/2.mp4 0", "jump/3.mp4 0", "run/0.mp4 1", "run/1.mp4 1"])
    fit(broken, max_bad=2, batch_size=2)
    with pytest.raises(QuarantineError, match=r"2 videos can't be read, data\.max_bad allows 1"):
        fit(broken, max_bad=1, batch_size=2)


def test_a_training_batch_without_a_readable_video_is_an_error(broken: Path) -> None:
    with pytest.raises(QuarantineError, match=r"training batch has no readable video: (run/1|swim/2)\.mp4 \(.*\)"):
        fit(broken, batch_size=1)


def test_an_empty_evaluation_batch_is_passed_over_unless_all_are(broken: Path) -> None:
    recorder = Recorder()
    callbacks = [Quarantine()]
    quiet_trainer(callbacks=callbacks).test(recorder, datamodule=make(broken, eval_batch_size=1), verbose=False)
    assert recorder.seen["test"] == [[[0], [1], [2], [3], [4], [6]]]
    write_lines(broken / "val.txt", ["run/1.mp4 1"])
    with pytest.raises(QuarantineError, match=r"nothing is left to evaluate .*test videos: run/1\.mp4"):
        quiet_trainer(callbacks=callbacks).test(recorder, datamodule=make(broken), verbose=False)


def test_a_resumed_run_has_the_same_list(broken: Path, tmp_path: Path) -> None:
    unbroken = fit(broken, epochs=4).seen
    recorder = Recorder()
    trainer = quiet_trainer(max_epochs=2, callbacks=[Quarantine()])
    trainer.fit(recorder, datamodule=make(broken))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Quarantine"]
    assert {entry["path"] for entry in stored["quarantine"]} == set(BAD.values())
    resumed = fit(broken, epochs=4, ckpt_path=tmp_path / "last.ckpt", folder=tmp_path).seen
    assert recorder.seen["train"] + resumed["train"] == unbroken["train"]
    assert recorder.seen["val"] + resumed["val"] == unbroken["val"]
    assert len(json.loads((tmp_path / "quarantine.json").read_text())["videos"]) == 2


def test_a_checkpoint_within_an_epoch_holds_what_the_epoch_found(broken: Path) -> None:
    """It does not change that epoch's order, only the next one's."""
    callback, data = Quarantine(), make(broken)
    quiet_trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, callbacks=[callback]).fit(
        Recorder(), datamodule=data
    )
    assert data.quarantine is not None
    data.setup("fit")
    data.quarantine.note([BadVideo(5, str(broken / "run/1.mp4"), "bad")], split="train", epoch=1)
    state = callback.state_dict()
    assert data.quarantine.agreed == {}
    data.quarantine.merge([from_json(state)])
    admission = Admission(data.quarantine, split="train", samples=data.datasets["train"].samples, training=True)
    assert [sorted(admission.excluded(epoch)) for epoch in range(3)] == [[], [], [5]]


def test_a_trainer_without_the_callback_is_refused(broken: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.on_bad=quarantine needs the callback lit_distill\.callbacks\.Quarantine"
    ):
        quiet_trainer(max_epochs=1).fit(Recorder(), datamodule=make(broken))


def test_loaders_without_a_trainer(broken: Path) -> None:
    data = make(broken, num_workers=2)
    seen = [position for _, _, index in data.train_dataloader() for position in index.tolist()]
    assert seen == order(0, set(BAD))
    assert data.quarantine is not None
    assert {entry.path for entry in data.quarantine.found} == set(BAD.values())


def test_items_and_batches(broken: Path) -> None:
    data = make(broken)
    data.setup("fit")
    dataset = data.datasets["train"]
    item = dataset[5]
    assert isinstance(item, BadVideo)
    assert (item.position, item.path) == (5, str(broken / "run/1.mp4"))
    partial = collate([dataset[4], item, dataset[6]])
    assert isinstance(partial, PartialBatch)
    assert partial.batch is not None
    assert partial.batch[2].tolist() == [4, 6]
    assert collate([item]) == PartialBatch(None, [item])
    whole = collate([dataset[4], dataset[6]])
    assert all(torch.equal(a, b) for a, b in zip(partial.batch, whole, strict=True))  # type: ignore[arg-type]


def test_a_folder_of_frames_names_the_image(tmp_path: Path) -> None:
    write_images(tmp_path / "good", grey(4, 20))
    write_images(tmp_path / "bad", grey(4, 20))
    (tmp_path / "bad/img_00002.jpg").write_bytes(b"no image")
    write_lines(tmp_path / "train.txt", ["good 4 0", "bad 4 1"])
    data = make(tmp_path, val_list="train.txt", format="frames", batch_size=2, num_frames=4)
    (_, _, index), *_ = data.train_dataloader()
    assert index.tolist() == [0]
    assert data.quarantine is not None
    (entry,) = data.quarantine.found
    assert entry.path == "bad"
    assert entry.reason.startswith("img_00002.jpg: ")


def test_merging_is_the_same_in_any_order() -> None:
    one, other = ([(1, "train", "a", "x"), (0, "val", "b", "y")], [(0, "train", "a", "z"), (1, "train", "c", "w")])
    lists = [QuarantineList(max_bad=9, root="r") for _ in range(2)]
    lists[0].merge([one, other])
    lists[1].merge([other, one])
    assert lists[0].to_json() == lists[1].to_json()
    assert [(entry.path, entry.epoch) for entry in lists[0].entries] == [("a", 0), ("b", 0), ("c", 1)]
    assert lists[0].known_before(1) == {"a", "b"}


def test_a_malformed_list_in_a_checkpoint() -> None:
    for state in ({}, {"quarantine": 3}, {"quarantine": [{"path": "a"}]}):
        with pytest.raises(ValueError, match="quarantine list is malformed"):
            from_json(state)


def test_arguments_are_checked(broken: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.on_bad is 'raise' or 'quarantine', got 'skip'"):
        make(broken, on_bad="skip")
    with pytest.raises(ValueError, match=r"data\.resize is 'decoder' or 'exact', got 'fast'"):
        make(broken, resize="fast")
    with pytest.raises(ValueError, match=r"data\.limits has the fields frames, pixels, seconds, got minutes"):
        make(broken, limits={"minutes": 1})
    assert make(broken, limits={"frames": None, "seconds": 5}).limits.seconds == 5
    with pytest.raises(ValueError, match="seconds > 0"):
        make(broken, limits={"seconds": 0})


def test_two_processes_agree(broken: Path, tmp_path: Path) -> None:
    """Each finds videos that the other never opened; both then have one list, order and file."""
    processes.run_ranks(2, [PROGRAM, broken, tmp_path / "report"], cwd=tmp_path)
    ranks = [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in (0, 1)]
    assert ranks[0]["list"] == ranks[1]["list"] == ranks[0]["stored"] == ranks[1]["stored"]
    assert {entry["path"] for entry in ranks[0]["list"]} == set(BAD.values())
    assert json.loads((tmp_path / "report.run/quarantine.json").read_text())["videos"] == ranks[0]["list"]
    for told in ranks:
        assert (told["metrics"]["train/left_out"], told["metrics"]["val/left_out"]) == (2.0, 1.0)
    dealt: list[Any] = [[list(chain(*epoch)) for epoch in told["seen"]["train"]] for told in ranks]
    assert sorted(dealt[0][0] + dealt[1][0]) == [position for position in range(12) if position not in BAD]
    for epoch in (1, 2):
        left = order(epoch, set(BAD))
        assert [dealt[rank][epoch] for rank in (0, 1)] == [left[rank:6:2] for rank in (0, 1)]
    for epoch in range(3):
        assert sorted(chain(*ranks[0]["seen"]["val"][epoch], *ranks[1]["seen"]["val"][epoch])) == [0, 1, 2, 3, 4, 6]


def test_two_processes_count_together(broken: Path, tmp_path: Path) -> None:
    """Neither knows of more than one before they compare; the run stops in both."""
    ranks = processes.start_ranks(2, [PROGRAM, broken, tmp_path / "report", "1"], cwd=tmp_path)
    for rank in ranks:
        _, told = rank.communicate(120)
        assert rank.returncode != 0
        assert "2 videos can't be read, data.max_bad allows 1" in told
        assert all(name in told for name in BAD.values())
