"""What an ONNX file asks of ONNX Runtime, read from its bytes before that does: how many nodes, and of which kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from lit_distill.untrusted.showing import printable

NODES: Final = 20_000
"""In a graph: the largest networks that are exported have some 5,000."""
_DOMAINS: Final = ("", "ai.onnx")
# Numbers of fields in onnx.proto.
_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25  # of a model
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of a graph
_OP, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of a node
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE_TENSOR, _SPARSE_TENSORS = 5, 6, 10, 11, 22, 23  # of an attribute
_EXTERNAL, _LOCATION = 13, 14  # of a tensor

_Field: TypeAlias = "tuple[int, int | memoryview]"


def check_graph(content: bytes) -> None:
    """Refuse an ONNX file that does more than compute one node after the other.

    Loops, branches and functions, which may call each other, take time and memory without end for a few bytes. Tensors
    in other files could name any file of the machine, and in memory any address of this process.

    Raises:
        ValueError: it is none that this library writes, by its kinds of content or the number of its nodes.

    Example:
        >>> check_graph(b"")
        >>> check_graph(b"\\xca\\x01\\x00")
        Traceback (most recent call last):
        ...
        ValueError: it defines functions: export it with them inlined
    """
    nodes = 0
    for number, value in _fields(memoryview(content)):
        if number in (_TRAINING, _FUNCTIONS):
            said = "defines functions: export it with them inlined" if number == _FUNCTIONS else "holds a training loop"
            raise ValueError(f"it {said}")
        for part, inner in _fields(value) if number == _GRAPH else ():
            if part == _NODE:
                nodes += 1
                if nodes > NODES:
                    raise ValueError(f"it has more than {NODES:,} nodes, the limit")
                _check_node(inner)
            elif part == _INITIALIZER:
                _check_tensor(inner)
            elif part == _SPARSE:
                raise ValueError("it holds sparse tensors, which unfold to any size: export it with dense ones")


def _check_node(node: int | memoryview) -> None:
    fields = list(_fields(node))
    kind = printable(b"".join(value for number, value in fields if number == _OP and not isinstance(value, int))
                     .decode("utf-8", "replace")[:80])  # fmt: skip
    for number, value in fields:
        if number == _DOMAIN and (isinstance(value, int) or bytes(value).decode("utf-8", "replace") not in _DOMAINS):
            raise ValueError(f"its node {kind} is none of ONNX's own: export it with standard operators alone")
        for part, inner in _fields(value) if number == _ATTRIBUTE else ():
            if part in (_SUBGRAPH, _SUBGRAPHS):
                raise ValueError(f"its node {kind} holds a graph, as loops and branches do: export it without them")
            if part in (_SPARSE_TENSOR, _SPARSE_TENSORS):
                raise ValueError(f"its node {kind} holds a sparse tensor, which unfolds to any size")
            if part in (_TENSOR, _TENSORS):
                _check_tensor(inner)


def _check_tensor(tensor: int | memoryview) -> None:
    if any(number == _EXTERNAL or (number == _LOCATION and value != 0) for number, value in _fields(tensor)):
        raise ValueError("it keeps tensors in other files (external data): export it as one file")


def _fields(message: int | memoryview) -> Iterator[_Field]:
    """Number and content of each field of a protobuf message: bytes, or a whole number (0 where it has a fixed size).

    Raises:
        ValueError: it is damaged.
    """
    if isinstance(message, int):
        raise ValueError("it is damaged: a number where a message is to be")
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if tag >= 1 << 32 or not number or kind not in (0, 1, 2, 5):
            raise ValueError("it is damaged: a field of no kind")
        value: int | memoryview = 0
        if kind == 0:
            value, place = _varint(message, place)
        else:
            size = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                size, place = _varint(message, place)
                value = message[place : place + size]
            place += size
        if place > end:
            raise ValueError("it is damaged: a field is longer than its message")
        yield number, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it is damaged: a number without end")
