"""Files for the tests of the .pdparams reader: as Paddle writes them, and as nobody should."""

from __future__ import annotations

import builtins
import codecs
import collections
import functools
import io
import operator
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
MINUS_ONE = b"J\xff\xff\xff\xff"
FLOAT32 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNN" + MINUS_ONE * 2 + b"K\x00tb"
"""The pickle of numpy's float32."""


class Saved:
    """Pickles as Paddle pickles a tensor outside of a state dict: ``tuple((name, array))``."""

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self.parts = (name, array)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self.parts,)


class Call:
    """Pickles as a call of any function, with a state to set afterwards."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def array(shape: bytes, *, dtype: bytes = FLOAT32, payload: bytes = b"C\x04\x00\x00\x80?") -> bytes:
    """Opcodes of one array: ``shape`` and ``payload`` are opcodes too."""
    return RECONSTRUCT + b"(K\x01" + shape + dtype + b"\x89" + payload + b"tb"


def file(value: bytes, *, protocol: int = 3) -> bytes:
    """A state dict of one entry, ``w``, whose value these opcodes make."""
    return b"\x80" + bytes([protocol]) + b"}X\x01\x00\x00\x00w" + value + b"s."


def written(value: object, protocol: int = 4) -> bytes:
    return pickle.dumps({"w": value}, protocol=protocol)


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return stream.getvalue()


def _nested(depth: int) -> object:
    value: object = np.zeros(1, np.float32)
    for _ in range(depth):
        value = [value]
    return value


def _laughs() -> bytes:
    """Twenty-five lists, each holding the one before it twice."""
    lists = b"".join(b"](h%ch%ceq%c" % (level, level, level + 1) for level in range(25))
    return b"\x80\x03(]q\x00" + lists + b"t."


def refused(command: str) -> dict[str, bytes]:
    """Files that must be refused, by what is wrong with them; those that call something would run ``command``."""
    good = pickle.dumps({"w": np.ones(3, np.float32), "v": np.zeros((2, 2), np.float32)}, protocol=4)
    one = b"K\x01\x85"
    matrix = np.zeros((1, 1)).view(np.matrix)
    text = b"X\x04\x00\x00\x00abcd"
    listed = {"w@@.0": np.zeros(2, np.float32), "w@@.1": np.zeros(1, np.float32)}
    return {
        # calls
        "os.system": written(Call(os.system, command)),
        "builtins.eval, as Paddle writes a LoDTensor": written(
            Call(builtins.eval, f"__import__('os').system({command!r})")
        ),
        "builtins.exec": written(Call(builtins.exec, f"import os; os.system({command!r})")),
        "builtins.__import__": written(Call(builtins.__import__, "antigravity")),
        "builtins.getattr": written(Call(getattr, Call(__import__, "os"), "system")),
        "builtins.bytes with a size": file(b"c__builtin__\nbytes\nJ\x00\x00\x00\x40\x85R"),
        "subprocess.Popen": written(Call(subprocess.Popen, command.split())),
        "functools.partial": written(functools.partial(os.system, command)),
        "operator.methodcaller": written(operator.methodcaller("system", command)),
        "pickle.loads, a pickle in a pickle": written(Call(pickle.loads, written(Call(os.system, command)))),
        "numpy.load": written(Call(np.load, "/etc/hosts")),
        "numpy.fromfile": written(Call(np.fromfile, "/etc/hosts")),
        "a numpy scalar": written(np.float32(1)),
        "a function of numpy's tests": file(b"cnumpy.testing._private.utils\nrunstring\n" + text + b"}\x86R"),
        "torch's tensor constructor": file(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
        "_codecs.encode with another codec": written(Call(codecs.encode, "abcd", "hex_codec"), 2),
        "_codecs.decode": written(Call(codecs.decode, b"61", "hex_codec"), 2),
        "a dotted name below an admitted one": file(b"\x8c\x05numpy\x8c\x0endarray.tofile\x93", protocol=4),
        "a global made of numbers": file(b"K\x01K\x02\x93", protocol=4),
        "a call of a tuple": file(b")" + one + b"R"),
        "an admitted name with foreign arguments": file(b"cnumpy\ndtype\ncnumpy\nndarray\n\x85R"),
        "an admitted name as value": file(b"cnumpy\nndarray\n"),
        # opcodes without a place
        "INST": file(b"(X\x01\x00\x00\x00aios\nsystem\n"),
        "OBJ": file(b"(cnumpy\ndtype\n" + text + b"o"),
        "NEWOBJ": file(b"cnumpy\nndarray\n" + one + b"\x81"),
        "NEWOBJ_EX": file(b"cnumpy\nndarray\n" + one + b"}\x92", protocol=4),
        "PERSID": file(b"Phandle\n"),
        "BINPERSID": file(text + b"Q"),
        "EXT1, the extension registry": file(b"\x82\x01"),
        "EXT2": file(b"\x83\x01\x00"),
        "EXT4": file(b"\x84\x01\x00\x00\x00"),
        "a set": written({1, 2}),
        "a frozenset": written(frozenset((1, 2))),
        "a bytearray and a buffer (protocol 5)": pickle.dumps({"w": bytearray(4)}, protocol=5),
        "text opcodes (protocol 0)": pickle.dumps({"w": 1}, protocol=0),
        # states
        "a state for numpy.dtype itself": file(b"cnumpy\ndtype\n}" + text + b"K\x01sb"),
        "a state for a dictionary": file(b"}}" + text + b"K\x01sb"),
        "slots in a state": file(RECONSTRUCT + b"N}" + text + b"K\x01s\x86b"),
        "a second state for an array": file(array(one)[:-1] + b"b(K\x01" + one + FLOAT32 + b"\x89C\x04abcdtb"),
        "a dtype with fields": written(np.zeros(2, [("a", "f4"), ("b", "O")])),
        "an array without a state": file(RECONSTRUCT),
        # arrays
        "an object array": written(np.array([Call(os.system, command)], dtype=object)),
        "an object array behind a float's name": file(array(one, payload=b"]K\x01a")),
        "a text array": written(np.array(["abcd"])),
        "a date array": written(np.array(["2020-01-01"], dtype="datetime64[D]")),
        "long doubles": file(array(one, dtype=FLOAT32.replace(b"f4", b"g9"))),
        "unsigned 64-bit numbers, unknown to Paddle": written(np.zeros(2, np.uint64)),
        "a numpy.matrix": written(matrix),
        "a shape larger than its values": file(array(b"M\xff\xff\x85")),
        "a shape of 4 EiB": file(array(b"\x8a\x08" + (2**62).to_bytes(8, "little") + b"\x85")),
        "an empty shape of giant sides": file(array(b"(K\x00" + b"J\xff\xff\xff\x7f" * 4 + b"t", payload=b"C\x00")),
        "a negative side": file(array(MINUS_ONE * 2 + b"\x86")),
        "a shape of fractions": file(array(b"G\x3f\xf0" + b"\x00" * 6 + b"\x85")),
        "sixty-five dimensions": file(array(b"(" + b"K\x01" * 65 + b"t")),
        "text that is no bytes": file(array(one, payload=b"X\x08\x00\x00\x00" + "αβγδ".encode())),
        # structure
        "a key twice": b"\x80\x03}(X\x01\x00\x00\x00wK\x01X\x01\x00\x00\x00wK\x02u.",
        "a dotted name twice": pickle.dumps({"a.b": np.ones(1), "a": {"b": np.ones(1)}}),
        "a tuple as key": pickle.dumps({("a", "b"): np.ones(1)}),
        "a tuple 100,000 deep as key": b"\x80\x03}N" + b"\x85" * 100_000 + b"K\x01s.",
        "an array as key": b"\x80\x03}" + array(one) + b"K\x01s.",
        "a name that clears the screen": pickle.dumps({"\x1b[2Jw": np.ones(1)}),
        "a name of a megabyte": pickle.dumps({"w" * 2**20: np.ones(1)}),
        "lists 100 deep": written(_nested(100)),
        "a list that contains itself": b"\x80\x03]q\x00h\x00a.",
        "a billion laughs": _laughs(),
        "one text encoded again and again": b"\x80\x02](X\x00\x10\x00\x00"
        + b"a" * 4096
        + b"q\x00"
        + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 200
        + b"e.",
        "a slice that is missing": pickle.dumps(
            {"UnpackBigParamInfor@@": {"w": {"OriginShape": (3,), "slices": ["x"]}}}
        ),
        "slices that do not make up the shape": pickle.dumps(
            {**listed, "UnpackBigParamInfor@@": {"w": {"OriginShape": (4,), "slices": ["w@@.0", "w@@.1"]}}}
        ),
        "no tensor at all": pickle.dumps({"epoch": 3, "name": "net"}),
        # the stream
        "an empty file": b"",
        "a text file": b"stem.0.conv.weight 1 2 3\n",
        "an HTML page": b"<!DOCTYPE html><html>not found</html>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a zip archive, as torch writes": _zip(),
        "a gzip archive": b"\x1f\x8b\x08\x00" + b"\x00" * 20,
        "a .safetensors file": (2).to_bytes(8, "little") + b"{}",
        "a truncated file": good[:-20],
        "a file without its last byte": good[:-1],
        "bytes after the end": good + b"\x00",
        "two pickles": good + good,
        "a frame beyond the end": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"}.",
        "bytes that claim 1 EiB": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"abc.",
        "a text of negative length": b"\x80\x02T\xfb\xff\xff\xff.",
        "the four-billionth memo slot": b"\x80\x03Nr\xff\xff\xff\xff.",
        "a memo slot never filled": b"\x80\x03h\x05.",
        "an empty stack": b"\x80\x03.",
        "a pop below a mark": b"\x80\x03K\x01(\x85.",
        "two values at the end": b"\x80\x03K\x01K\x02.",
        "an open mark at the end": b"\x80\x03}(.",
        "a key without a value": b"\x80\x03}(K\x01u.",
        "a protocol of the future": b"\x80\x09}.",
    }


def as_published(arrays: Mapping[str, np.ndarray[Any, Any]], protocol: int) -> bytes:
    """A state dict as ``paddle.save`` writes it."""
    table = {name: f"parameter_{index}" for index, name in enumerate(arrays)}
    return pickle.dumps({**arrays, "StructuredToParameterName@@": table}, protocol=protocol)


def ordered(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Saved]:
    """A layer's own state dict, as it stands inside of another container."""
    return collections.OrderedDict((name, Saved(name, value)) for name, value in arrays.items())
