"""Where the files of a tar archive are, from its headers alone: bounded, and refused rather than guessed at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from lit_distill.data.catalogue.samples import Member

_BLOCK: Final = 512
_LONGEST_HEADER: Final = 1 << 16  # bytes of a long name or of extended headers
_SHOWN: Final = 100  # characters of a name in an error
_REGULAR: Final = (b"0", b"\0", b"7")
_DIRECTORY: Final = b"5"
_GLOBAL, _EXTENDED, _LONG_NAME = b"g", b"x", b"L"
_REFUSED: Final = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_REFUSED_REST: Final = "neither a file nor a folder"


class TarError(ValueError):
    """What is wrong with an archive."""


def members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The regular files of an uncompressed tar archive (ustar, GNU or pax), in their order; contents are not read.

    Args:
        file: seekable.
        size: of the archive, in bytes.

    Raises:
        TarError: it is truncated or no such archive, or a member is not one that a shard may hold: a link, a device, a
            sparse file, a name that leads out of the archive, a size beyond the archive's end.
    """
    position, long_name = 0, ""
    extended: dict[str, str] = {}
    while True:
        header = _read(file, position, _BLOCK, "its end is missing")
        if header == bytes(_BLOCK):
            return
        name, content, kind = _parsed(header, position)
        name, content = extended.get("path", long_name or name), int(extended.get("size", content))
        start = position + _BLOCK
        if content < 0 or start + content > size:
            raise TarError(f"member {shown(name)} has {content} bytes, beyond its end")
        if kind in (_GLOBAL, _EXTENDED, _LONG_NAME):
            if content > _LONGEST_HEADER:
                raise TarError(f"a header of {content} bytes at byte {position}")
            text = _read(file, start, content, f"truncated in a header at byte {position}")
            if kind == _LONG_NAME:
                long_name = _text(text.rstrip(b"\0"))
            elif kind == _EXTENDED:
                extended = _records(text, position)
        else:
            _check_name(name)
            if kind in _REGULAR and not name.endswith("/"):
                yield Member(name, start, content)
            elif kind != _DIRECTORY and kind not in _REGULAR:
                raise TarError(f"member {shown(name)} is {_REFUSED.get(kind, _REFUSED_REST)}")
            long_name, extended = "", {}
        position = start + -(-content // _BLOCK) * _BLOCK


def _parsed(header: bytes, position: int) -> tuple[str, int, bytes]:
    """Name, size and type flag of a header."""
    stored = _number(header[148:156], position)
    if sum(header[:148]) + 8 * 0x20 + sum(header[156:]) != stored:
        raise TarError(f"no tar header at byte {position}: not an uncompressed tar archive, or damaged")
    name = _text(header[:100].split(b"\0")[0])
    if header[257:263] == b"ustar\0":
        prefix = _text(header[345:500].split(b"\0")[0])
        name = f"{prefix}/{name}" if prefix else name
    return name, _number(header[124:136], position), header[156:157]


def _number(field: bytes, position: int) -> int:
    if field[0] & 0x80:  # GNU: base 256, for what octal digits can't say
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b"\0 ")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TarError(f"no tar header at byte {position}: not an uncompressed tar archive, or damaged") from None


def _records(text: bytes, position: int) -> dict[str, str]:
    """Extended headers: records ``length key=value`` and a line feed."""
    found: dict[str, str] = {}
    text, start = text.rstrip(b"\0"), 0
    while start < len(text):
        length, _, _ = text[start : start + 9].partition(b" ")
        if not length.isdigit() or len(length) > 8 or not len(length) < int(length) <= len(text) - start:
            raise TarError(f"malformed extended header at byte {position}")
        key, _, value = text[start + len(length) + 1 : start + int(length) - 1].partition(b"=")
        found[_text(key)] = _text(value)
        start += int(length)
    if any(key.startswith("GNU.sparse") for key in found):
        raise TarError(f"member {shown(found.get('path', ''))} is a sparse file")
    size = found.get("size", "0")
    if not size.isdecimal() or len(size) > 20:
        raise TarError(f"malformed extended header at byte {position}")
    return found


def shown(name: str) -> str:
    """The name of a member as errors have it: quoted, and short however long it is.

    Example:
        >>> shown("a/0.mp4"), len(shown("a" * 5000))
        ("'a/0.mp4'", 104)
    """
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]} …")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")  # a name cut within a character has its long one beside it


def _check_name(name: str) -> None:
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise TarError(f"member {shown(name)} leads out of the archive")
    if not name.isprintable() and any("\ud800" <= character <= "\udfff" for character in name):
        raise TarError(f"member {shown(name)} has a name that is not UTF-8")


def _read(file: BinaryIO, position: int, size: int, otherwise: str) -> bytes:
    file.seek(position)
    content = file.read(size)
    if len(content) != size:
        raise TarError(f"{otherwise}, {position + len(content)} bytes are left")
    return content
