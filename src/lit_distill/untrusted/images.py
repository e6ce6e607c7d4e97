"""Images that others made: opened from a short list of formats, within limits of pixels and of passes."""

from __future__ import annotations

import sys
from typing import Any, BinaryIO, Final

from PIL import Image, UnidentifiedImageError

from lit_distill.untrusted.budgets import MAX_RATIO

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Pillow's names of the formats that data sets of images are in. Of the others, some start a program (PostScript), and
all are decoders that nobody here needs."""
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""Endings of their files."""
MAX_PIXELS: Final = 64_000_000
"""Of an image, 8,000 x 8,000: 256 MB in Pillow."""
_MAX_READS: Final = 100_000
"""Of a file: a PNG of 64 million pixels has some 30,000 parts, three reads each; a file of empty parts has millions."""
_HEADER_BYTES: Final = 16 << 20
"""Before the pixels: some megabytes of a profile; Pillow joins the parts of a profile, each time all before it."""
_MAX_SCANS: Final = 200  # of a progressive JPEG, which has some ten; each is a pass over all pixels


def open_image(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an image; its pixels are decoded when they are asked for.

    Args:
        file: at its beginning; it must stay open as long as the image is used.
        max_pixels: width times height at most.

    Raises:
        ValueError: it is of another format, or beyond the limits.
        Exception: nearly anything, where it is damaged.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 3)).save(file, "GIF")
        >>> open_image(file)
        Traceback (most recent call last):
        ValueError: expected an image in JPEG, PNG, WEBP, BMP, PPM, TIFF, got another: convert it
    """
    file.seek(0)
    try:
        counted = _Counted(file)
        image = Image.open(counted, formats=FORMATS)
        counted.header_left = sys.maxsize  # what comes are pixels
    except UnidentifiedImageError:
        raise ValueError(f"expected an image in {', '.join(FORMATS)}, got another: convert it") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} is more than {max_pixels} pixels, the limit: scale it down")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"{width} x {height}: one side is more than {MAX_RATIO} times the other, the limit: crop it")
    if image.info.get("progressive"):
        place = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(place)
        if scans > _MAX_SCANS:
            raise ValueError(f"it is a JPEG of {scans} passes, the limit is {_MAX_SCANS}: encode it again")
    return image


class _Counted:
    """A file that is read so many times at most: decoders look at headers a part, or a byte, at a time.

    Attributes:
        header_left: bytes of parts that may still be read; a read of the whole file does not count.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left, self.header_left = file, _MAX_READS, _HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._left -= 1
        self.header_left -= len(content) if size >= 0 else 0
        if self._left < 0:
            raise ValueError(f"it has more than {_MAX_READS:,} parts, the limit: encode it again")
        if self.header_left < 0:
            raise ValueError(f"its header has more than {_HEADER_BYTES:,} bytes, the limit: encode it again")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
