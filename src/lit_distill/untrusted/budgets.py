"""What one file that others made may cost: its bytes, its entries, its pixels. Checked before the work is done."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from typing import Final

from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted

LIST_BYTES: Final = 256 << 20
"""Of a list of samples, of shards, of inputs or of class names."""
LIST_LINES: Final = 4_000_000
"""In a list: HowTo100M, the largest public set of videos, has 1.2 million."""
LINE_CHARACTERS: Final = 1 << 16
"""In a line of a list; a path has at most 4,096."""
INDEX_BYTES: Final = 2 << 30
"""Of an index of videos or of a shard's samples in the cache."""
TABLE_BYTES: Final = 256 << 20
"""Of a table of logged metrics, or of the rows of predictions."""
TEXT_BYTES: Final = 16 << 20
"""Of JSON, YAML and logs that are read as a whole."""
IMAGE_BYTES: Final = 256 << 20
"""Of an image: one of 64 million pixels without compression has 192 MB."""
MAX_RATIO: Final = 50
"""Of a picture's longer side to its shorter one, which is what is scaled: 4 x 100,000 becomes 256 x 6,400,000."""
WEIGHTS_BYTES: Final = 32 << 30
"""Of a weights file, a checkpoint or an exported network."""
ONNX_BYTES: Final = 4 << 30
"""Of all tensors that ONNX Runtime keeps at a time in a process: weights, and what its nodes give."""
ONNX_SECONDS: Final = 300.0
"""That ONNX Runtime may take for a batch of an untrusted file."""

HEADER_BYTES: Final = 4 << 20
"""Of the header of a safetensors file: some hundred for a tensor."""
TENSORS: Final = 20_000
"""In a safetensors file: the largest networks have some 5,000."""
UNFOLDED: Final = 4
"""Bytes of tensors for a byte of their file: networks share tensors, or hold them under several names."""
UNFOLDED_FREE: Final = 1 << 20
"""Bytes of tensors that any file may unfold to."""


def lines_of(
    path: str | os.PathLike[str], *, what: str, errors: str = "strict", encoding: str = "utf-8"
) -> Iterator[str]:
    r"""The lines of a list, with their ends, within limits of their number and length.

    Args:
        path: of the list.
        what: it is to be, for messages.
        errors: as :func:`open` takes it.
        encoding: of the file, unless it begins with a byte order mark, which says it.

    Raises:
        UntrustedFileError: it is no regular file, is too large, has too many or too long lines, or is not in this
            encoding.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"a.mp4 0\r\nb.mp4 1"), file.flush()
        ...     list(lines_of(file.name, what="a list"))
        ['a.mp4 0\n', 'b.mp4 1']
    """
    with open_untrusted(path, what=what, limit=LIST_BYTES) as file:
        feeds = returns = 0
        while block := file.read(1 << 20):
            feeds, returns = feeds + block.count(b"\n"), returns + block.count(b"\r")
            if max(feeds, returns) > LIST_LINES:
                raise UntrustedFileError(path, f"expected {what} of at most {LIST_LINES:,} lines, got more: split it")
        file.seek(0)
        encoding = marked_encoding(file.read(4)) or _known(path, encoding)
        file.seek(0)
        text = io.TextIOWrapper(file, encoding, errors)
        number = 0
        while True:
            try:
                line = text.readline(LINE_CHARACTERS)
            except UnicodeDecodeError as error:
                raise UntrustedFileError(_where(path, encoding, number + 1), _not_in(encoding, error)) from error
            if not line:
                return
            number += 1
            if len(line) == LINE_CHARACTERS:
                where = f"{os.fspath(path)}:{number}"
                raise UntrustedFileError(
                    where, f"expected a line of {what}, got {LINE_CHARACTERS:,} characters without end"
                )
            yield line


def marked_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark at the start of a text says; None without one."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else None


def decoded(path: str | os.PathLike[str], content: bytes) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says.

    Raises:
        UntrustedFileError: it is in another encoding.
    """
    encoding = marked_encoding(content[:4]) or "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"{os.fspath(path)}:{content[: error.start].count(10) + 1}"
        raise UntrustedFileError(where, _not_in(encoding, error, remedy="save it as UTF-8")) from error


def _known(path: str | os.PathLike[str], encoding: str) -> str:
    try:
        b"a".decode(encoding, "ignore")  # codecs.lookup takes "hex", which is no encoding of text
    except (LookupError, TypeError, UnicodeError):
        wanted = "utf-8, gbk, latin-1 or another that Python knows"
        raise ValueError(f"{os.fspath(path)}: expected the encoding {wanted}, got {encoding!r}") from None
    return codecs.lookup(encoding).name


def _where(path: str | os.PathLike[str], encoding: str, reached: int) -> str:
    """The line that is not in an encoding: the reader decodes a block at a time, and knows no line."""
    if encoding.startswith(("utf-16", "utf-32")):
        return f"{os.fspath(path)}:{reached}"
    with open_untrusted(path, what="a list", limit=LIST_BYTES) as file:
        for number, line in enumerate(iter(lambda: file.readline(4 * LINE_CHARACTERS), b""), 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return f"{os.fspath(path)}:{number}"
    return f"{os.fspath(path)}:{reached}"


def _not_in(encoding: str, error: UnicodeDecodeError, remedy: str = "") -> str:
    remedy = remedy or "save it as UTF-8, or set data.encoding, such as gbk"
    byte = error.object[error.start]
    return f"expected text in {encoding.removesuffix('-sig').upper()}, got the byte 0x{byte:02x}: {remedy}"
