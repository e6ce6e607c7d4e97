"""The .pdparams reader: what Paddle writes comes out bit by bit, anything else is refused in one line and never run."""

from __future__ import annotations

import pickle
import random
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lit_distill.models import paddle, pickle_machine
from lit_distill.models.paddle import WeightsError, read_pdparams
from models.pdparams_files import FLOAT32, RECONSTRUCT, Saved, array, as_published, file, ordered, refused

ROOT = Path(__file__).parents[2]
DTYPES = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]


def read(tmp_path: Path, data: bytes) -> dict[str, torch.Tensor]:
    path = tmp_path / "weights.pdparams"
    path.write_bytes(data)
    return read_pdparams(path)


@pytest.mark.parametrize("name", sorted(refused("")))
def test_refused_in_one_line_without_running_anything(name: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    data = refused(f"touch {ran}")[name]
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"refused as a \.pdparams file") as caught:
        read(tmp_path, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert not ran.exists()
    assert peak < 40 * len(data) + 2**20, "the file may not ask for more memory than its own size warrants"


def test_the_docs_table_is_what_the_reader_says(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "paddlevideo.md").read_text(encoding="utf-8")
    section = text.split("## Refused files")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| ([^|]+?) +\| `([^|]+?)` +\|$", section, flags=re.MULTILINE))
    said = {}
    for name, data in refused("").items():
        with pytest.raises(WeightsError) as caught:
            read(tmp_path, data)
        message = str(caught.value).split("file: ", 1)[1].replace("numpy._core", "numpy.core")
        said[name] = re.sub(r"( at| \()byte \d+( of \d+)?\)?", "", message).strip()
    assert listed == said


@pytest.mark.parametrize("protocol", [2, 3, 4])
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_array_comes_out_bit_by_bit(
    protocol: int, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    kinds = st.sampled_from(DTYPES).flatmap(
        lambda name: st.sampled_from([np.dtype(name), np.dtype(name).newbyteorder()])
    )
    arrays = data.draw(
        st.dictionaries(
            st.text("abcdefgh._0123456789", min_size=1),
            kinds.flatmap(lambda dtype: hnp.arrays(dtype, shapes)),
            min_size=1,
            max_size=4,
        )
    )
    if data.draw(st.booleans()):
        arrays = {name: np.asfortranarray(value) for name, value in arrays.items()}
    tensors = read(tmp_path_factory.mktemp("arrays"), as_published(arrays, protocol))
    assert list(tensors) == list(arrays)
    for name, value in arrays.items():
        native = value.astype(value.dtype.newbyteorder("="))
        assert tensors[name].numpy().tobytes() == native.tobytes()
        assert tensors[name].numpy().dtype == native.dtype
        assert tensors[name].shape == native.shape


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_uint16_is_bfloat16(protocol: int, tmp_path: Path) -> None:
    values = torch.tensor([1.0, -2.5, 3.0e30, float("inf")], dtype=torch.bfloat16)
    stored = values.view(torch.int16).numpy().view(np.uint16)
    tensor = read(tmp_path, as_published({"w": stored}, protocol))["w"]
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, values)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_names_of_numpy_1_and_2(protocol: int, module: bytes, tmp_path: Path) -> None:
    data = re.sub(rb"cnumpy\._?core\.multiarray\n", b"c" + module + b"\n", as_published({"w": np.ones(2)}, protocol))
    assert b"c" + module + b"\n" in data
    assert read(tmp_path, data)["w"].tolist() == [1.0, 1.0]


def test_written_under_python_2(tmp_path: Path) -> None:
    dtype = FLOAT32.replace(b"X\x02\x00\x00\x00", b"U\x02").replace(b"X\x01\x00\x00\x00", b"U\x01")
    dtype = dtype.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    value = (
        RECONSTRUCT.replace(b"C\x01", b"U\x01")
        + b"(K\x01K\x02\x85"
        + dtype
        + b"\x89U\x08"
        + b"\x00\x00\x80?" * 2
        + b"tb"
    )
    assert read(tmp_path, b"\x80\x02}U\x01w" + value + b"s.")["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_nested_saves_give_dotted_names(protocol: int, tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {"fc.weight": np.ones((2, 3), np.float32), "fc.bias": np.zeros(3)}
    saved = {"model": ordered(arrays), "epoch": 3, "rate": 0.5, "best": None, "more": [Saved("x", np.ones(1)), (True,)]}
    tensors = read(tmp_path, pickle.dumps(saved, protocol=protocol))
    assert list(tensors) == ["model.fc.weight", "model.fc.bias", "more.0"]
    assert tensors["model.fc.weight"].shape == (2, 3)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_single_tensors_keep_their_name(protocol: int, tmp_path: Path) -> None:
    tensors = read(tmp_path, pickle.dumps(Saved("linear_0.w_0", np.ones(2, np.float32)), protocol=protocol))
    assert {name: value.tolist() for name, value in tensors.items()} == {"linear_0.w_0": [1.0, 1.0]}


def test_an_array_alone(tmp_path: Path) -> None:
    assert read(tmp_path, pickle.dumps(np.ones(2), protocol=4))["tensor"].tolist() == [1.0, 1.0]


def test_slices_are_put_together(tmp_path: Path) -> None:
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    saved = {
        "fc.bias": np.zeros(3, np.float32),
        "fc.weight@@.0": whole.ravel()[:4],
        "fc.weight@@.1": whole.ravel()[4:],
        "UnpackBigParamInfor@@": {"fc.weight": {"OriginShape": (2, 3), "slices": ["fc.weight@@.0", "fc.weight@@.1"]}},
    }
    tensors = read(tmp_path, pickle.dumps(saved, protocol=2))
    assert list(tensors) == ["fc.bias", "fc.weight"]
    np.testing.assert_array_equal(tensors["fc.weight"], whole)


def test_one_array_under_two_names_is_one_tensor(tmp_path: Path) -> None:
    shared = np.ones(4, np.float32)
    tensors = read(tmp_path, pickle.dumps({"a": shared, "b": shared}, protocol=4))
    assert tensors["a"].data_ptr() == tensors["b"].data_ptr()


def test_tensors_are_writable_and_outlive_the_file(tmp_path: Path) -> None:
    tensor = read(tmp_path, as_published({"w": np.ones(2)}, 4))["w"]
    (tensor + 1).sum()
    tensor.zero_()
    assert tensor.tolist() == [0.0, 0.0]


def test_the_crafted_array_is_a_good_one(tmp_path: Path) -> None:
    assert read(tmp_path, file(array(b"K\x01\x85")))["w"].tolist() == [1.0]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cut_anywhere_it_is_refused(protocol: int, tmp_path: Path) -> None:
    data = as_published({"w": np.ones((2, 2), np.float32), "v": np.arange(3)}, protocol)
    for end in range(len(data)):
        with pytest.raises(WeightsError):
            read(tmp_path, data[:end])


@pytest.mark.parametrize("protocol", [2, 4])
def test_flipped_bits_give_tensors_or_an_error(protocol: int, tmp_path: Path) -> None:
    data = as_published({"w": np.ones((2, 2), np.float32), "v": np.arange(3)}, protocol)
    for position in range(len(data)):
        for bit in (0, 2, 5, 7):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            _tensors_or_error(tmp_path, bytes(flipped))


def test_shuffled_opcodes_give_tensors_or_an_error(tmp_path: Path) -> None:
    generator = random.Random(0)
    sources = [data[2:] for data in refused("true").values() if 4 < len(data) < 500]
    for _ in range(1500):
        pieces = []
        for _ in range(generator.randint(1, 6)):
            source = generator.choice(sources)
            start = generator.randrange(len(source))
            pieces.append(source[start : start + generator.randint(1, 40)])
        _tensors_or_error(tmp_path, b"\x80\x04" + b"".join(pieces) + b".")


def _tensors_or_error(tmp_path: Path, data: bytes) -> None:
    try:
        tensors = read(tmp_path, data)
    except WeightsError:
        return
    assert tensors
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 8 * len(data)


def test_a_flood_of_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "_MAX_STEPS", 1000)
    with pytest.raises(WeightsError, match="more than 1000 opcodes"):
        read(tmp_path, b"\x80\x03" + b"}" * 2000 + b".")


def test_neither_paddle_nor_pickle_takes_part(tmp_path: Path) -> None:
    read(tmp_path, as_published({"w": np.ones(2)}, 4))
    assert "paddle" not in sys.modules
    assert not hasattr(paddle, "pickle")
    assert not hasattr(pickle_machine, "pickle")
