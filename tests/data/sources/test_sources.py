"""Formats as sources: what the interface promises, and a custom format beside the built-in ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from lit_distill.data import Sample, Source, Video, VideoDataModule, VideoError
from lit_distill.data.checking import Job, check
from lit_distill.data.decoding.frames import Frames
from lit_distill.data.sources import Format, FrameFolders, Shards, VideoFiles, source_of

from ..conftest import moving_bars, write_lines
from ..test_datamodule import make
from ..test_loading import epochs


class NpyVideo(Video):
    def __init__(self, path: str) -> None:
        try:
            self.frames = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise VideoError(path, str(error)) from error
        self.length = len(self.frames)

    def read(self, numbers: Sequence[int]) -> Frames:
        read: Frames = self.frames[list(numbers)]
        return read


class NpyFiles(Source):
    def __init__(self, *, opened: list[str] | None = None) -> None:
        self.opened = [] if opened is None else opened

    def open(self, sample: Sample) -> NpyVideo:
        self.opened.append(sample.path)
        return NpyVideo(sample.path)

    def identity(self, sample: Sample, length: int) -> tuple[object, ...]:
        return sample.path, self.stamp(sample), "npy"


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    lines = []
    for number, frames in enumerate((20, 5, 12, 33)):
        np.save(tmp_path / f"{number}.npy", moving_bars(frames, seed=number))
        lines.append(f"{number}.npy {number % 3}")
    write_lines(tmp_path / "train.txt", lines)
    write_lines(tmp_path / "val.txt", lines[:3])
    return tmp_path


@pytest.mark.parametrize("arguments", [{}, {"views": "dense", "eval_batch_size": 2}, {"num_workers": 2}])
def test_a_custom_source_is_trained_and_evaluated_on(arrays: Path, arguments: dict[str, Any]) -> None:
    data = make(arrays, source=NpyFiles(), batch_size=2, **arguments)
    (batch, *_) = data.val_dataloader()
    video = np.load(arrays / "0.npy")
    plan = data.sampling.evaluation(20)[0]
    if "views" not in arguments:
        assert torch.equal(batch[0][0], torch.from_numpy(data.transform.center(video[plan])).permute(0, 3, 1, 2))
    one, other = ([list(epoch) for epoch in epochs(data)] for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_is_cached_by_its_identity(arrays: Path) -> None:
    opened: list[str] = []
    for changed in (False, True):
        if changed:
            np.save(arrays / "0.npy", moving_bars(20, seed=7))
        plain = make(arrays, source=NpyFiles(), batch_size=2)
        cached = make(arrays, source=NpyFiles(opened=opened), batch_size=2, cache="disk", cache_dir=arrays / "cache")
        for a, b in zip(plain.val_dataloader(), cached.val_dataloader(), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert cached.clip_cache is not None
        assert cached.clip_cache.stats().hits == (2 if changed else 0)


def test_what_it_cannot_read_is_left_out_under_quarantine(arrays: Path) -> None:
    (arrays / "1.npy").write_bytes(b"no array")
    data = make(arrays, source=NpyFiles(), on_bad="quarantine", max_bad=1, eval_batch_size=3)
    (batch,) = data.val_dataloader()
    assert batch[2].tolist() == [0, 2]
    assert data.quarantine is not None
    assert [entry.path for entry in data.quarantine.found] == ["1.npy"]
    assert check(Job(Sample(str(arrays / "1.npy"), 0), NpyFiles())).reason
    assert not check(Job(Sample(str(arrays / "0.npy"), 0), NpyFiles(), check="decode")).reason


def test_frames_of_another_form_are_refused_by_name(arrays: Path) -> None:
    class Floats(NpyFiles):
        def open(self, sample: Sample) -> NpyVideo:
            video = super().open(sample)
            video.frames = video.frames.astype(np.float32)
            return video

    data = make(arrays, source=Floats())
    data.setup("validate")
    with pytest.raises(ValueError, match=r"Floats gave float32 \(4, 48, 64, 3\) for 4 frames of .*0.npy: expected"):
        data.datasets["val"][0]


def test_the_default_identity_has_the_attributes_of_the_source(arrays: Path) -> None:
    class Scaled(Source):
        def __init__(self, scale: int) -> None:
            self.scale = scale

        def open(self, sample: Sample) -> Video:
            raise NotImplementedError

    sample = Sample(str(arrays / "0.npy"), 0)
    one, same, other = (repr(Scaled(scale).identity(sample, 20)) for scale in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize(("format", "kind"), [("video", VideoFiles), ("frames", FrameFolders), ("shards", Shards)])
def test_a_format_is_a_source(tmp_path: Path, format: Any, kind: type[Source]) -> None:
    assert type(make(tmp_path, format=format).source) is kind


@pytest.mark.parametrize("format", get_args(Format))
def test_a_format_is_named_where_users_look(format: str) -> None:
    page = Path(__file__).parents[3] / "docs" / "own_model.md"
    chosen = re.search(r"data\.format=([\w|]+)", page.read_text(encoding="utf-8"))
    assert chosen is not None
    assert format in chosen[1].split("|"), f"docs/own_model.md names data.format={chosen[1]}: add {format}"
    documented = (VideoDataModule.__doc__ or "").partition("format: ")[2].partition("source: ")[0]
    assert f'``"{format}"``' in documented, f"the docstring of VideoDataModule lacks {format!r} at the argument format"


def test_unknown_formats_and_what_a_custom_source_cannot_do(arrays: Path) -> None:
    with pytest.raises(ValueError, match=rf"data\.format is one of {', '.join(get_args(Format))}, got .webm."):
        source_of("webm", root=".")
    with pytest.raises(ValueError, match=r"data\.shuffle=shards goes with data\.format=shards, not NpyFiles"):
        make(arrays, source=NpyFiles(), shuffle="shards")
    with pytest.raises(FileNotFoundError, match=r"no list .*gone\.txt, set data\.val_list=<file>"):
        make(arrays, source=NpyFiles(), val_list="gone.txt").setup("validate")
