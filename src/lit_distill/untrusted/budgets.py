"""What one file that others made may cost: its bytes, its entries, its pixels. Checked before the work is done."""

from __future__ import annotations

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
UNFOLDED: Final = 4
"""Bytes of tensors for a byte of their file: networks share tensors, or hold them under several names."""
UNFOLDED_FREE: Final = 1 << 20
"""Bytes of tensors that any file may unfold to."""


def lines_of(path: str | os.PathLike[str], *, what: str, errors: str = "strict") -> Iterator[str]:
    r"""The lines of a list in UTF-8, with their ends, within limits of their number and length.

    Args:
        path: of the list.
        what: it is to be, for messages.
        errors: as :func:`open` takes it.

    Raises:
        UntrustedFileError: it is no regular file, is too large, or has too many or too long lines.
        OSError: it cannot be read.
        UnicodeDecodeError: it is not in UTF-8.

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
        text = io.TextIOWrapper(file, "utf-8-sig", errors)
        for number, line in enumerate(iter(lambda: text.readline(LINE_CHARACTERS), ""), 1):
            if len(line) == LINE_CHARACTERS:
                where = f"{os.fspath(path)}:{number}"
                raise UntrustedFileError(
                    where, f"expected a line of {what}, got {LINE_CHARACTERS:,} characters without end"
                )
            yield line
