"""Images of others: a short list of formats, no program, limits; what is wrong with one is that one's error."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_distill.data import VideoError, read_images
from lit_distill.data.images import evaluation_transform
from lit_distill.data.preprocess import Preprocess
from lit_distill.data.sources.images import read_image
from lit_distill.inference.predictions import predict_files
from lit_distill.untrusted.images import FORMATS, open_image

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n64 64 scale showpage\n%%EOF\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *before: bytes, pixels: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def many_passes() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 99).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 1000 + content[-2:]


def of_format(name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, name, **options)
    return file.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "PostScript": lambda: POSTSCRIPT,
    "PostScript with a DOS header": lambda: struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, 99, 0, 0, 0, 0, 0) + POSTSCRIPT,
    "PDF": lambda: of_format("PDF"),
    "icon": lambda: of_format("ICO"),
    "GIF": lambda: of_format("GIF"),
    "JPEG 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    "more pixels than the limit": lambda: png(30_000, 30_000, pixels=zlib.compress(bytes(1 << 20))),
    "sides that become long": lambda: png(4, 100_000, pixels=zlib.compress(bytes(13 * 100_000), 9)),
    "sides that become wide": lambda: png(100_000, 4, pixels=zlib.compress(bytes(4 * 300_001), 9)),
    "text that unfolds": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27), 9))),
    "profile that unfolds": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 27), 9))),
    "pixels that are missing": lambda: png(7_000, 7_000, pixels=zlib.compress(b"")),
    "JPEG of a thousand passes": many_passes,
    "PNG of empty parts": lambda: png(8, 8, *[chunk(b"abCd", b"")] * 60_000, pixels=zlib.compress(bytes(8 * 25))),
    "JPEG of empty parts": lambda: of_format("JPEG")[:2] + b"\xff\xfe\0\2" * 60_000 + of_format("JPEG")[2:],
    "JPEG of profiles": lambda: (
        of_format("JPEG")[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 300 + of_format("JPEG")[2:]
    ),
    "PPM of comments": lambda: b"P6 " + b"#\n" * 60_000 + b"8 8 255 " + bytes(3 * 64),
    "empty": lambda: b"",
    "cut": lambda: of_format("PNG")[:60],
}


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_images_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "img_00001.png"
    file.write_bytes(HOSTILE[kind]())
    with pytest.raises(ValueError, match=r"can't read the image .*img_00001\.png") as caught:
        read_image(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(VideoError) as of_a_frame:
        read_images(tmp_path, "img_{:05}.png", [1])
    assert of_a_frame.value.path == str(file)


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_of_data_sets_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(of_format(name))
    assert read_image(tmp_path / "a.png").size == (64, 64)


def test_honest_progressive_images_are_read() -> None:
    assert open_image(io.BytesIO(of_format("JPEG", progressive=True))).convert("RGB").size == (64, 64)


def test_a_bad_image_is_its_own_error_and_the_others_are_predicted(tmp_path: Path) -> None:
    names = []
    for kind, content in HOSTILE.items():
        names += [tmp_path / f"{kind}.png", tmp_path / f"after {kind}.png"]
        names[-2].write_bytes(content())
        names[-1].write_bytes(of_format("PNG"))

    def classes(batch: Tensor) -> Tensor:
        return torch.ones(len(batch), 2) / 2

    preprocess = Preprocess(
        sampling=None, transform=evaluation_transform(size=8, scale=8), size=8, scale=8, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    batches = predict_files(classes, preprocess, [str(name) for name in names], batch_size=4)
    told = [prediction for batch in batches for prediction in batch]
    assert [bool(one.error) for one in told] == [True, False] * len(HOSTILE)
    assert np.all(["\n" not in one.error for one in told])
