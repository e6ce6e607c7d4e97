"""Seeded changes of honest files: of bytes, text and trees, and of the parts of formats, checksums mended."""

from __future__ import annotations

import copy
import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

PORT = 18765
LOOPBACK = f"127.0.0.1:{PORT}"
"""An address that stands in many cases; whoever runs them listens there."""
EDGES = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 4095, 4096, 32767, 32768, 65535, 65536,
    10**6, 10**7, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
NAMES = (
    "../outside", "../../outside", "/etc/passwd", "/dev/zero", "~/outside", "a/../../outside", ".", "..", "", "a\0b",
    "\x1b[2J", "\u202eevil", "\ud800", "CON", "x" * 300, "a\\b", "[bold]x[/x]", "=1+1", "%s%n", "é", "\n", " ", "-rf",
    f"http://{LOOPBACK}/x", f"simplecache::http://{LOOPBACK}/x", f"concat:http://{LOOPBACK}/x",
    "simplecache::memory:x", "a::b", "file:///etc/passwd",
    f"\\\\{LOOPBACK}\\x", f"//{LOOPBACK}/x", "pipe:0", "a.m3u8", "s3://bucket/x", "os.system", "builtins.eval",
    "torch.load", "posix", "system", "__reduce__", "touch outside",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64, -(2**63), 10**30,
    [], {}, [[]], [None], {"a": 1}, "0", "1e9", "null", "9" * 70, "9" * 5000, *NAMES,
)  # fmt: skip


def flipped(data: bytes, chance: Random, tokens: Sequence[bytes] = ()) -> bytes:
    """A few changes anywhere: bits, numbers at the edges of their range, parts removed, doubled, moved or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        length = len(changed)
        place = chance.randrange(length + 1)
        size = min(length - place, chance.choice((1, 2, 4, 8, 16, 64, 256)))
        match chance.randrange(9):
            case 0 if place < length:
                changed[place] ^= 1 << chance.randrange(8)
            case 1 if place < length:
                changed[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(EDGES) % (1 << (8 * width))
                changed[place : place + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case 3:
                del changed[place : place + size]
            case 4:
                changed[place:place] = changed[place : place + size] * chance.choice((1, 1, 2, 50))
            case 5 if length:
                start = chance.randrange(length)
                changed[place:place] = changed[start : start + size]
            case 6:
                changed[place:place] = chance.choice(tokens) if tokens else chance.randbytes(size)
            case 7 if tokens:
                changed[place : place + size] = chance.choice(tokens)
            case 8 if chance.random() < 0.3:
                del changed[place:]
            case _:
                changed[place : place + size] = chance.randbytes(size)
    return bytes(changed)


def rewritten(text: str, chance: Random, tokens: Sequence[str]) -> str:
    """A few changes of a text: tokens put in or in the place of others, lines moved and doubled."""
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        place = chance.randrange(len(text) + 1)
        match chance.randrange(6):
            case 0 | 1:
                text = text[:place] + chance.choice(tokens) + text[place + chance.choice((0, 0, 1, 4)) :]
            case 2:
                text = text[:place] + text[place + chance.choice((1, 2, 5, 20)) :]
            case 3:
                lines = text.split("\n")
                number = chance.randrange(len(lines))
                lines[number] = (
                    chance.choice(tokens) if chance.random() < 0.5 else lines[number] + chance.choice(tokens)
                )
                text = "\n".join(lines)
            case 4:
                lines = text.split("\n")
                lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
                text = "\n".join(lines)
            case _:
                parts = text.split(" ")
                parts[chance.randrange(len(parts))] = chance.choice(tokens)
                text = " ".join(parts)
    return text


def grown(chance: Random, values: Sequence[Any] = VALUES, names: Sequence[str] = NAMES, depth: int = 0) -> Any:
    """A value, or a small tree of values."""
    luck = chance.random()
    if luck < 0.7 or depth > 3:
        return copy.deepcopy(chance.choice(values))
    if luck < 0.85:
        return [grown(chance, values, names, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(names): grown(chance, values, names, depth + 1) for _ in range(chance.randrange(4))}


def regrown(tree: Any, chance: Random, values: Sequence[Any] = VALUES, names: Sequence[str] = NAMES) -> Any:
    """A copy of a tree of dicts and lists in which some values are others, or other keys hold them."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        node, parent = tree, None
        key: Any = None
        while isinstance(node, (dict, list)) and node and (parent is None or chance.random() < 0.75):
            parent, key = node, chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            node = node[key]
        if parent is None:
            return grown(chance, values, names)
        match chance.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[chance.choice(names)] = grown(chance, values, names)
            case 2 if isinstance(parent, dict):
                parent[chance.choice(names)] = parent.pop(key)
            case 3:
                parent[key] = [node] if chance.random() < 0.5 else {chance.choice(names): node}
            case 4 if isinstance(parent, list):
                parent[:] = parent * chance.choice((2, 3, 50)) if len(parent) < 100 else parent[:1]
            case _:
                parent[key] = grown(chance, values, names)
    return tree


def repickled(data: bytes, chance: Random, tokens: Sequence[bytes]) -> bytes:
    """A pickle whose opcodes are left out, doubled, moved, or given other arguments."""
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:  # pickletools raises whatever comes up on bytes that are no pickle
        return flipped(data, chance, tokens)
    parts = [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        place = chance.randrange(len(parts))
        match chance.randrange(7):
            case 0:
                del parts[place]
            case 1:
                parts.insert(place, chance.choice(parts))
            case 2:
                other = chance.randrange(len(parts))
                parts[place], parts[other] = parts[other], parts[place]
            case 3 | 4:
                parts.insert(place, chance.choice(tokens))
            case 5:
                parts[place] = chance.choice(tokens)
            case _:
                part = parts[place]
                parts[place] = part[:1] + flipped(part[1:], chance, tokens) if len(part) > 1 else chance.randbytes(1)
        if not parts:
            return b""
    return b"".join(parts)


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


PICKLE = (
    b"(", b")", b"]", b"}", b"N", b"0", b"1", b"2", b"a", b"e", b"l", b"t", b"s", b"u", b"d", b"b", b"R", b"o", b"\x81",
    b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"Q", b".",
    b"h\0", b"h\x01", b"q\0", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8, b"\x80\x05",
    b"cos\nsystem\n" + _text(b"touch outside") + b"\x85R", b"cbuiltins\neval\n", b"ctorch\nload\n",
    b"c__builtin__\nexec\n",
    b"cnumpy\nndarray\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch\nSize\n", b"ctorch\ndevice\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch.serialization\n_get_layout\n", b"ctorch._utils\n_rebuild_parameter\n", b"c_codecs\nencode\n",
    _integer(-1), _integer(2**31 - 1), _integer(0), _integer(10**6), b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"\x8a\x09" + b"\xff" * 8 + b"\0", b"G" + struct.pack(">d", float("nan")), b"I99999999999999999999\n", b"L1L\n",
    _text(b"storage"), _text(b"cpu"), _text(b"meta"), _text(b"cuda:0"), _text(b"0"), _text(b"state_dict"), _text(b"f4"),
    _text(b"../outside"), _text(b"\x1b[2J"), _text(b"O8"), b"C\x04abcd", b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f",
    b"\x8d" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x82\x01", b"\x84\xff\xff\xff\x7f", b"Pid\n", b"iposix\nsystem\n",
)  # fmt: skip
"""Opcodes with their arguments: containers, memo, calls, names that are admitted somewhere and names that are not."""


def rezipped(data: bytes, chance: Random, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip archive one of whose records is changed, checksums mended; or left out, doubled, renamed, compressed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(made, "w") as target:
        records = source.infolist()
        chosen, how = chance.randrange(len(records)), chance.randrange(10)
        if chance.random() < 0.6:  # what describes all others
            chosen = next((n for n, record in enumerate(records) if record.filename.endswith("data.pkl")), chosen)
            how = 9
        for number, record in enumerate(records):
            name, content = record.filename, source.read(record)
            packed = zipfile.ZIP_STORED
            if number == chosen:
                if how == 0:
                    continue
                if how == 1:
                    name = chance.choice((chance.choice(NAMES), name + "x", chance.choice(records).filename))
                elif how == 2:
                    packed = zipfile.ZIP_DEFLATED
                elif how == 3:
                    content, packed = bytes(chance.choice((1, 10**5, 10**7))), zipfile.ZIP_DEFLATED
                else:
                    content = change(name, content)
            with_name = zipfile.ZipInfo(name.encode("utf-8", "replace").decode()[:200].replace("\0", "_") or "x")
            with_name.compress_type = packed
            target.writestr(with_name, content)
    return made.getvalue()


def rechunked(data: bytes, chance: Random) -> bytes:
    """A PNG whose chunks are changed, doubled, moved or added to, checksums mended."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += size + 12
    for _ in range(chance.choice((1, 1, 2, 4))):
        number = chance.randrange(len(chunks))
        kind, content = chunks[number]
        match chance.randrange(6):
            case 0:
                chunks.insert(chance.randrange(len(chunks)), chunks[number])
            case 1 if len(chunks) > 1:
                del chunks[number]
            case 2:
                kinds = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL",
                         b"fcTL", b"fdAT", b"eXIf", b"gAMA", b"pHYs", b"sRGB", b"cHRM")  # fmt: skip
                chunks[number] = chance.choice(kinds), content
            case 3:
                bomb = zlib.compress(bytes(chance.choice((10, 10**5, 10**7))), 9)
                extra = (chance.choice((b"zTXt", b"iCCP", b"iTXt")), b"a\0\0" + bomb)
                chunks.insert(chance.randrange(1, len(chunks) + 1), extra)
            case 4 if len(content) >= 13:
                sizes = struct.pack(">II", chance.choice(EDGES) % 2**32, chance.choice(EDGES) % 2**32)
                chunks[0] = (chunks[0][0], sizes + chunks[0][1][8:])
            case _:
                chunks[number] = kind, flipped(content, chance)
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


_BOXES = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf"))
_KINDS = (
    *_BOXES, b"ftyp", b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stz2", b"stco",
    b"co64", b"stss", b"elst", b"dref", b"mdat", b"free", b"skip", b"wide", b"meta", b"cmov", b"cmvd", b"sidx", b"trun",
    b"tfhd", b"trex", b"sbgp", b"sgpd", b"iloc", b"iinf", b"keys", b"ilst", b"uuid", b"rmra", b"url ", b"alis", b"sinf",
)  # fmt: skip


def reboxed(data: bytes, chance: Random) -> bytes:
    """An mp4 or mov whose boxes are changed, doubled, moved or renamed, sizes mended or not."""

    def changed(part: bytes, depth: int) -> bytes:
        boxes, place = [], 0
        while place + 8 <= len(part):
            size = int.from_bytes(part[place : place + 4], "big")
            if size < 8 or place + size > len(part):
                break
            boxes.append((part[place + 4 : place + 8], part[place + 8 : place + size]))
            place += size
        if not boxes:
            return flipped(part, chance)
        number = chance.randrange(len(boxes))
        if depth == 0 and chance.random() < 0.8:
            number = next((n for n, (kind, _) in enumerate(boxes) if kind in (b"moov", b"moof")), number)
        kind, content = boxes[number]
        if kind in _BOXES and chance.random() < 0.85:
            boxes[number] = kind, changed(content, depth + 1)
        else:
            match chance.randrange(7):
                case 0:
                    boxes.insert(chance.randrange(len(boxes) + 1), boxes[number])
                case 1 if len(boxes) > 1:
                    del boxes[number]
                case 2:
                    boxes[number] = chance.choice(_KINDS), content
                case 3:
                    boxes[number : number + 1] = boxes[number : number + 1] * chance.choice((2, 20, 300))
                case 4:
                    boxes[number] = chance.choice(sorted(_BOXES)), struct.pack(">I", len(content) + 8) + kind + content
                case _ if len(content) >= 8:  # the counts of tables are in their first numbers
                    offset = 4 * chance.randrange(min(5, len(content) // 4))
                    count = struct.pack(">I", chance.choice(EDGES) % 2**32)
                    boxes[number] = kind, content[:offset] + count + content[offset + 4 :]
                case _:
                    boxes[number] = kind, flipped(content, chance)
        sizes = [len(content) + 8 for _, content in boxes]
        if chance.random() < 0.1:
            sizes[chance.randrange(len(sizes))] = chance.choice(EDGES) % 2**32
        return (
            b"".join(struct.pack(">I", size) + kind + c for size, (kind, c) in zip(sizes, boxes, strict=True))
            + (part[place:])
        )

    for _ in range(chance.choice((1, 1, 2, 4))):
        data = changed(data, 0)
    return data[: 1 << 20]


def reheaded(data: bytes, chance: Random, tokens: Sequence[bytes]) -> bytes:
    """A tar whose headers are changed, checksums mended; members moved, doubled or left out."""
    blocks = [data[place : place + 512] for place in range(0, len(data), 512)]
    headers = [number for number, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for _ in range(chance.choice((1, 1, 2, 4))):
        number = chance.choice(headers) if chance.random() < 0.85 else chance.randrange(len(blocks))
        if number >= len(blocks):
            continue
        block = bytearray(blocks[number])
        match chance.randrange(8):
            case 0:
                blocks.insert(chance.randrange(len(blocks)), bytes(block))
                continue
            case 1:
                del blocks[number]
                continue
            case 2:
                block[156:157] = chance.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"g", b"x", b"L", b"K", b"S"))
            case 3:
                sizes = (b"%011o\0" % (chance.choice(EDGES) % 2**33), b"\x80" + bytes(3) + chance.randbytes(8), b"-1",
                         b"\xff" * 12, b" " * 12, b"99999999999\0", b"1_0")  # fmt: skip
                block[124:136] = chance.choice(sizes).ljust(12, b"\0")[:12]
            case 4 | 5:
                block[:100] = chance.choice(tokens)[:100].ljust(100, b"\0")
            case 6:
                block[345:500] = chance.choice(tokens)[:155].ljust(155, b"\0")
            case _:
                block = bytearray(flipped(bytes(block), chance, tokens)[:512].ljust(512, b"\0"))
        if chance.random() < 0.95:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
        blocks[number] = bytes(block)
    return b"".join(blocks)


Field = tuple[int, int, "bytes | int"]


def fields_of(data: bytes) -> list[Field] | None:
    """The fields of a protocol buffer, as (number, type, content); None where it is none."""
    found: list[Field] = []
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    try:
        while place < len(data):
            key = number()
            kind = key & 7
            if key >> 3 == 0 or kind not in (0, 1, 2, 5):
                return None
            if kind == 0:
                found.append((key >> 3, 0, number()))
                continue
            size = number() if kind == 2 else 8 if kind == 1 else 4
            if place + size > len(data):
                return None
            found.append((key >> 3, kind, data[place : place + size]))
            place += size
    except IndexError:
        return None
    return found


def packed(fields: Sequence[Field]) -> bytes:
    """The way back from :func:`fields_of`."""

    def varint(value: int) -> bytes:
        made = bytearray()
        value %= 1 << 64
        while value > 0x7F:
            made.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*made, value])

    made = []
    for number, kind, content in fields:
        made.append(varint(number << 3 | kind))
        if isinstance(content, int):
            made.append(varint(content))
        else:
            made.append((varint(len(content)) if kind == 2 else b"") + content)
    return b"".join(made)


def refielded(data: bytes, chance: Random, tokens: Sequence[bytes], depth: int = 0) -> bytes:
    """A protocol buffer in which fields are changed, doubled, moved or renumbered, lengths mended."""
    fields = fields_of(data)
    if not fields or depth > 8:
        return chance.choice(tokens) if chance.random() < 0.4 else flipped(data, chance, tokens)
    place = chance.randrange(len(fields))
    number, kind, content = fields[place]
    if isinstance(content, bytes) and kind == 2 and chance.random() < 0.8:
        fields[place] = number, kind, refielded(content, chance, tokens, depth + 1)
    else:
        match chance.randrange(6):
            case 0:
                fields.insert(chance.randrange(len(fields) + 1), fields[place])
            case 1:
                del fields[place]
            case 2:
                fields[place] = chance.choice((1, 2, 3, 4, 5, 7, 8, 9, 13, 14, 20)), kind, content
            case 3:
                fields.append((chance.choice((1, 5, 6, 8, 9, 11, 13, 14, 15, 20, 22, 25)), 2, chance.choice(tokens)))
            case _ if isinstance(content, int):
                fields[place] = number, kind, chance.choice(EDGES)
            case _:
                fields[place] = number, kind, flipped(content, chance, tokens)
    return packed(fields)
