"""ONNX files that ask for time or memory without end, or for what is outside of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_distill.inference.onnx_files import OnnxNetwork, write_onnx
from lit_distill.untrusted.onnx_graphs import NODES, check_graph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

OWN = "x.own"


def tensor(name: str, value: Any, kind: type = np.int64) -> Any:
    return onnx.numpy_helper.from_array(np.array(value, kind), name)


def external(location: str) -> Any:
    found = onnx.TensorProto(name="z", data_type=1, dims=[8], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "4096"), ("length", "32")):
        found.external_data.add(key=key, value=value)
    return found


def model(nodes: list[Any], tensors: list[Any] = [], **more: Any) -> bytes:  # noqa: B006
    """Clips (batch, 4) to logits (batch, 3), to which something is added that the nodes call z."""
    make = onnx.helper
    first = make.make_node("MatMul", ["clips", "w"], ["y"])
    last = [make.make_node("Add", ["y", "z"], ["logits"])]
    graph = make.make_graph(
        [first, *nodes, *last], "g", [make.make_tensor_value_info("clips", 1, ["batch", 4])],
        [make.make_tensor_value_info("logits", 1, ["batch", 3])], [tensor("w", np.ones((4, 3)), np.float32), *tensors],
        **{key: value for key, value in more.items() if key == "sparse_initializer"},
    )  # fmt: skip
    opsets = [make.make_opsetid("", 17), make.make_opsetid(OWN, 1)]
    written: bytes = make.make_model(
        graph, opset_imports=opsets, ir_version=8, functions=more.get("functions", [])
    ).SerializeToString()
    return written


def node(kind: str, inputs: list[str], outputs: list[str], **more: Any) -> Any:
    return onnx.helper.make_node(kind, inputs, outputs, **more)


def loop() -> bytes:
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [node("Identity", ["c"], ["more"]), node("Identity", ["v"], ["after"]), node("Identity", ["v"], ["all"])],
        "b", [info("i", 7, []), info("c", 9, []), info("v", 1, [])],
        [info("more", 9, []), info("after", 1, []), info("all", 1, [])],
    )  # fmt: skip
    return model(
        [node("Loop", ["n", "t", "v0"], ["z", "kept"], body=body)],
        [tensor("n", 1 << 62), tensor("t", True, np.bool_), tensor("v0", 0, np.float32)],
    )


def doubling_functions() -> bytes:
    functions = [
        onnx.helper.make_function(
            OWN, f"f{n}", ["a"], ["b"],
            [node(f"f{n - 1}", ["a"], ["m"], domain=OWN), node(f"f{n - 1}", ["m"], ["b"], domain=OWN)] if n
            else [node("Identity", ["a"], ["b"])],
            [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(OWN, 1)],
        )
        for n in range(30)
    ]  # fmt: skip
    return model([node("Identity", ["y"], ["z"])], functions=functions)


def sparse() -> bytes:
    found = onnx.helper.make_sparse_tensor(tensor("z", [1.0], np.float32), tensor("at", [0]), [3 << 28])
    return model([], sparse_initializer=[found])


ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a loop": (loop, "Loop holds a graph"),
    "functions that double": (doubling_functions, "defines functions"),
    "sparse tensors": (sparse, "sparse tensors"),
    "a node with a sparse tensor": (
        lambda: model(
            [node("Constant", [], ["z"], sparse_value=onnx.helper.make_sparse_tensor(
                tensor("v", [1.0], np.float32), tensor("at", [0]), [3 << 28]))]
        ),
        "sparse tensor",
    ),
    "a tensor in a file": (lambda: model([], [external("/etc/passwd")]), "external data"),
    "a tensor above": (lambda: model([], [external("../../etc/passwd")]), "external data"),
    "a tensor at an address": (lambda: model([], [external("*/_ORT_MEM_ADDR_/*")]), "external data"),
    "a node with a tensor in a file": (
        lambda: model([node("Constant", [], ["z"], value=external("/etc/passwd"))]), "external data"),
    "a node of another domain": (
        lambda: model([node("FusedMatMul", ["clips", "w"], ["z"], domain="com.microsoft")]), "FusedMatMul is none"),
    "a name that moves the cursor": (lambda: model([node("\x1b[2J", ["y"], ["z"], domain=OWN)]), r"node \?\[2J is"),
    # ONNX Runtime takes their memory elsewhere than that of tensors: 1.9 GB of the first, 1.7 GB of the fourth
    "texts that expand": (
        lambda: model([node("Expand", ["s", "n"], ["z"])],
                      [onnx.helper.make_tensor("s", 8, [1], [b"1" * 100_000]), tensor("n", [20_000])]), "holds texts"),
    "numbers that become texts": (lambda: model([node("Cast", ["y"], ["z"], to=8)]), "Cast makes texts"),
    "a text as a constant": (
        lambda: model([node("Constant", [], ["z"], value_strings=[b"1"])]), "Constant makes texts"),
    "a sequence of scalars": (
        lambda: model([node("Range", ["a", "b", "c"], ["r"]), node("SplitToSequence", ["r"], ["z"], keepdims=0)],
                      [tensor(name, value, np.float32) for name, value in (("a", 0), ("b", 3e6), ("c", 1))]),
        "SplitToSequence is none that networks need"),
    "a set": (lambda: model([node("Unique", ["y"], ["z"])]), "Unique is none"),
    "boxes": (lambda: model([node("RoiAlign", ["y", "y", "y"], ["z"], output_height=1 << 20)]), "RoiAlign is none"),
    "many nodes": (
        lambda: model([node("Neg", [f"n{n}"], [f"n{n + 1}"]) for n in range(NODES)]), "more than 20,000 nodes"),
    "a graph twice": (lambda: loop() + model([node("Neg", ["y"], ["z"])]), "Loop holds a graph"),
    "a field longer than the file": (lambda: b"\x3a\xff\x01\x0a", "damaged"),
    "a length without end": (lambda: b"\x3a" + b"\xff" * 12, "damaged"),
    "a field that never closes": (lambda: b"\x3b", "damaged"),
    "a number for a graph": (lambda: b"\x38\x01", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_what_asks_for_more_than_its_nodes_is_refused(name: str, tmp_path: Path) -> None:
    make, said = ATTACKS[name]
    (tmp_path / "a.onnx").write_bytes(make())
    begun = time.process_time()
    with pytest.raises(ValueError, match=said) as caught:
        OnnxNetwork(tmp_path / "a.onnx")
    assert str(caught.value).isprintable()
    assert time.process_time() - begun < 1


def test_what_this_library_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(model([], [tensor("z", 1, np.float32)]))
    assert OnnxNetwork(tmp_path / "a.onnx", seconds=60)(torch.ones(2, 4)).tolist() == [[5.0] * 3] * 2
    write_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(2, 3, 2, 2), tmp_path / "b.onnx")
    check_graph((tmp_path / "b.onnx").read_bytes())


def test_a_batch_has_its_time(tmp_path: Path) -> None:
    nodes = [node("Flatten", ["clips"], ["d0"], axis=0)]
    nodes += [node("Concat", [f"d{n}", f"d{n}"], [f"d{n + 1}"], axis=1) for n in range(6)]
    nodes += [node("Transpose", ["d6"], ["t"]), node("MatMul", ["t", "d6"], ["m0"])]
    nodes += [node("MatMul", [f"m{n}", f"m{n}"], [f"m{n + 1}"]) for n in range(5_000)]
    (tmp_path / "a.onnx").write_bytes(model([*nodes, node("ReduceMean", ["m5000"], ["z"], keepdims=0)]))
    network = OnnxNetwork(tmp_path / "a.onnx", threads=1, seconds=0.05)
    with pytest.raises(ValueError, match=r"takes more than 0\.05 seconds: give fewer samples"):
        network(torch.ones(2, 4))


@pytest.mark.parametrize("folded", [False, True])
def test_all_sessions_of_a_process_share_a_budget(folded: bool, tmp_path: Path) -> None:
    """Also where ONNX Runtime computes constants beforehand; in a process of its own, which has one allocator."""
    value = [] if folded else [node("ReduceSum", ["clips"], ["v"], keepdims=0)]
    nodes = [*value, node("Expand", ["v", "size"], ["large"]), node("ReduceMean", ["large"], ["z"], keepdims=0)]
    tensors = [tensor("size", [100 << 20]), *([tensor("v", 0, np.float32)] if folded else [])]
    (tmp_path / "a.onnx").write_bytes(model(nodes, tensors))
    program = (
        "import sys, torch\nfrom lit_distill.inference import onnx_files\nonnx_files.ONNX_BYTES = 64 << 20\n"
        "try: onnx_files.OnnxNetwork(sys.argv[1])(torch.ones(2, 4))\nexcept ValueError as error: print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.onnx")], capture_output=True, text=True, check=True
    )
    assert "cannot be run on" in ended.stdout
    assert not ended.stderr
