"""Reads Paddle's ``.pdparams`` files without Paddle, and without running anything that they hold.

``paddle.save`` writes one pickle of protocol 2, 3 or 4. A pickle is a small program; Python's own unpickler runs it,
with whatever it names. Here the program is interpreted by a machine that knows the opcodes of plain containers and
seven names, and that builds no numpy object until a tensor's shape, type and bytes have been found to agree. Opcodes
and names outside of that, and everything cut short, doubled or oversized, end in one :class:`WeightsError`.
"""

from __future__ import annotations

import enum
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor


class WeightsError(ValueError):
    """A weights file that cannot be read, or that does not fit the network."""


NAME_TABLE = "StructuredToParameterName@@"
"""Key of a state dict under which Paddle keeps its internal parameter names: no tensor."""
SLICE_TABLE = "UnpackBigParamInfor@@"
"""Key under which Paddle lists the tensors above 1 GiB that it cut into slices for protocols 2 and 3."""

_CODES = ("b1", "u1", "i1", "i2", "i4", "i8", "u2", "f2", "f4", "f8", "c8", "c16")
_MAX_DIMENSIONS = 32
_MAX_DEPTH = 32
_MAX_NAME = 512
_MAX_STEPS = 4_000_000  # some 35 opcodes a tensor; bounds the containers that a small file can ask for
_LOOKALIKES: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive; a PyTorch file must be named .pth, .pt or .ckpt",
    b"version https://git-lfs": "a Git LFS pointer, not the weights themselves: run git lfs pull",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"<": "an HTML or XML page: the download failed",
}


class _Name(enum.Enum):
    """The names that a file may ask for; what each does when called is written in :meth:`_Machine._call`."""

    RECONSTRUCT = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()
    TUPLE = enum.auto()
    BYTES = enum.auto()
    ORDERED_DICT = enum.auto()


_NAMES: Mapping[tuple[str, str], _Name] = {
    ("numpy.core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,  # numpy 2
    ("numpy", "ndarray"): _Name.NDARRAY,
    ("numpy", "dtype"): _Name.DTYPE,
    ("_codecs", "encode"): _Name.ENCODE,  # protocol 2 has no bytes: it stores latin-1 text
    ("__builtin__", "bytes"): _Name.BYTES,  # … except for the bytes of an empty tensor
    ("__builtin__", "tuple"): _Name.TUPLE,  # a tensor outside of a state dict is tuple((name, array))
    ("builtins", "tuple"): _Name.TUPLE,
    ("collections", "OrderedDict"): _Name.ORDERED_DICT,  # a state dict inside of another container
}

_Bytes: TypeAlias = "bytes | memoryview"


class _Dtype:
    """A numpy dtype as the file describes it; ``order`` is set by its state."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order: str | None = None


class _ArrayState(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool
    payload: _Bytes


class _Array:
    """A numpy array as the file describes it; ``state`` is complete and consistent once it is set."""

    def __init__(self) -> None:
        self.state: _ArrayState | None = None
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        """The torch tensor, made once however often the file refers to this array."""
        if self._tensor is None:
            if self.state is None:
                raise WeightsError("an array in it has no shape and no values")
            self._tensor = _to_tensor(self.state)
        return self._tensor


def _to_tensor(state: _ArrayState) -> Tensor:
    shape, dtype, fortran, payload = state
    flat = np.frombuffer(payload, dtype) if len(payload) else np.empty(0, dtype)
    array = flat.reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "b":
        array = array.view(np.uint8) != 0  # a byte that is neither 0 nor 1 is no bool
    native = np.array(array, dtype=dtype.newbyteorder("="), order="C")
    if native.dtype == np.uint16:
        return torch.from_numpy(native.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(native)


class _Machine:
    """Interprets one pickle over a stack, as :mod:`pickletools` documents the opcodes; ``run`` gives its value."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._encoded = 0

    def run(self) -> object:
        if self._read(1)[0] != 0x80:
            raise WeightsError("not a pickle of protocol 2 to 4")
        if (protocol := self._read(1)[0]) not in (2, 3, 4):
            raise WeightsError(f"a pickle of protocol {protocol}; Paddle writes 2 to 4")
        for _ in range(_MAX_STEPS):
            start = self._at
            opcode = self._read(1)[0]
            if opcode == 0x2E:  # STOP
                break
            handler = _OPCODES.get(opcode)
            if handler is None:
                raise WeightsError(f"opcode {opcode:#04x} at byte {start} has no place in a state dict")
            try:
                handler(self)
            except WeightsError as error:
                raise WeightsError(f"{error} (byte {start})") from None
        else:
            raise WeightsError(f"more than {_MAX_STEPS} opcodes")
        if len(self._stack) != 1 or self._marks:
            raise WeightsError("the pickle does not end in one value")
        if extra := len(self._data) - self._at:
            raise WeightsError(f"{extra} bytes follow the end of the pickle")
        return self._stack[0]

    # Input

    def _read(self, count: int) -> memoryview:
        end = self._at + count
        if count < 0 or end > len(self._data):
            raise WeightsError(f"truncated: {count} bytes wanted at byte {self._at} of {len(self._data)}")
        chunk = self._data[self._at : end]
        self._at = end
        return chunk

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._read(struct.calcsize(form)))[0]
        return value

    def _text(self, length_form: str) -> str:
        return _decoded(self._read(self._number(length_form)), "utf-8")

    def _line(self) -> str:
        end = self._data[self._at : self._at + 256].tobytes().find(b"\n")
        if end < 0:
            raise WeightsError("a name without an end")
        line = _decoded(self._read(end), "ascii")
        self._at += 1
        return line

    # Stack

    def push(self, value: object) -> None:
        self._stack.append(value)

    def _floor(self) -> int:
        return self._marks[-1] if self._marks else 0

    def _pop(self) -> object:
        if len(self._stack) <= self._floor():
            raise WeightsError("the stack is empty")
        return self._stack.pop()

    def _top(self) -> object:
        if len(self._stack) <= self._floor():
            raise WeightsError("the stack is empty")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[object]:
        if not self._marks:
            raise WeightsError("no mark on the stack")
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    # Containers

    def push_tuple(self, size: int | None) -> None:
        values = self._pop_to_mark() if size is None else [self._pop() for _ in range(size)][::-1]
        self.push(tuple(values))

    def append(self, many: bool) -> None:
        values = self._pop_to_mark() if many else [self._pop()]
        target = self._top()
        if not isinstance(target, list):
            raise WeightsError("an item for something that is no list")
        target.extend(values)

    def set_items(self, many: bool) -> None:
        values = self._pop_to_mark() if many else [self._pop(), self._pop()][::-1]
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise WeightsError("a key without a value, or items for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise WeightsError("a key that is neither text nor number")
            if key in target:
                raise WeightsError(f"the key {_shown(key)} twice")
            target[key] = value

    # Memo

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise WeightsError(f"memo {index} was never stored")
        self.push(self._memo[index])

    # Values

    def push_long(self, length_form: str) -> None:
        self.push(int.from_bytes(self._read(self._number(length_form)), "little", signed=True))

    def push_float(self) -> None:
        self.push(struct.unpack(">d", self._read(8))[0])

    def skip_frame(self) -> None:
        if self._number("<Q") > len(self._data) - self._at:
            raise WeightsError("truncated: a frame longer than the file")

    # Names and what they make

    def push_name(self, from_stack: bool) -> None:
        if from_stack:
            name, module = self._pop(), self._pop()
        else:
            module, name = self._line(), self._line()
        known = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            raise WeightsError(f"asks for {_shown(module)} {_shown(name)}, which no state dict needs; nothing was run")
        self.push(known)

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(arguments, tuple) or not isinstance(function, _Name):
            raise WeightsError("a call of something that is no function")
        self.push(self._call(function, arguments))

    def _call(self, function: _Name, arguments: tuple[object, ...]) -> object:
        match function, arguments:
            case _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), initial) if initial in (b"b", "b"):
                return _Array()
            case _Name.DTYPE, (str() as code, 0, 1) if code in _CODES:  # False and True; Python 2 wrote 0 and 1
                return _Dtype(code)
            case _Name.ENCODE, (str() as text, "latin1"):
                return self._encode(text)
            case _Name.TUPLE, (tuple() as values,):
                return values
            case _Name.BYTES, ():
                return b""
            case _Name.ORDERED_DICT, ():
                return {}
        if function is _Name.DTYPE and arguments and isinstance(arguments[0], str):
            raise WeightsError(f"an array of type {_shown(arguments[0])}; the known ones are {', '.join(_CODES)}")
        raise WeightsError(f"{function.name.lower()} called in a way that Paddle never does")

    def _encode(self, text: str) -> bytes:
        self._encoded += len(text)
        if self._encoded > len(self._data):
            raise WeightsError("more bytes of text than the file holds")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise WeightsError("text that holds no bytes") from None

    def build(self) -> None:
        state, target = self._pop(), self._top()
        match target, state:
            case _Dtype(order=None), (3, ("<" | ">" | "|" | "=") as order, None, None, None, -1, -1, 0):
                target.order = order
            case _Array(state=None), (1, tuple() as shape, _Dtype() as dtype, bool() as fortran, payload):
                target.state = self._array_state(shape, dtype, fortran, payload)
            case _:
                raise WeightsError("a state that belongs to no array and no dtype")

    def _array_state(self, shape: tuple[object, ...], dtype: _Dtype, fortran: bool, payload: object) -> _ArrayState:
        sizes = [size for size in shape if type(size) is int and size >= 0]
        too_large = math.prod(max(size, 1) for size in sizes) >= 2**48  # an empty tensor may claim any other size
        if len(sizes) != len(shape) or len(sizes) > _MAX_DIMENSIONS or too_large:
            raise WeightsError("an array whose shape is no shape")
        if isinstance(payload, str):  # text instead of bytes: written by Python 2
            payload = self._encode(payload)
        if not isinstance(payload, (bytes, memoryview)):
            raise WeightsError("an array of Python objects")
        kind = np.dtype(f"{dtype.order or '='}{dtype.code}")
        if len(payload) != math.prod(sizes) * kind.itemsize:
            raise WeightsError(
                f"an array of shape {_shown(tuple(sizes))} and type {dtype.code} with {len(payload)} bytes of values"
            )
        return _ArrayState(tuple(sizes), kind, fortran, payload)


_OPCODES: Mapping[int, Callable[[_Machine], None]] = {
    0x95: _Machine.skip_frame,
    ord("("): _Machine.mark,
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("J"): lambda machine: machine.push(machine._number("<i")),
    ord("K"): lambda machine: machine.push(machine._number("<B")),
    ord("M"): lambda machine: machine.push(machine._number("<H")),
    0x8A: lambda machine: machine.push_long("<B"),
    ord("G"): _Machine.push_float,
    0x8C: lambda machine: machine.push(machine._text("<B")),
    ord("X"): lambda machine: machine.push(machine._text("<I")),
    0x8D: lambda machine: machine.push(machine._text("<Q")),
    ord("U"): lambda machine: machine.push(_decoded(machine._read(machine._number("<B")), "latin-1")),
    ord("T"): lambda machine: machine.push(_decoded(machine._read(machine._number("<i")), "latin-1")),
    ord("C"): lambda machine: machine.push(machine._read(machine._number("<B"))),
    ord("B"): lambda machine: machine.push(machine._read(machine._number("<I"))),
    0x8E: lambda machine: machine.push(machine._read(machine._number("<Q"))),
    ord(")"): lambda machine: machine.push(()),
    ord("]"): lambda machine: machine.push([]),
    ord("}"): lambda machine: machine.push({}),
    ord("t"): lambda machine: machine.push_tuple(None),
    0x85: lambda machine: machine.push_tuple(1),
    0x86: lambda machine: machine.push_tuple(2),
    0x87: lambda machine: machine.push_tuple(3),
    ord("a"): lambda machine: machine.append(False),
    ord("e"): lambda machine: machine.append(True),
    ord("s"): lambda machine: machine.set_items(False),
    ord("u"): lambda machine: machine.set_items(True),
    ord("q"): lambda machine: machine.put(machine._number("<B")),
    ord("r"): lambda machine: machine.put(machine._number("<I")),
    0x94: lambda machine: machine.put(None),
    ord("h"): lambda machine: machine.get(machine._number("<B")),
    ord("j"): lambda machine: machine.get(machine._number("<I")),
    ord("c"): lambda machine: machine.push_name(False),
    0x93: lambda machine: machine.push_name(True),
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}


def _decoded(raw: memoryview, encoding: str) -> str:
    # pickle writes lone surrogates in UTF-8, but no name and no tensor needs one
    try:
        return str(raw, encoding)
    except UnicodeDecodeError:
        raise WeightsError(f"text that is not {encoding}") from None


def _shown(value: object) -> str:
    """A short, one-line form of something that a file holds."""
    text = repr(value) if isinstance(value, (str, int, tuple)) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"


def _tensors(value: object, limit: int) -> Iterator[tuple[str, Tensor]]:
    """Dotted path and tensor of every array below ``value``; numbers and texts beside them (epochs) are passed over."""
    pending: list[tuple[tuple[str, ...], object]] = [((), value)]
    steps = 0
    while pending:
        path, node = pending.pop()
        steps += 1
        if len(path) > _MAX_DEPTH:
            raise WeightsError(f"containers nested more than {_MAX_DEPTH} deep")
        if steps > limit:
            raise WeightsError("containers shared so often that they hold more values than the file has bytes")
        match node:
            case _Array():
                yield ".".join(path) or "tensor", node.tensor()
            case (str() as name, _Array() as array):
                yield ".".join(path) or name, array.tensor()
            case tuple() | list():
                pending.extend(((*path, str(index)), item) for index, item in reversed(list(enumerate(node))))
            case dict():
                items = [(key, item) for key, item in _joined(node).items() if key != NAME_TABLE]
                pending.extend(((*path, str(key)), item) for key, item in reversed(items))
            case _Dtype() | _Name():
                raise WeightsError(f"a bare {type(node).__name__.strip('_').lower()} where a tensor belongs")


def _joined(node: dict[object, object]) -> dict[object, object]:
    """The dictionary with the slices that :data:`SLICE_TABLE` lists put together again."""
    table = node.get(SLICE_TABLE)
    if table is None:
        return node
    if not isinstance(table, dict):
        raise WeightsError(f"{SLICE_TABLE} is no table")
    joined = {key: item for key, item in node.items() if key != SLICE_TABLE}
    for key, entry in table.items():
        match entry:
            case {"OriginShape": tuple() | list() as shape, "slices": list() | tuple() as names, **rest} if not rest:
                joined[key] = _join(key, shape, [joined.pop(name, None) for name in names if type(name) is str])
            case _:
                raise WeightsError(f"{SLICE_TABLE} does not say how {_shown(key)} was cut")
    return joined


def _join(key: object, shape: Sequence[object], parts: list[object]) -> _Array:
    states = [part.state for part in parts if isinstance(part, _Array) and part.state is not None]
    sizes = tuple(size for size in shape if type(size) is int and size >= 0)
    if not states or len(states) != len(parts) or len(sizes) != len(shape):
        raise WeightsError(f"slices of {_shown(key)} are missing")
    total = sum(len(state.payload) for state in states)
    if len({state.dtype for state in states}) != 1 or math.prod(sizes) * states[0].dtype.itemsize != total:
        raise WeightsError(f"the slices of {_shown(key)} do not make up {_shown(sizes)}")
    whole = _Array()
    whole.state = _ArrayState(sizes, states[0].dtype, False, b"".join(state.payload for state in states))
    return whole


def read_pdparams(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a file that ``paddle.save`` wrote, by name, in the file's order, exactly as stored.

    A state dict gives its own keys. Dictionaries, lists and tuples inside others give dotted paths
    (``model.fc.weight``), a single tensor its Paddle name. Numbers and texts beside the tensors are left out, as is
    the table of internal names; tensors above 1 GiB, which protocols 2 and 3 store in slices, are put together. Linear
    weights are [in, out] and running statistics are called ``_mean`` and ``_variance``:
    :func:`lit_distill.models.load_weights` translates both.

    bfloat16 tensors are stored as unsigned 16-bit integers. Paddle has no tensors of that type (it reads such an array
    back as bfloat16), so neither do we: every ``u2`` array becomes a bfloat16 tensor of the same bits.

    Args:
        path: a file of pickle protocol 2, 3 or 4, written under Python 2 or 3, numpy 1 or 2.

    Raises:
        WeightsError: in one line, what the file holds that has no place in it. No code of the file has run.
        OSError: the file cannot be opened.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "fc.pdparams"
        ...     _ = path.write_bytes(pickle.dumps({"fc.bias": np.zeros(2, np.float32)}, protocol=4))
        ...     read_pdparams(path)
        {'fc.bias': tensor([0., 0.])}
    """
    data = Path(path).read_bytes()
    try:
        for start, meaning in _LOOKALIKES.items():
            if data.startswith(start):
                raise WeightsError(meaning)
        tensors: dict[str, Tensor] = {}
        for name, tensor in _tensors(_Machine(data).run(), limit=len(data)):
            if name in tensors:
                raise WeightsError(f"the name {_shown(name)} twice")
            if not name.isprintable() or len(name) > _MAX_NAME:
                raise WeightsError(f"a tensor named {_shown(name)}")
            tensors[name] = tensor
        if not tensors:
            raise WeightsError("it holds no tensor")
    except WeightsError as error:
        raise WeightsError(f"{path} is refused as a .pdparams file: {error}") from None
    return tensors
