"""What the fuzzers of tests/faults found, a minimal input each."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.lists import ListFile, read_class_names
from lit_distill.data.catalogue.quarantine import from_json
from lit_distill.data.decoding.layout import VideoInfo, VideoLayout
from lit_distill.data.sources.shards import Shards, _known, scan_shard, shard_names
from lit_distill.paddlevideo.config import convert_config
from lit_distill.runs.opened import load_run
from lit_distill.untrusted.building import build
from lit_distill.untrusted.naming import inside
from lit_distill.untrusted.opening import open_untrusted

HOSTILE = "\x1b[2J\u202e"


def test_a_read_makes_room_for_what_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"abc" * 1000)
    tracemalloc.start()
    try:
        with open_untrusted(tmp_path / "a.pth", what="a weights file") as file:
            assert file.read(3) == b"abc"
            assert len(file.read(4 << 30)) == 2997
            assert file.read(4 << 30) == b""
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_error_of_what_is_built_is_one_short_line() -> None:
    for text in ("9" * 5000, HOSTILE):
        with pytest.raises(ValueError, match="two references") as caught:
            build(
                {"_target_": "lit_distill.LossTerm", "loss": {"_target_": "torch.nn.MSELoss"}, "pair": text}, name="a"
            )
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1100


def test_a_place_outside_is_printed_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a file inside") as caught:
        inside(tmp_path, f"../{HOSTILE}")
    assert str(caught.value).isprintable()


def test_an_error_of_a_foreign_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f'MODEL: "a"{HOSTILE[1:]}')
    with pytest.raises(ValueError, match="is no YAML") as caught:
        convert_config(tmp_path / "a.yaml", tmp_path / "conf")
    assert str(caught.value).isprintable()


def test_a_key_of_a_shard_is_printed_in_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(f"{HOSTILE}\n.cls"), io.BytesIO())
    with pytest.raises(ValueError, match="0 videos") as caught:
        scan_shard(Archives(tmp_path), str(tmp_path / "a.tar"), (tmp_path / "a.tar").stat().st_size)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "\n \n", "² a\n³ b\n"])
def test_class_names_without_names_or_with_odd_digits_are_an_error_of_the_list(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match="expected num_classes=3 names"):
        read_class_names(tmp_path / "names.txt", 3)


def test_a_long_label_of_a_shard_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        label = tarfile.TarInfo("a.cls")
        label.size = 4000
        tar.addfile(tarfile.TarInfo("a.mp4"), io.BytesIO())
        tar.addfile(label, io.BytesIO(b"x" * 4000))
    listed = ListFile(file="a.tar", key="data.train_list", root=tmp_path, num_classes=2)
    with pytest.raises(ValueError, match="out of range") as caught:
        Shards(archives=Archives(tmp_path)).samples(listed)
    assert len(str(caught.value)) < 1000


def test_a_long_name_of_a_student_is_cut(tmp_path: Path) -> None:
    tree = {"models": {"Student": {}}, "data": {"a": 1}, "student": "x" * 4000}
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="has no model") as caught:
        load_run(tmp_path)
    assert len(str(caught.value)) < 1000


def test_no_shard_is_named_by_a_chain_of_protocols(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not inside the root"):
        shard_names("simplecache::memory:a.tar", Archives(tmp_path))


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_is_no_whole_one(number: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"malformed|integer"):
        from_json({"quarantine": [{"path": "a", "reason": "b", "split": "train", "epoch": number}]})
    record = VideoLayout(VideoInfo(9, 25.0, 0.36, 64, 48, "h264", 0), size=1234, starts=(0,)).to_json()
    with pytest.raises(ValueError, match="not the record"):
        VideoLayout.from_json({**record, "size": number})
    entries = [["a", ["a.mp4", number, 1], 0]]
    kept = {"format": 1, "shard": "a.tar", "stamp": [9, 9], "entries": entries}
    (tmp_path / "a.json").write_text(json.dumps(kept))
    assert _known(tmp_path / "a.json", "a.tar", (9, 9)) is None


def test_an_onnx_file_that_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx").helper
    from lit_distill.inference.onnx_files import OnnxNetwork

    def write(operation: str, rows: int) -> Path:
        weight = helper.make_tensor("w", 1, [rows, 3], np.ones(3 * rows, np.float32).tobytes(), raw=True)
        graph = helper.make_graph(
            [helper.make_node(operation, ["clips", "w"], ["logits"])], "g",
            [helper.make_tensor_value_info("clips", 1, ["batch", "n"])],
            [helper.make_tensor_value_info("logits", 1, ["batch", 3])], [weight],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "a.onnx"

    with pytest.raises(ValueError, match="no ONNX model") as caught:
        OnnxNetwork(write(HOSTILE, 4))
    assert str(caught.value).isprintable()
    network = OnnxNetwork(write("MatMul", 4), threads=1)
    assert network(torch.zeros(2, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"cannot be run on \(2, 5\)") as caught:
        network(torch.zeros(2, 5))
    assert str(caught.value).isprintable()
