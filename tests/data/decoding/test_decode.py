from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from lit_distill.data import (
    Limits,
    ShortVideoError,
    VideoError,
    count_frames,
    probe,
    read_frames,
    read_images,
    write_video,
)

from ..conftest import decode_all, moving_bars, write_images

CODECS = {
    "b_frames.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "open_gop.mkv": ("libx264", {"bf": "2", "g": "8", "x264-params": "open-gop=1"}),
    "intra.mp4": ("libx264", {"g": "1"}),
    "plain.avi": ("mpeg4", {}),
    "b_frames.avi": ("mpeg4", {"bf": "2"}),
}


@pytest.fixture(scope="module", params=CODECS)
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = CODECS[request.param]
    path: Path = tmp_path_factory.mktemp("codecs") / request.param
    write_video(path, moving_bars(31), codec=codec, options=options)
    return path


def test_frames_equal_those_of_decoding_everything(encoded: Path) -> None:
    everything = decode_all(encoded)
    assert len(everything) == 31 == count_frames(encoded)
    for indices in ([0], [30], [3, 4, 5], [29, 0, 13, 13, 30], list(range(31))):
        np.testing.assert_array_equal(read_frames(encoded, indices), np.stack([everything[i] for i in indices]))


def test_frames_are_the_right_ones(encoded: Path) -> None:
    for index, frame in zip((30, 2, 17), read_frames(encoded, [30, 2, 17]), strict=True):
        distances = np.abs(moving_bars(31).astype(int) - frame).mean((1, 2, 3))
        assert distances.argmin() == index


def test_size_resizes_in_the_conversion(encoded: Path) -> None:
    small = read_frames(encoded, [5, 1], size=(24, 40))
    assert small.shape == (2, 24, 40, 3)
    with av.open(str(encoded)) as container:
        frame = [*container.decode(video=0)][5]
        np.testing.assert_array_equal(small[0], frame.reformat(40, 24, "rgb24").to_ndarray())


def test_probe(encoded: Path) -> None:
    info = probe(encoded)
    assert (info.frames, info.width, info.height, info.fps, info.rotation) == (31, 64, 48, 25.0, 0)
    assert info.duration == pytest.approx(31 / 25, abs=0.1)
    assert info.codec == ("mpeg4" if encoded.suffix == ".avi" else "h264")


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(rotation)
        for image in moving_bars(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    turned = read_frames(path, [2])[0]
    np.testing.assert_array_equal(turned, np.rot90(decode_all(path)[2], rotation // 90))
    info = probe(path)
    assert (info.height, info.width) == turned.shape[:2]
    assert info.rotation == rotation % 360
    assert read_frames(path, [0], size=(20, 32)).shape == (1, 20, 32, 3)


def test_attached_picture_is_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        blank = np.zeros((32, 32, 3), np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(blank, format="rgb24").reformat(format="yuvj420p")))
        for image in moving_bars(6):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
        container.mux(cover.encode())
    assert probe(path).frames == 6
    assert read_frames(path, [5]).shape == (1, 48, 64, 3)


@pytest.mark.parametrize("indices", [[], [3, -1]])
def test_indices_are_checked(encoded: Path, indices: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one index, none negative"):
        read_frames(encoded, indices)


def test_a_frame_past_the_end(encoded: Path) -> None:
    with pytest.raises(ShortVideoError, match="frame 31 was wanted, but it has 31 frames") as caught:
        read_frames(encoded, [4, 31])
    assert caught.value.frames == 31
    assert caught.value.path == str(encoded)


def test_frames_are_written_to_what_is_given(encoded: Path) -> None:
    out = np.zeros((3, 48, 64, 3), np.uint8)
    assert read_frames(encoded, [9, 1, 9], out=out) is out
    np.testing.assert_array_equal(out, read_frames(encoded, [9, 1, 9]))
    with pytest.raises(ValueError, match=r"out is an array of uint8 \(2, 48, 64, 3\) for these frames, got uint8"):
        read_frames(encoded, [9, 1], out=out)


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def truncated(path: Path) -> None:
    whole = path.with_name("whole.mp4")
    write_video(whole, moving_bars(20))
    path.write_bytes(whole.read_bytes()[:-2000])


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("not a video at all\n" * 100),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(20_000)),
    "audio": audio_only,
    "truncated": truncated,
    "playlist": lambda path: path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n"
    ),
    "concatenation": lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_is_a_video_error(tmp_path: Path, kind: str) -> None:
    write_video(tmp_path / "other.mp4", moving_bars(5))
    path = tmp_path / "bad.mp4"
    BROKEN[kind](path)
    for read in (lambda: read_frames(path, [0]), lambda: probe(path), lambda: count_frames(path)):
        with pytest.raises(VideoError) as caught:
            read()
        assert caught.value.path == str(path)
        assert caught.value.reason
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "lavfi:testsrc"])
def test_only_local_files_are_opened(name: str) -> None:
    with pytest.raises(VideoError, match="No such file"):
        read_frames(name, [0])


def test_a_name_that_looks_like_a_protocol_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("concat:a").mkdir()
    write_video("b.mp4", moving_bars(3))
    Path("b.mp4").rename("concat:a/b.mp4")
    assert len(read_frames("concat:a/b.mp4", [2])) == 1


class Broken(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise VideoError("a.mp4", "no good")


def test_errors_cross_processes() -> None:
    short = pickle.loads(pickle.dumps(ShortVideoError("a.mp4", "short", 7)))
    assert (type(short), short.path, short.reason, short.frames) == (ShortVideoError, "a.mp4", "short", 7)
    batches = iter(DataLoader(Broken(), num_workers=1))
    with pytest.raises(VideoError, match=r"a\.mp4: no good"):
        next(batches)
    batches._shutdown_workers()  # type: ignore[attr-defined]  # else the collector waits 5 s for them, some time later


def test_images(tmp_path: Path) -> None:
    video = moving_bars(3, height=40, width=56)
    write_images(tmp_path, list(video))
    frames = read_images(tmp_path, "img_{:05}.jpg", [3, 1, 3])
    assert frames.shape == (3, 40, 56, 3)
    np.testing.assert_array_equal(frames[0], frames[2])
    assert np.abs(frames.astype(int) - video[[2, 0, 2]]).mean() < 6


def test_a_folder_is_read_by_pattern_and_only_what_is_wanted(tmp_path: Path) -> None:
    video = moving_bars(5, height=40, width=56)
    write_images(tmp_path, list(video))
    for number in (1, 2, 5):
        (tmp_path / f"img_{number:05}.jpg").write_bytes(b"never looked at")
    frames = read_frames(tmp_path, [3, 2, 3], suffix="img_{:05}.jpg")
    np.testing.assert_array_equal(frames, read_images(tmp_path, "img_{:05}.jpg", [4, 3, 4]))
    assert read_frames(tmp_path, [3], suffix="img_{:05}.jpg", size=(20, 30)).shape == (1, 20, 30, 3)
    with pytest.raises(ValueError, match="expects the path of a folder, got bytes"):
        read_frames(b"", [0], suffix="img_{:05}.jpg")


def test_limits_of_images(tmp_path: Path) -> None:
    write_images(tmp_path, [np.zeros((40, 50, 3), np.uint8)])
    for limits, reason in (
        (Limits(pixels=1999), r"img_00001\.jpg: 50 x 40 is more than 1999 pixels, the limit"),
        (Limits(seconds=1e-9), r"reading it took more than 1e-09 s, the limit"),
    ):
        with pytest.raises(VideoError, match=reason):
            read_images(tmp_path, "img_{:05}.jpg", [1], limits=limits)
        with pytest.raises(VideoError, match=reason):
            read_frames(tmp_path, [0], suffix="img_{:05}.jpg", limits=limits)
    huge = bytearray((tmp_path / "img_00001.jpg").read_bytes())
    at = huge.index(b"\xff\xc0") + 5  # height and width of the frame header
    huge[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "img_00001.jpg").write_bytes(huge)
    with pytest.raises(VideoError, match=r"img_00001\.jpg: "):
        read_frames(tmp_path, [0], suffix="img_{:05}.jpg")


def test_images_that_fail(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"img_00001\.jpg: No such file"):
        read_images(tmp_path, "img_{:05}.jpg", [1])
    (tmp_path / "img_00001.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    with pytest.raises(VideoError, match=r"img_00001\.jpg: "):
        read_images(tmp_path, "img_{:05}.jpg", [1])
    (tmp_path / "img_00003.jpg").touch()
    with pytest.raises(VideoError, match=r"img_00003\.jpg: "):
        read_images(tmp_path, "img_{:05}.jpg", [3])
    write_images(tmp_path, [np.zeros((side, side, 3), np.uint8) for side in (16, 24)], first=4)
    with pytest.raises(VideoError, match="differ in size"):
        read_images(tmp_path, "img_{:05}.jpg", [4, 5])


def test_a_file_of_another_format_says_which_are_read(tmp_path: Path) -> None:
    for content, said in (
        (bytes(999), "Invalid data: no video of a format that is read, such as mp4"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is a PNG image, no video"),
        (b"GIF89a" + bytes(99), r"a\.mp4: "),
    ):
        file = tmp_path / "a.mp4"
        file.write_bytes(content)
        with pytest.raises(VideoError, match=said):
            read_frames(file, [0])
