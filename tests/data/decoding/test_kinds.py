"""Animated GIF is a video, what is no video says what it is, and of several streams one is chosen."""

from __future__ import annotations

import io
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lit_distill.data import VideoDataModule, VideoError, VideoLayout
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.video_index import VideoIndex
from lit_distill.data.decoding.decode import count_frames, probe, read_frames, scan
from lit_distill.data.preprocess import Preprocess
from lit_distill.data.sources import VideoFiles


def gif(path: Path, frames: int = 7) -> None:
    """Each frame changes a part of the one before: what a later frame shows needs the earlier ones."""
    images = []
    for number in range(frames):
        image = Image.new("RGB", (48, 32), (20, 40, 60))
        image.paste((255, 30 * number, 0), (5 * number, 4, 5 * number + 8, 20))
        images.append(image)
    images[0].save(path, save_all=True, append_images=images[1:], duration=80, loop=0)


def two_streams(
    path: Path, *, default: int | None = None, sizes: tuple[tuple[int, int], ...] = ((64, 48), (96, 64))
) -> None:
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in sizes:
            stream = container.add_stream("mpeg4", rate=Fraction(10))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.bit_rate = width * height * 100
            streams.append(stream)
        if default is not None:
            for number, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        noise = np.random.default_rng(0)
        for _ in range(12):
            for number, stream in enumerate(streams):
                pixels = noise.integers(0, 255, (stream.height, stream.width, 3), dtype=np.uint8)
                pixels[:, :, 2 - number] = 0
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))


def test_an_animated_gif_is_a_video_exact_to_the_last_frame(tmp_path: Path) -> None:
    gif(tmp_path / "a.gif")
    with av.open(str(tmp_path / "a.gif")) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    layout = scan(tmp_path / "a.gif")
    assert (layout.info.frames, layout.info.width, layout.info.height, layout.info.codec) == (7, 48, 32, "gif")
    assert count_frames(tmp_path / "a.gif") == 7
    for given in (None, layout):
        for numbers in ([6], [0, 3], [5, 1, 5]):
            clip = read_frames(tmp_path / "a.gif", numbers, layout=given)
            np.testing.assert_array_equal(clip, np.stack([whole[number] for number in numbers]))


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_a_data_module_and_predict_read_it(name: str, tmp_path: Path) -> None:
    gif(tmp_path / "made.gif")
    (tmp_path / "made.gif").rename(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"{name} 0\n")
    data = VideoDataModule(
        root=tmp_path, train_list="list.txt", val_list="list.txt", num_classes=1, num_frames=4, size=28, scale=32,
        num_workers=0, batch_size=1,
    )  # fmt: skip
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert batch[0].shape == (1, 4, 3, 28, 28)
    assert Preprocess.of(data)(tmp_path / name).shape == (1, 4, 3, 28, 28)
    assert VideoFiles().check(Sample(str(tmp_path / name), 0), "decode").info.frames == 7


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.txt", "a")
    elif kind == "apng":
        images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(3)]
        images[0].save(buffer, "PNG", save_all=True, append_images=images[1:])
    else:
        Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webp", ".apng"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded("PNG"), "it is a PNG image, no video"),
        (encoded("apng"), "it is a PNG image, no video"),
        (encoded("JPEG"), "it is a JPEG image, no video"),
        (encoded("WEBP"), "it is a WebP image, no video"),
        (encoded("BMP"), "it is a BMP image, no video"),
        (encoded("TIFF"), "it is a TIFF image, no video"),
        (encoded("zip"), "it is a zip archive, no video"),
        (b"just some words in a file\n" * 9, "it is text, no video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "it is a web page, no video"),
        (b"", "empty"),
    ],
)
def test_what_is_named_like_a_video_says_what_it_is(content: bytes, said: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    for reader in (probe, scan, count_frames, lambda path: read_frames(path, [0])):
        with pytest.raises(VideoError, match=said) as raised:
            reader(file)
        assert "\n" not in str(raised.value)
        assert str(file) in str(raised.value)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_best_stream_is_ffmpegs(suffix: str, default: int, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    two_streams(file, default=default)
    with av.open(str(file)) as container:
        best = container.streams.best("video")
        assert isinstance(best, av.video.stream.VideoStream)
        wanted = (best.codec_context.width, best.codec_context.height)
    with pytest.warns(UserWarning, match=r"several video streams, 0 \(64x48\), 1 \(96x64\): .* is read"):
        layout = scan(file)
    assert (layout.info.width, layout.info.height) == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_frames(file, [11]).shape == (1, wanted[1], wanted[0], 3)
        assert read_frames(file, [11], layout=layout).shape == (1, wanted[1], wanted[0], 3)
        info = probe(file)
    assert (info.width, info.height) == wanted


@pytest.mark.parametrize(("stream", "size"), [(0, (64, 48)), (1, (96, 64))])
def test_a_user_chooses_another(stream: int, size: tuple[int, int], tmp_path: Path) -> None:
    two_streams(tmp_path / "a.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout = scan(tmp_path / "a.mp4", stream=stream)
        clip = read_frames(tmp_path / "a.mp4", [3, 11], layout=layout)
        with av.open(str(tmp_path / "a.mp4")) as container:
            whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[stream])]
    assert (layout.info.width, layout.info.height) == size
    np.testing.assert_array_equal(clip, np.stack([whole[3], whole[11]]))
    assert VideoLayout.from_json(layout.to_json()) == layout
    with pytest.raises(VideoError, match="it has 2 video streams, video_stream=2 counts from 0"):
        scan(tmp_path / "a.mp4", stream=2)


def test_the_index_and_the_cache_follow_the_choice(tmp_path: Path) -> None:
    two_streams(tmp_path / "a.mp4")
    sample, index = Sample(str(tmp_path / "a.mp4"), 0), VideoIndex(tmp_path, folder=tmp_path / "cache")
    first, second = (VideoFiles(index=index, stream=stream) for stream in (0, 1))
    for _ in range(2):
        assert first.open(sample).size == (64, 48)
        assert second.open(sample).size == (96, 64)
        assert index.find(sample.path) is None, "what is known is of a stream, not of the best one"
        assert index.find(sample.path, stream=1) is not None
    assert first.identity(sample, 12) != second.identity(sample, 12)


def test_data_video_stream(tmp_path: Path) -> None:
    two_streams(tmp_path / "a.mp4")
    given = {"root": tmp_path, "train_list": "a", "val_list": "a", "num_classes": 1}
    data = VideoDataModule(**given, video_stream=0)  # type: ignore[arg-type]
    assert data.source.open(Sample(str(tmp_path / "a.mp4"), 0)).size == (64, 48)
    assert Preprocess.of(data).video_stream == 0
    with pytest.raises(ValueError, match=r"data\.video_stream is a number from 0, or null for the best stream, got -1"):
        VideoDataModule(**given, video_stream=-1)  # type: ignore[arg-type]
