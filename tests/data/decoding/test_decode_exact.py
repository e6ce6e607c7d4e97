"""Every frame that is read is the one that decoding everything gives, whatever the kind of file and the indices."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.codec.codec import UnknownCodecError

from lit_distill.data import Limits, ShortVideoError, VideoError, VideoLayout, read_frames, scan
from lit_distill.data.decoding import decode
from lit_distill.data.decoding import pruned as _pruned

from ..video_files import Spec, all_files, decode_everything, encode

FILES = all_files()
DAMAGED = {"cut.avi", "cut.mp4"}  # cut inside a picture that decoding everything comes to

# One or two of each kind, for every run of the tests.
FAST = [
    *("h264_pyramid_g12.mp4", "h264_b_g60.mkv", "h264_b_g12.ts", "h264_p_g12.avi", "h264_b_g12.flv"),
    *("h264_open.mp4", "h264_refresh_b.mkv", "h264_mbaff.mp4", "h264_slices.mkv", "h264_odd.mp4"),
    *("hevc_open_b.mp4", "hevc_layers.mkv", "hevc_radl.mp4", "hevc_10bit.mp4", "starts_open_hevc.mkv"),
    *("mpeg4_b2_g12.avi", "mpeg4_b0_g12.avi", "mpeg4_interlaced.avi", "mpeg4_packed.avi", "mpeg4_b2_g12.mp4"),
    *("vp9_hidden_g12.webm", "vp9_yuva420p.webm", "vp8_alt1.webm", "av1_g12.mp4", "av1_g12.mkv", "mjpeg.avi"),
    *("prores_ks.mov", "vfr.mkv", "bursts.mp4", "same.mkv", "rotated90.mp4", "sound_first.mp4", "cover.mp4"),
    *("frames1_libx264.mp4", "frag_keyframe_empty_moov.mp4", "shifted-5_h264.mp4", "edit_two_h264.mp4"),
    *("edit_loop_mpeg4.mp4", "count3.avi", "samples-4.mp4", "packets5to50_h264.mkv", "cut.ts", "joined.ts"),
]


def index_sets(name: str, count: int) -> list[list[int]]:
    """First, last, few, unsorted and repeated, all, dense."""
    chance = random.Random(name)
    return [
        [0],
        [count - 1],
        [chance.randrange(count)],
        sorted(chance.choices(range(count), k=5)),
        chance.choices(range(count), k=8),
        list(range(count)),
        list(range(count // 3, min(count, count // 3 + 6))),
    ]


class Compared:
    """Whether the reads of one file gave what decoding everything gives, and whether all of it was decoded for that."""

    def __init__(self, path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.everything = 0
        read_everything = decode._read_everything

        def counting(*arguments: object) -> None:
            self.everything += 1
            read_everything(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(decode, "_read_everything", counting)
            self.different = list(self._differences(path, name, patch))

    def _differences(self, path: Path, name: str, patch: pytest.MonkeyPatch) -> list[str]:
        frames, corrupt = decode_everything(path)
        assert not corrupt
        found = []
        layout = scan(path)
        layout = VideoLayout.from_json(json.loads(json.dumps(layout.to_json())))
        if layout.info.frames != len(frames):
            found.append(f"scan counts {layout.info.frames} of {len(frames)}")
        for indices in index_sets(name, len(frames)):
            found += self._read(path, frames, indices, "path", None)
            found += self._read(path.read_bytes(), frames, indices, "bytes", layout)
            with patch.context() as without_index:
                without_index.setattr(decode, "_read_by_index", decode._read_by_packets)
                found += self._read(path, frames, indices, "packets", None)
        with pytest.raises(ShortVideoError) as short:
            read_frames(path, [0, len(frames)], layout=layout)
        if short.value.frames != len(frames):
            found.append(f"short of {short.value.frames}")
        return found

    def _read(
        self,
        source: Path | bytes,
        frames: Sequence[np.ndarray],
        indices: list[int],
        way: str,
        layout: VideoLayout | None,
    ) -> list[str]:
        wanted = [frames[index] for index in indices]
        if len({frame.shape for frame in wanted}) > 1:
            with pytest.raises(VideoError, match="differ in size"):
                read_frames(source, indices, layout=layout)
            return []
        before, got = self.everything, read_frames(source, indices, layout=layout)
        same = got.shape == (len(indices), *wanted[0].shape) and all(map(np.array_equal, got, wanted))
        return [] if same else [f"{way} {indices} (all decoded: {self.everything > before})"]


@pytest.mark.parametrize("name", FAST)
def test_frames_are_those_of_decoding_everything(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    try:
        FILES[name](path)
    except UnknownCodecError as error:
        # Never with PyAV's wheels. One built on another FFmpeg may have fewer encoders: what cannot be written cannot
        # be compared, and the long form demands 200 kinds in all.
        pytest.skip(f"no encoder: {error}")
    assert Compared(path, name, monkeypatch).different == []


@pytest.mark.slow
def test_all_kinds_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    different, built, pruned = {}, 0, 0
    for name in sorted(set(FILES) - DAMAGED):
        path = tmp_path / name
        try:
            FILES[name](path)
        except UnknownCodecError:
            continue
        compared = Compared(path, name, monkeypatch)
        built += 1
        pruned += compared.everything <= 1  # once, for the index past the end
        if compared.different:
            different[name] = compared.different
        path.unlink()
    with capsys.disabled():
        print(f"\nfiles compared equal: {built - len(different)}/{built}, of which pruned: {pruned}")
    assert different == {}
    assert built >= 200
    assert pruned >= 200


# What is pruned, and what is not


@pytest.mark.parametrize(
    ("name", "pruned"),
    [
        ("h264_b_g12.mp4", True),
        ("h264_open.mkv", True),
        ("hevc_open.mp4", True),
        ("vp9_hidden_g12.webm", True),
        ("av1_g12.mp4", True),
        ("mpeg4_b2_g12.avi", True),
        ("h264_b_g12.avi", False),  # no times
        ("same.mkv", False),  # the same time twice
        ("mpeg4_packed.avi", False),  # two frames in a packet
        ("h264_mbaff.mp4", False),  # interlaced
        ("edit_two_h264.mp4", False),  # frames that are not shown
        ("joined.ts", False),  # times that start anew
    ],
)
def test_pruning_is_used_where_it_can_be_trusted(
    tmp_path: Path, name: str, pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILES[name](tmp_path / name)
    everything: list[int] = []
    original = decode._read_everything

    def noticed(*arguments: object) -> None:
        everything.append(1)
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "_read_everything", noticed)
    read_frames(tmp_path / name, [20, 3])
    assert (not everything) == pruned


def decoded_packets(path: Path, indices: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many packets a read gives to the decoder, or tells it to skip."""
    counted: list[int] = []
    original = _pruned._Decoder._out

    def out(self: _pruned._Decoder, packet: Any) -> None:
        counted.append(packet is not None and self._context.skip_frame == "DEFAULT")
        original(self, packet)

    with monkeypatch.context() as patch:
        patch.setattr(_pruned._Decoder, "_out", out)
        read_frames(path, indices)
    return sum(counted)


def test_only_the_needed_frames_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    options = {"g": "12", "bf": "1", "b_strategy": "0", "sc_threshold": "0"}
    encode(path, Spec("libx264", options, 60))
    assert decoded_packets(path, [24], monkeypatch) == 1
    # groups of I B P B ... P P: frame 29 is a B frame, shown fifth in its group of I, 5 P, 6 B
    assert decoded_packets(path, [29], monkeypatch) == 1 + 3 + 1
    assert decoded_packets(path, [59, 0], monkeypatch) <= 12 + 1


# Layouts


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    encode(path, Spec("libx264", {"g": "12", "bf": "2", "b_strategy": "0", "sc_threshold": "0"}, 50))
    return path


def test_a_layout_of_another_file_gives_no_wrong_frame(video: Path, tmp_path: Path) -> None:
    layout = scan(video)
    others = {
        "gop": Spec("libx264", {"g": "7", "bf": "2", "b_strategy": "0"}, 50, seed=4),
        "shorter": Spec("libx264", {"g": "12", "bf": "2", "b_strategy": "0"}, 31, seed=4),
        "faster": Spec("libx264", {"g": "12", "bf": "2", "b_strategy": "0"}, 50, fps=50, seed=4),
        "codec": Spec("mpeg4", {"g": "12"}, 50, seed=4),
    }
    for name, spec in others.items():
        path = tmp_path / f"{name}.mp4"
        encode(path, spec)
        frames, _ = decode_everything(path)
        record = layout.to_json()
        for size in (layout.size, path.stat().st_size):  # even if the size happens to be the same
            stale = VideoLayout.from_json({**record, "size": size})
            for indices in ([30], [0, 13, 25], list(range(31))):
                got = read_frames(path, indices, layout=stale)
                np.testing.assert_array_equal(got, np.stack([frames[index] for index in indices]))


@pytest.mark.parametrize("change", [{"starts": [0, 11, 24, 36, 48]}, {"ticks": [0, 1, 2, 3, 4]}, {"seeks": [0] * 5}])
def test_a_layout_that_lies_gives_no_wrong_frame(video: Path, change: dict[str, list[int]]) -> None:
    frames, _ = decode_everything(video)
    layout = VideoLayout.from_json({**scan(video).to_json(), **change})
    for indices in ([11], [12], [23, 24], list(range(50))):
        got = read_frames(video, indices, layout=layout)
        np.testing.assert_array_equal(got, np.stack([frames[index] for index in indices]))


@pytest.mark.parametrize(
    "record", [{}, {"info": 3, "size": 1}, {"info": {}, "size": 1, "starts": [], "ticks": [], "seeks": []}]
)
def test_records_are_checked(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="scan the video again"):
        VideoLayout.from_json(record)


def test_the_layout(video: Path) -> None:
    layout = scan(video)
    assert layout.starts == (0, 12, 24, 36, 48)
    assert layout.size == video.stat().st_size
    assert (layout.info.frames, layout.info.width, layout.info.height) == (50, 64, 48)
    assert scan(video.read_bytes()) == layout


# Sources


def test_file_objects_are_called_by_their_name(video: Path) -> None:
    with video.open("rb") as file:
        np.testing.assert_array_equal(read_frames(file, [7]), read_frames(video, [7]))
        with pytest.raises(ShortVideoError) as caught:
            read_frames(file, [77])
    assert caught.value.path == str(video)
    named = io.BytesIO(b"nothing")
    named.name = "shard.tar/a.mp4"
    with pytest.raises(VideoError, match=re.escape("shard.tar/a.mp4: ")):
        read_frames(named, [0])


# Limits


def test_limits_are_kept(video: Path) -> None:
    for limits, reason in (
        (Limits(frames=20), "the limit"),
        (Limits(pixels=64 * 48 - 1), "64 x 48 is more than 3071 pixels a frame, the limit"),
        (Limits(seconds=1e-9), "took more than 1e-09 s, the limit"),
    ):
        for call in (
            lambda limits=limits: read_frames(video, [3], limits=limits),
            lambda limits=limits: scan(video, limits=limits),
        ):
            with pytest.raises(VideoError, match=re.escape(reason)):
                call()
    assert len(read_frames(video, [3], limits=Limits(frames=50, pixels=64 * 48))) == 1


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"pixels": -1}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_limits_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Limits expects {next(iter(wrong))} > 0"):
        Limits(**wrong)  # type: ignore[arg-type]
