from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import av
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

import processes
from data.conftest import grey, moving_bars, write_images, write_lines
from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir, help_text
from lit_distill.data import Sample, write_video
from lit_distill.data import checking as module
from lit_distill.data.checking import Job, check, check_all
from lit_distill.data.index import Findings, run, show
from lit_distill.data.sources import VideoFiles


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    (root / "a").mkdir()
    for number, frames in enumerate((6, 9, 30)):
        write_video(root / f"a/{number}.mp4", moving_bars(frames, seed=number), options={"g": "12"})
    write_lines(root / "train.txt", ["a/0.mp4 0", "a/1.mp4 1"])
    write_lines(root / "val.txt", ["a/1.mp4 1", "a/2.mp4 0"])
    return root


@pytest.fixture
def root(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(good, tmp_path / "root"))


def config(root: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = ["data=video_list", f"data.root={root}", "data.num_classes=2", "workers=0", *overrides]
        return compose("index", open_data(given))


def found(root: Path, *overrides: str) -> Findings:
    return run(config(root, *overrides), console=quiet())


def quiet() -> Console:
    return Console(file=StringIO(), width=160)


def told(findings: Findings, folder: Path) -> str:
    screen = StringIO()
    show(Console(width=160, file=screen), findings, folder / "bad.txt")
    return screen.getvalue()


def test_all_in_order(root: Path, tmp_path: Path) -> None:
    findings = found(root)
    assert {Path(path).name: layout.info.frames for path, layout in findings.layouts.items()} == {
        "0.mp4": 6, "1.mp4": 9, "2.mp4": 30,
    }  # fmt: skip
    text = told(findings, tmp_path)
    assert "all videos are in order" in text
    rows = [line.replace("│", " ").split() for line in text.splitlines() if ".txt" in line]
    assert rows[0][:3] == ["train.txt", "2", "15"]
    assert rows[1][:3] == ["val.txt", "2", "39"]
    assert not (tmp_path / "bad.txt").exists()


def test_bad_ones_are_listed_with_reasons(root: Path, tmp_path: Path) -> None:
    (root / "a/0.mp4").write_bytes(b"")
    (root / "a/1.mp4").unlink()
    text = told(found(root), tmp_path)
    lines = [line.split("\t") for line in (tmp_path / "bad.txt").read_text().splitlines()]
    assert [path for path, _ in lines] == ["a/0.mp4", "a/1.mp4"]
    assert lines[1][1] == "No such file or directory"
    for path, reason in lines:
        assert f"{path}: {reason}" in text
    assert "data.on_bad=quarantine data.max_bad=2" in text
    shutil.copy(root / "a/2.mp4", root / "a/0.mp4")
    shutil.copy(root / "a/2.mp4", root / "a/1.mp4")
    assert "all videos are in order" in told(found(root), tmp_path)
    assert (tmp_path / "bad.txt").read_text() == ""


def test_what_is_known_is_not_checked_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(root).known == 0
    assert found(root).known == 3
    assert found(root, "check=decode").known == 0, "headers are not all"
    assert found(root, "check=decode").known == 3
    assert found(root).known == 3
    write_video(root / "a/1.mp4", moving_bars(7))
    assert found(root).known == 2


def test_decoding_finds_what_headers_hide(root: Path) -> None:
    with av.open(str(root / "a/2.mp4")) as container:
        packet = list(container.demux(video=0))[16]
        start, size = packet.pos or 0, packet.size
    content = bytearray((root / "a/2.mp4").read_bytes())
    content[start + 12 : start + size] = b"\xaa" * (size - 12)  # behind the picture's header
    (root / "a/2.mp4").write_bytes(content)
    assert not found(root).bad
    assert [Path(path).name for path in found(root, "check=decode").bad] == ["2.mp4"]


def test_folders_of_frames(root: Path) -> None:
    write_images(root / "f", grey(3, 40))
    write_images(root / "g", grey(3, 40))
    (root / "g/img_00002.jpg").write_bytes(b"no image")
    (root / "g/img_00003.jpg").unlink()
    write_lines(root / "train.txt", ["f 3 0", "f 3 1"])
    write_lines(root / "val.txt", ["g 3 0", "h 3 0"])
    bad = {Path(path).name: reason for path, reason in found(root, "data.format=frames").bad.items()}
    assert bad == {"g": "1 of its 3 images are missing, first img_00003.jpg", "h": "No such file or directory"}
    decoded = found(root, "data.format=frames", "check=decode").bad
    assert decoded[str(root / "g")].startswith("img_00002.jpg: ")


def _check_or_die(job: Job) -> Any:
    if Path(job.sample.path).name == "1.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return check(job)


def test_a_video_that_ends_its_worker_is_one_more_bad_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check", _check_or_die)
    monkeypatch.setattr(module, "_context", lambda: multiprocessing.get_context("fork"))  # imports nothing again
    jobs = [Job(Sample(str(root / f"a/{number % 3}.mp4"), 0), VideoFiles()) for number in range(6)]
    results = list(check_all(jobs, workers=2))
    assert sorted(Path(result.name).name for result in results) == sorted(["0.mp4", "1.mp4", "2.mp4"] * 2)
    for result in results:
        assert ("ended its process" in result.reason) == result.name.endswith("1.mp4")


def test_user_errors(root: Path) -> None:
    with pytest.raises(ValueError, match="check is 'headers' or 'decode', got 'all'"):
        found(root, "check=all")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*set data\.root"):
        found(root / "nowhere")
    with pytest.raises(ValueError, match="the index is for videos, but data=ImageFolderDataModule"):
        found(root, "data=image_folder")
    write_lines(root / "val.txt", ["../x.mp4 0"])
    with pytest.raises(ValueError, match=r"val\.txt:1: .* not inside the root"):
        found(root)


def test_the_command(root: Path, tmp_path: Path) -> None:
    (root / "a/0.mp4").write_bytes(b"")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        given = ["-m", "lit_distill.index", *arguments]
        return processes.run(given, cwd=tmp_path, env={**os.environ, "COLUMNS": "160"})

    given = ["data=video_list", f"data.root={root}", "data.num_classes=2"]
    done = command(*given, "check=decode", "workers=2")
    assert done.returncode == 1, done.stderr
    assert "3/3 videos" in done.stdout
    assert (tmp_path / "bad.txt").read_text().startswith("a/0.mp4\t")
    shutil.copy(root / "a/1.mp4", root / "a/0.mp4")
    done = command(*given, "workers=0")
    assert done.returncode == 0, done.stderr
    assert "2 were known" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"root", "cache", "bad.txt"}, "nothing else is left"
    assert "check=decode" in help_text("index")
    assert "bad.txt" in help_text("index")
