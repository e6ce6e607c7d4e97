"""An interpreter for the few pickles that hold nothing but containers, numbers, texts and arrays.

A pickle is a small program; Python's own unpickler runs it, with whatever it names. Here the program is interpreted by
a machine that knows the opcodes of plain containers and seven names, and that builds no numpy object until an array's
shape, type and bytes have been found to agree. Opcodes and names outside of that, and everything cut short, doubled or
oversized, end in one :class:`WeightsError`.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lit_distill.untrusted.showing import printable


class WeightsError(ValueError):
    """A weights file that cannot be read, or that does not fit the network."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


_CODES = ("b1", "u1", "i1", "i2", "i4", "i8", "u2", "f2", "f4", "f8", "c8", "c16")
_MAX_DIMENSIONS = 32
_LARGEST_KEY = 2**64
_MAX_STEPS = 1_000_000  # some 35 opcodes a tensor; bounds the containers that a small file can ask for


class Name(enum.Enum):
    """The names that a file may ask for; what each does when called is written in :meth:`Machine._call`."""

    RECONSTRUCT = enum.auto()
    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    ENCODE = enum.auto()
    TUPLE = enum.auto()
    BYTES = enum.auto()
    ORDERED_DICT = enum.auto()


_NAMES: Mapping[tuple[str, str], Name] = {
    ("numpy.core.multiarray", "_reconstruct"): Name.RECONSTRUCT,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): Name.RECONSTRUCT,  # numpy 2
    ("numpy", "ndarray"): Name.NDARRAY,
    ("numpy", "dtype"): Name.DTYPE,
    ("_codecs", "encode"): Name.ENCODE,  # protocol 2 has no bytes: it stores latin-1 text
    ("__builtin__", "bytes"): Name.BYTES,  # … except for the bytes of an empty tensor
    ("__builtin__", "tuple"): Name.TUPLE,  # a tensor outside of a state dict is tuple((name, array))
    ("builtins", "tuple"): Name.TUPLE,
    ("collections", "OrderedDict"): Name.ORDERED_DICT,  # a state dict inside of another container
}

_Bytes: TypeAlias = "bytes | memoryview"


class Dtype:
    """A numpy dtype as the file describes it; ``order`` is set by its state."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order: str | None = None


class ArrayState(NamedTuple):
    """Shape, type and bytes of an array, found to agree."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool
    payload: _Bytes


class Array:
    """A numpy array as the file describes it; ``state`` is complete and consistent once it is set."""

    def __init__(self) -> None:
        self.state: ArrayState | None = None
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        """The torch tensor, made once however often the file refers to this array."""
        if self._tensor is None:
            if self.state is None:
                raise WeightsError("an array in it has no shape and no values")
            self._tensor = _to_tensor(self.state)
        return self._tensor


def _to_tensor(state: ArrayState) -> Tensor:
    shape, dtype, fortran, payload = state
    flat = np.frombuffer(payload, dtype) if len(payload) else np.empty(0, dtype)
    array = flat.reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "b":
        array = array.view(np.uint8) != 0  # a byte that is neither 0 nor 1 is no bool
    native = np.array(array, dtype=dtype.newbyteorder("="), order="C")
    if native.dtype == np.uint16:
        return torch.from_numpy(native.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(native)


class Machine:
    """Interprets one pickle over a stack, as :mod:`pickletools` documents the opcodes; ``run`` gives its value."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._encoded = 0
        self._claimed = 0  # bytes of values, over all arrays

    def run(self) -> object:
        """The pickle's value: containers, numbers, texts and :class:`Array`.

        Raises:
            WeightsError: the data is anything else than one such pickle; says at which byte.
        """
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

    def _push(self, value: object) -> None:
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

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    # Containers

    def _push_tuple(self, size: int | None) -> None:
        values = self._pop_to_mark() if size is None else [self._pop() for _ in range(size)][::-1]
        self._push(tuple(values))

    def _append(self, many: bool) -> None:
        values = self._pop_to_mark() if many else [self._pop()]
        target = self._top()
        if not isinstance(target, list):
            raise WeightsError("an item for something that is no list")
        target.extend(values)

    def _set_items(self, many: bool) -> None:
        values = self._pop_to_mark() if many else [self._pop(), self._pop()][::-1]
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise WeightsError("a key without a value, or items for something that is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise WeightsError("a key that is neither text nor number")
            if isinstance(key, int) and abs(key) > _LARGEST_KEY:  # their hashes can be chosen to be the same
                raise WeightsError("a number of more than 64 bits as a key")
            if key in target:
                raise WeightsError(f"the key {shown(key)} twice")
            target[key] = value

    # Memo

    def _put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise WeightsError(f"memo {index} was never stored")
        self._push(self._memo[index])

    # Values

    def _push_long(self, length_form: str) -> None:
        self._push(int.from_bytes(self._read(self._number(length_form)), "little", signed=True))

    def _push_float(self) -> None:
        self._push(struct.unpack(">d", self._read(8))[0])

    def _skip_frame(self) -> None:
        if self._number("<Q") > len(self._data) - self._at:
            raise WeightsError("truncated: a frame longer than the file")

    # Names and what they make

    def _push_name(self, from_stack: bool) -> None:
        if from_stack:
            name, module = self._pop(), self._pop()
        else:
            module, name = self._line(), self._line()
        known = _NAMES.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            raise WeightsError(f"asks for {shown(module)} {shown(name)}, which no state dict needs; nothing was run")
        self._push(known)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(arguments, tuple) or not isinstance(function, Name):
            raise WeightsError("a call of something that is no function")
        self._push(self._call(function, arguments))

    def _call(self, function: Name, arguments: tuple[object, ...]) -> object:
        match function, arguments:
            case Name.RECONSTRUCT, (Name.NDARRAY, (0,), initial) if initial in (b"b", "b"):
                return Array()
            case Name.DTYPE, (str() as code, 0, 1) if code in _CODES:  # False and True; Python 2 wrote 0 and 1
                return Dtype(code)
            case Name.ENCODE, (str() as text, "latin1"):
                return self._encode(text)
            case Name.TUPLE, (tuple() as values,):
                return values
            case Name.BYTES, ():
                return b""
            case Name.ORDERED_DICT, ():
                return {}
        if function is Name.DTYPE and arguments and isinstance(arguments[0], str):
            raise WeightsError(f"an array of type {shown(arguments[0])}; the known ones are {', '.join(_CODES)}")
        raise WeightsError(f"{function.name.lower()} called in a way that Paddle never does")

    def _encode(self, text: str) -> bytes:
        self._encoded += len(text)
        if self._encoded > len(self._data):
            raise WeightsError("more bytes of text than the file holds")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise WeightsError("text that holds no bytes") from None

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        match target, state:
            case Dtype(order=None), (3, ("<" | ">" | "|" | "=") as order, None, None, None, -1, -1, 0):
                target.order = order
            case Array(state=None), (1, tuple() as shape, Dtype() as dtype, bool() as fortran, payload):
                target.state = self._array_state(shape, dtype, fortran, payload)
            case _:
                raise WeightsError("a state that belongs to no array and no dtype")

    def _array_state(self, shape: tuple[object, ...], dtype: Dtype, fortran: bool, payload: object) -> ArrayState:
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
                f"an array of shape {shown(tuple(sizes))} and type {dtype.code} with {len(payload)} bytes of values"
            )
        self._claimed += len(payload)
        if self._claimed > len(self._data):
            raise WeightsError("its arrays share their bytes: together they have more than the file")
        return ArrayState(tuple(sizes), kind, fortran, payload)


_OPCODES: Mapping[int, Callable[[Machine], None]] = {
    0x95: Machine._skip_frame,
    ord("("): Machine._mark,
    ord("N"): lambda machine: machine._push(None),
    0x88: lambda machine: machine._push(True),
    0x89: lambda machine: machine._push(False),
    ord("J"): lambda machine: machine._push(machine._number("<i")),
    ord("K"): lambda machine: machine._push(machine._number("<B")),
    ord("M"): lambda machine: machine._push(machine._number("<H")),
    0x8A: lambda machine: machine._push_long("<B"),
    ord("G"): Machine._push_float,
    0x8C: lambda machine: machine._push(machine._text("<B")),
    ord("X"): lambda machine: machine._push(machine._text("<I")),
    0x8D: lambda machine: machine._push(machine._text("<Q")),
    ord("U"): lambda machine: machine._push(_decoded(machine._read(machine._number("<B")), "latin-1")),
    ord("T"): lambda machine: machine._push(_decoded(machine._read(machine._number("<i")), "latin-1")),
    ord("C"): lambda machine: machine._push(machine._read(machine._number("<B"))),
    ord("B"): lambda machine: machine._push(machine._read(machine._number("<I"))),
    0x8E: lambda machine: machine._push(machine._read(machine._number("<Q"))),
    ord(")"): lambda machine: machine._push(()),
    ord("]"): lambda machine: machine._push([]),
    ord("}"): lambda machine: machine._push({}),
    ord("t"): lambda machine: machine._push_tuple(None),
    0x85: lambda machine: machine._push_tuple(1),
    0x86: lambda machine: machine._push_tuple(2),
    0x87: lambda machine: machine._push_tuple(3),
    ord("a"): lambda machine: machine._append(False),
    ord("e"): lambda machine: machine._append(True),
    ord("s"): lambda machine: machine._set_items(False),
    ord("u"): lambda machine: machine._set_items(True),
    ord("q"): lambda machine: machine._put(machine._number("<B")),
    ord("r"): lambda machine: machine._put(machine._number("<I")),
    0x94: lambda machine: machine._put(None),
    ord("h"): lambda machine: machine._get(machine._number("<B")),
    ord("j"): lambda machine: machine._get(machine._number("<I")),
    ord("c"): lambda machine: machine._push_name(False),
    0x93: lambda machine: machine._push_name(True),
    ord("R"): Machine._reduce,
    ord("b"): Machine._build,
}


def _decoded(raw: memoryview, encoding: str) -> str:
    # pickle writes lone surrogates in UTF-8, but no name and no tensor needs one
    try:
        return str(raw, encoding)
    except UnicodeDecodeError:
        raise WeightsError(f"text that is not {encoding}") from None


def shown(value: object) -> str:
    """A short, one-line form of something that a file holds."""
    text = repr(value) if isinstance(value, (str, int, tuple)) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"
