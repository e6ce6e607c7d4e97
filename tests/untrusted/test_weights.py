"""Weights files that unfold to much more than their bytes are refused before the memory is taken."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from operator import add
from pathlib import Path

import pytest
import torch

from lit_distill import checkpoints
from lit_distill._files import archive_damage, pickle_fault
from lit_distill.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from lit_distill.models.paddle import WeightsError
from lit_distill.models.state_files import read_state

RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps("", 2)
STORED = zipfile.ZIP_STORED


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def long(value: int) -> bytes:
    packed = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def sharing(arrays: int, size: int = 400_000) -> bytes:
    """A .pdparams whose arrays have one payload."""
    dtype = b"cnumpy\ndtype\n" + text(b"f4") + b"\x89\x88\x87R(K\x03" + text(b"<") + b"NNN" + integer(-1) * 2 + b"K\0tb"
    made = [b"\x80\x04}("]
    for number in range(arrays):
        payload = b"j\x01\0\0\0" if number else b"B" + struct.pack("<I", size) + bytes(size) + b"r\x01\0\0\0"
        state = b"(K\x01" + integer(size // 4) + b"\x85" + dtype + b"\x89" + payload + b"tb"
        made.append(text(b"w%d" % number) + RECONSTRUCT + state)
    return b"".join([*made, b"u."])


def changed(change: Callable[[str, bytes], bytes], compression: int = STORED, records: int = 0) -> bytes:
    """What torch.save writes, its records changed."""
    first, second = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(4)}, "pytorch-lightning_version": "2.6.0"}, first)
    with zipfile.ZipFile(first) as source, zipfile.ZipFile(second, "w", compression) as target:
        for record in source.infolist():
            target.writestr(record.filename, change(record.filename, source.read(record)))
        for number in range(records):
            target.writestr(f"archive/{number:080}", b"")
    return second.getvalue()


def described(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        assert old in content
        return content.replace(old, new)

    return change


def strides(name: str, content: bytes) -> bytes:
    """Two billion values, all of them one."""
    if not name.endswith("data.pkl"):
        return content
    place = content.index(b"QK\0K\x04\x85")
    shape = content.index(b"K\x01\x85", place)
    return content[: place + 3] + integer(2 * 10**9) + content[place + 5 : shape] + b"K\0\x85" + content[shape + 3 :]


def safetensors(header: object, content: bytes = b"") -> bytes:
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + content


def one(**values: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **values}


def called(name: bytes, *arguments: bytes) -> bytes:
    return b"\x80\x02}" + text(b"a") + b"c" + name + b"\n(" + b"".join(arguments) + b"tRs."


def asked_for(asked: bytes, record: str, old: bytes) -> bytes:
    return asked if record.endswith("data.pkl") else old


ASKED = {
    "gigabytes of a number": called(b"builtins\nbytearray", long(3 * 10**9)),
    "a slow encoding": called(
        b"_codecs\nencode", text("".join(map(chr, range(256, 50_000))).encode() * 20), text(b"Puny-Code")
    ),
    "bytes of one text": b"\x80\x02]("
    + text(b"a" * 2_000_000)
    + b"q\1"
    + (b"c_codecs\nencode\nh\1" + text(b"latin1") + b"\x86R") * 1500
    + b"e.",
    "numbers of one hash": b"\x80\x02}(" + b"".join(long(k * (2**61 - 1)) + b"N" for k in range(1, 100_000)) + b"u.",
}

HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "arrays that share their bytes": ("a.pdparams", lambda: sharing(3000)),
    "memo entries": ("a.pdparams", lambda: b"\x80\x04}" + b"\x94" * 3_000_000 + b"."),
    "keys of one hash": (
        "a.pdparams",
        lambda: b"\x80\x02}(" + b"".join(long(k * (2**61 - 1)) + b"N" for k in range(1, 100_000)) + b"u.",
    ),
    "dictionaries": ("a.pdparams", lambda: b"\x80\x04(" + b"}" * 3_000_000 + b"t."),
    "strides of zero": ("a.pth", lambda: changed(strides)),
    "strides of zero in a checkpoint": ("a.ckpt", lambda: changed(strides)),
    "values that are not there": ("a.pth", lambda: changed(described(b"K\x04tq", integer(3 * 10**8) + b"tq"))),
    "compressed records": (
        "a.pth",
        lambda: changed(lambda name, old: bytes(1 << 28) if "data/0" in name else old, zipfile.ZIP_DEFLATED),
    ),
    "records": ("a.pth", lambda: changed(lambda name, old: old, records=40_000)),
    "containers": ("a.pth", lambda: changed(lambda name, old: b"\x80\x02" + b"}" * (5 << 20) + b".")),
    "containers of a file of old torch": (
        "a.pth",
        lambda: OLD_TORCH + b"\x80\x02" + b"}" * (3 << 20),
    ),
    **{
        f"{kind} in {name}": (
            name,
            partial(changed, partial(asked_for, asked)),
        )
        for name in ("a.pth", "a.ckpt")
        for kind, asked in ASKED.items()
    },
    **{f"{kind} of old torch": ("a.pth", partial(add, OLD_TORCH, asked)) for kind, asked in ASKED.items()},
    "a header of 2^62 bytes": ("a.safetensors", lambda: struct.pack("<Q", 1 << 62) + b"{}"),
    "a header of brackets": ("a.safetensors", lambda: struct.pack("<Q", 5_000_000) + b"[" * 5_000_000),
    "tensors of nothing": (
        "a.safetensors",
        lambda: safetensors({f"t{n}": one(shape=[0], data_offsets=[0, 0]) for n in range(100_000)}),
    ),
    "tensors of no bytes": (
        "a.safetensors",
        lambda: safetensors({f"t{n}": one(shape=[0], data_offsets=[0, 0]) for n in range(20_001)}),
    ),
    "tensors that overlap": ("a.safetensors", lambda: safetensors({"a": one(), "b": one()}, bytes(4))),
    "a tensor beyond the end": ("a.safetensors", lambda: safetensors({"a": one(data_offsets=[0, 1 << 40])}, bytes(4))),
    "a tensor of another size": ("a.safetensors", lambda: safetensors({"a": one(shape=[1 << 40])}, bytes(4))),
    "an unknown type": ("a.safetensors", lambda: safetensors({"a": one(dtype="X")}, bytes(4))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_refused_in_a_second_and_within_their_budget(kind: str, tmp_path: Path) -> None:
    name, made = HOSTILE[kind]
    (tmp_path / name).write_bytes(made())
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    read = read_checkpoint if name.endswith(".ckpt") else read_state
    with pytest.raises((WeightsError, CheckpointError), match=r"a\.\w+ .*(refused|damaged|no readable)") as caught:
        read(tmp_path / name)
    assert time.process_time() - begin < 3, "a second, where nothing else runs"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    assert "\n" not in str(caught.value)


def test_weights_under_several_names_are_read(tmp_path: Path) -> None:
    shared = torch.ones(10**6)
    torch.save({"a": shared, "b": shared, "c": shared.view(1000, 1000)}, tmp_path / "a.pth")
    assert len(read_state(tmp_path / "a.pth")) == 3
    torch.save({"a": shared}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_state(tmp_path / "old.pth")["a"].sum() == 10**6


def test_a_hollow_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdparams").write_bytes(b"\x80\x04")
    with (tmp_path / "a.pdparams").open("r+b") as file:
        file.truncate(20 << 30)
    with pytest.raises(WeightsError, match="sparse"):
        read_state(tmp_path / "a.pdparams")


def test_the_message_of_a_checkpoint_reads_three_others_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint({"state_dict": {}, "pytorch-lightning_version": "2.6"}, tmp_path / "0.ckpt")
    for number in range(1, 9):
        (tmp_path / f"{number}.ckpt").write_bytes(b"damaged")
        os.utime(tmp_path / f"{number}.ckpt", ns=(0, 10**9 * number))
    os.utime(tmp_path / "0.ckpt", ns=(0, 0))
    read: list[Path] = []
    inner = checkpoints._read

    def counted(path: Path, *rest: object) -> object:
        read.append(path)
        return inner(path, *rest)

    monkeypatch.setattr(checkpoints, "_read", counted)
    with pytest.raises(CheckpointError, match=r"of the 8 others in .* the newest 3 are not readable either"):
        read_checkpoint(tmp_path / "8.ckpt")
    assert [path.name for path in read] == ["8.ckpt", "7.ckpt", "6.ckpt", "5.ckpt"]
    for number in range(3, 8):
        (tmp_path / f"{number}.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"the newest readable one beside it: ckpt_path=.*0\.ckpt"):
        read_checkpoint(tmp_path / "8.ckpt")


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def got(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def memoized(program: bytes) -> bytes:
    return b"\x80\x02}" + text(b"state_dict") + b"]" + text(b"a" * (1 << 20)) + put(1) + b"a(" + program + b"es."


DOUBLED = b"(K\x01t" + put(2) + b"".join(b"(" + got(2 + n) * 2 + b"t" + put(3 + n) for n in range(40))
ARITHMETIC = {
    "Counter of a memoised text": memoized((b"ccollections\nCounter\n" + got(1) + b"\x85R") * 400),
    "set of a memoised text": memoized((b"c__builtin__\nset\n" + got(1) + b"\x85R") * 400),
    "OrderedDict of a memoised text": memoized((b"ccollections\nOrderedDict\n" + got(1) + b"\x85R") * 400),
    "torch.Size of a memoised text": memoized((b"ctorch\nSize\n" + got(1) + b"\x85R") * 400),
    "set of a memoised list": b"\x80\x02}(" + text(b"a") + b"](" + b"K\x01" * 100_000 + b"e" + put(1) + text(b"b")
    + b"](" + (b"c__builtin__\nset\n" + got(1) + b"\x85R") * 4_000 + b"eu.",
    "a hash of a tuple that doubles": b"\x80\x02}(" + DOUBLED + b"K\x01u.",
    "tuples as keys": b"\x80\x02}(" + b"".join(
        b"M" + struct.pack("<H", n) + b"K\0\x86N" for n in range(60_000)) + b"u.",
    "complex numbers as keys": b"\x80\x02}(" + b"".join(
        b"c__builtin__\ncomplex\nM" + struct.pack("<H", n) + b"K\0\x86RN" for n in range(60_000)) + b"u.",
    "a set of tuples": b"\x80\x02c__builtin__\nset\n](" + b"".join(
        b"M" + struct.pack("<H", n) + b"K\0\x86" for n in range(60_000)) + b"e\x85R.",
}  # fmt: skip


REFUSED = r"named again so often|neither text nor plain numbers"


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_a_pickle_that_computes_is_refused_before_it_runs(kind: str, tmp_path: Path) -> None:
    content = changed(lambda name, old: ARITHMETIC[kind] if name.endswith("data.pkl") else old)
    (tmp_path / "a.pth").write_bytes(content)
    (tmp_path / "a.ckpt").write_bytes(content)
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=REFUSED):
        read_state(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=REFUSED):
        read_checkpoint(tmp_path / "a.ckpt")
    assert time.process_time() - begin < 6, "a second, where nothing else runs"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_what_honest_checkpoints_hold_is_no_arithmetic() -> None:
    layers = OrderedDict((f"layer{number}.weight", torch.zeros(2, 2)) for number in range(3_000))
    content = {
        "state_dict": layers, "sizes": [torch.Size((2, 3))] * 100, "milestones": Counter({30: 1, 60: 1}),
        "names": {f"name {number}" for number in range(5_000)}, "text": "a" * 1_000_000, "shapes": {(1, 2): 3},
        "optimizer_states": [{"state": {n: {"step": torch.tensor(1.0)} for n in range(3_000)}}], "complex": 1j,
        "random": [2**31 + n for n in range(625)],
    }  # fmt: skip
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    assert archive_damage(file) == ""
    torch.save(content, again := io.BytesIO(), _use_new_zipfile_serialization=False)
    again.seek(0)
    assert pickle_fault(again, pickles=5) == ""
