"""`python -m lit_distill.select`: the best k of each class by the teacher, as brute force finds them, in a list."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lit_distill import select as door
from lit_distill.data import VideoDataModule, read_list
from lit_distill.inference import predict as predict_command
from lit_distill.inference import select as command
from lit_distill.inference.selection import Chosen, TopPerClass, without_twins
from run_folders import CLASSES, VIDEOS, composed, video_overrides, video_root, write_run
from test_predict import rows_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos 0 to 2 are labelled; 3 to 6 have no label."""
    root = video_root(tmp_path_factory.mktemp("data") / "videos")
    (root / "test.txt").write_text((root / "val.txt").read_text())
    (root / "pool.txt").write_text("".join(f"{number}.mp4\n" for number in range(3, len(VIDEOS))))
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = [*video_overrides(root), "data.unlabelled=pool.txt"]
    return write_run(tmp_path_factory.mktemp("runs") / "one", overrides)


def selected(*overrides: str) -> command.Selection:
    return command.run(composed("select", "num_workers=0", *overrides), Console(quiet=True))


# Choosing -------------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9])), max_size=60)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(1, 5), st.sampled_from([0.0, 0.3]), st.randoms(use_true_random=False))
def test_the_best_of_each_class_are_those_of_brute_force(
    scores: list[tuple[int, float]], k: int, least: float, rng: Any
) -> None:
    rows = [Chosen(label, score, f"{number:02}.mp4") for number, (label, score) in enumerate(scores)]
    wanted = []
    for label in range(4):
        mine = [row for row in rows if row.label == label and row.score >= least]
        wanted += sorted(mine, key=lambda row: (-row.score, row.path))[:k]
    shuffled = list(rows)
    rng.shuffle(shuffled)
    best = TopPerClass(k=k, min_score=least)
    for row in shuffled:
        best.add(row.path, row.label, row.score)
    assert best.chosen() == wanted
    assert sum(best.candidates.values()) == sum(row.score >= least for row in rows)


@pytest.mark.parametrize(("k", "least", "message"), [(0, 0.0, "k, .*at least 1, got 0"), (1, 1.5, "from 0 to 1")])
def test_numbers_are_checked(k: int, least: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopPerClass(k=k, min_score=least)


def test_equal_contents(tmp_path: Path) -> None:
    for name, text in (("a", "xx"), ("b", "yy"), ("c", "yy"), ("d", "zzz"), ("val", "xx")):
        (tmp_path / name).write_text(text)
    for name, text in (("f1", "p"), ("f2", "p"), ("f3", "q")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "img_00001.jpg").write_text(text)
    at = {name: str(tmp_path / name) for name in ("a", "b", "c", "d", "val", "f1", "f2", "f3", "gone")}
    pool = [at[name] for name in ("a", "b", "c", "d", "d", "f1", "f2", "f3", "gone")]
    stay, twins = without_twins(pool, [at["val"], str(tmp_path / "nowhere")])
    assert stay == [at[name] for name in ("b", "d", "f1", "f3", "gone")]
    assert [tuple(twin) for twin in twins] == [(at["a"], at["val"]), (at["c"], at["b"]), (at["f2"], at["f1"])]
    stay, twins = without_twins([at["d"]], [at["d"]])
    assert stay == []
    assert twins[0].path == at["d"]


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "per_file"), [(1, 1), (2, 1), (2, 3)])
def test_the_list_is_what_predict_says(root: Path, run: Path, tmp_path: Path, k: int, per_file: int) -> None:
    rows = tmp_path / "rows.jsonl"
    predict_command.run(
        composed(
            "predict", f"run={run}", f"input={root}/pool.txt", f"output={rows}", f"topk={per_file}", "num_workers=0"
        )
    )
    scores = [
        (top["class"], -round(top["score"], 6), Path(row["input"]).name) for row in rows_of(rows) for top in row["top"]
    ]
    wanted = [row for label in range(3) for row in sorted(s for s in scores if s[0] == label)[:k]]
    output = tmp_path / "selected.txt"
    result = selected(f"run={run}", f"k={k}", f"per_file={per_file}", f"output={output}")
    lines = [line.rsplit(" ", 2) for line in output.read_text().splitlines()]
    assert [(int(label), path) for path, label, _ in lines] == [(label, path) for label, _, path in wanted]
    assert [float(score) for _, _, score in lines] == pytest.approx([-score for _, score, _ in wanted], abs=2e-6)
    assert (result.failed, result.twins) == (0, 0)
    assert (tmp_path / "selected.skipped.txt").read_text() == ""


def test_the_list_is_read_back_and_trained_on(root: Path, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "selected.txt"
    chosen = selected(f"run={run}", "k=9", f"output={output}").chosen
    assert len(chosen) == 4
    samples = read_list(output, root=root, num_classes=3)
    assert [(sample.path, sample.label) for sample in samples] == [(c.path, c.label) for c in chosen]
    data = VideoDataModule(
        root=root, train_list=output, val_list="val.txt", num_classes=3, num_frames=2, size=28, scale=32, batch_size=4,
        num_workers=0,
    )  # fmt: skip
    clips, labels, _ = next(iter(data.train_dataloader()))
    assert clips.shape == (4, 2, 3, 28, 28)
    assert sorted(labels.tolist()) == sorted(c.label for c in chosen)


def test_it_is_the_same_again(root: Path, run: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    selected(f"run={run}", "k=2", f"output={one}")
    selected(f"run={run}", "k=2", f"output={other}", "num_workers=2")
    assert one.read_text() == other.read_text()


def test_copies_of_labelled_videos_and_bad_files_are_left_out_and_told(root: Path, run: Path, tmp_path: Path) -> None:
    pool = shutil.copytree(root, tmp_path / "pool (1)")  # 0 to 2 are copies of what has labels
    shutil.copy(pool / "4.mp4", pool / "again.mp4")
    (pool / "5.mp4").write_bytes(b"no video")
    output = tmp_path / "best.txt"
    result = selected(f"run={run}", "k=9", f"unlabelled={pool}", f"output={output}")
    assert {Path(c.path).name for c in result.chosen} == {"3.mp4", "4.mp4", "6.mp4"}
    assert (result.failed, result.twins) == (1, 4)
    assert all(line.startswith(f"{pool}/") for line in output.read_text().splitlines()), "outside of the root"
    told = dict(line.split("\t") for line in (tmp_path / "best.skipped.txt").read_text().splitlines())
    assert told[f"{pool}/0.mp4"] == f"has the same bytes as {root}/0.mp4"
    assert told[f"{pool}/again.mp4"] == f"has the same bytes as {pool}/4.mp4"
    assert {Path(path).name for path in told} == {"0.mp4", "1.mp4", "2.mp4", "again.mp4", "5.mp4"}
    free = selected(f"run={run}", "k=9", f"unlabelled={pool}", f"output={output}", "against=[]")
    assert {"0.mp4", "1.mp4", "2.mp4"} < {Path(c.path).name for c in free.chosen}
    some = selected(f"run={run}", "k=9", f"unlabelled={pool}", f"output={output}", f"against=['{root}/val.txt']")
    assert some.twins == 4


def test_the_pool_of_hidden_labels(root: Path, tmp_path: Path) -> None:
    folder = video_root(tmp_path / "videos")
    (folder / "train.txt").write_text("".join(f"{number}.mp4 {number % 3}\n" for number in range(1, len(VIDEOS))))
    (folder / "val.txt").write_text("0.mp4 0\n")
    (folder / "test.txt").write_text("0.mp4 0\n")
    overrides = [*video_overrides(folder), "data.labelled_share=0.5", "data.unlabelled_share=0"]
    run = write_run(tmp_path / "run", overrides)
    result = selected(f"run={run}", "k=9", f"output={tmp_path}/s.txt")
    data = VideoDataModule(root=folder, train_list="train.txt", val_list="val.txt", num_classes=3, labelled_share=0.5)
    labelled, hidden = data.kinds()
    assert len(labelled) == 3
    assert {c.path for c in result.chosen} == {sample.path for sample in hidden}


def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["select", *arguments])
    code: Any = 0
    try:
        door.main()
    except SystemExit as caught:
        code = caught.code
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "s.txt"
    given = [f"run={run}", "k=2", f"output={output}", "num_workers=0", "hydra.output_subdir=null"]
    code, out, _ = command_line(monkeypatch, capsys, *given)
    assert code == 0
    assert all(name in out for name in CLASSES)
    assert "lines of 4 files ranked" in out
    pool = shutil.copytree(root, tmp_path / "p, (1)")
    (pool / "3.mp4").write_bytes(b"no video")
    code, out, _ = command_line(monkeypatch, capsys, *given, f"unlabelled={pool}")
    assert code == 3
    assert "1 can't be read" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "k"),
        (["k=0"], "at least 1, got 0"),
        (["k=1", "per_file=0"], "at least 1, got 0"),
        (["k=1", "unlabelled=/nowhere"], "no file or folder /nowhere"),
        (["k=1", "data.root=/nowhere"], r"no folder /nowhere.*"),
    ],
)
def test_mistakes_are_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    code, _, err = command_line(monkeypatch, capsys, f"run={run}", f"output={tmp_path}/s.txt", *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert message.rstrip(".*") in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "s.txt").exists()
