"""What reads files of others, one target a kind: honest files, their changes, and what must hold of the result."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import av
import numpy as np
import torch
import yaml
from PIL import Image

from faults.fuzzing import changes
from faults.fuzzing.changes import NAMES, PICKLE, flipped, regrown, rewritten
from faults.fuzzing.harness import Case, Target
from lit_distill._files import cache_folder
from lit_distill.checkpoints import read_checkpoint, write_checkpoint
from lit_distill.data import Limits, VideoError, read_frames, scan
from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.lists import ListFile, read_class_names, read_list
from lit_distill.data.catalogue.quarantine import QuarantineError, QuarantineList, from_json
from lit_distill.data.catalogue.video_index import VideoIndex
from lit_distill.data.decoding.encode import write_video
from lit_distill.data.decoding.layout import VideoLayout
from lit_distill.data.sources.images import read_image
from lit_distill.data.sources.shards import Shards, expand, scan_shard, shard_names
from lit_distill.models.state_files import read_safetensors, read_state
from lit_distill.paddlevideo.config import convert_config
from lit_distill.reporting.history import read_history
from lit_distill.runs.artifacts import read_results, write_student
from lit_distill.runs.opened import load_run
from lit_distill.teacher_cache.shards import DamagedShardError, Shard, write_shard
from lit_distill.untrusted.budgets import UNFOLDED, UNFOLDED_FREE
from lit_distill.untrusted.building import build
from lit_distill.untrusted.check import check_targets
from lit_distill.untrusted.containers import check_container
from lit_distill.untrusted.naming import file_name, inside, is_address
from lit_distill.untrusted.plain import parse_yaml, read_plain, resolved, walk
from lit_distill.untrusted.showing import cell, printable
from lit_distill.untrusted.targets import rule_of

T: Final = "_target_"
LIMITS: Final = Limits(frames=500, pixels=1 << 20, seconds=2)
POINTERS: Final = (
    "$", "{", "}", "${", "${a}", "${data.size}", "${data.roots[0]}", "${..b}", "${.c}", "${...a.b}", "${a[0]}",
    "${a.0}",
    "${models.Student}", "${student}", "${oc.env:HOME}", "${oc.create:{_target_: os.system}}", "${d}${c}", "\\${a}",
    "\\\\${a}", "$${a}", "${${a}}", "${ a }", "${a", "a}", "${a:b}", "${a.}", "${}", "${data}", "{oc.env:HOME}",
)  # fmt: skip
CALLS: Final = (
    "os.system", "torch.load", "torch.hub.load", "builtins.eval", "pathlib.Path.write_text", "subprocess.run",
    "hydra.utils.instantiate", "omegaconf.OmegaConf.load", "torch.nn.Linear", "torch.nn.Sequential",
    "torch.nn.Identity",
    "torch.nn.Module.register_forward_hook", "torch.nn.modules.linear.torch.load", "torch.optim.SGD", "torch.save",
    "lit_distill.losses.KDLoss", "lit_distill.models.PPTSMv2", "lit_distill.data.VideoDataModule", "lightning.Trainer",
    "lit_distill.untrusted.building.build", "lit_distill.models.timm_model", "lightning.pytorch.loggers.CSVLogger",
    "lit_distill.checkpoints.os.system", "numpy.load", "torchvision.transforms.v2.Lambda",
    "torch.nn.TransformerEncoder", "torch.nn.LSTM", "torchvision.transforms.v2.Resize",
    "torchvision.transforms.v2.Pad", "lit_distill", "", ".",
    "a..b",
)  # fmt: skip
KEYS: Final = (
    T, "_args_", "_partial_", "_recursive_", "_convert_", "a", "b", "c", "d", "f", "root", "roots", "size", "scale",
    "num_classes", "num_frames", "pretrained", "num_layers", "encoder_layer", "padding",
    "in_features", "out_features", "lr", "Student", "models", "data",
    "student",
    "losses", "callbacks", "trainer", "cache", "train_list", "format", "<<", "${a}", "a b", "__class__", "0",
    "class_names",
)  # fmt: skip
MARKS: Final = (
    *POINTERS, *CALLS, *KEYS, *NAMES, "!!python/object/apply:os.system ['touch outside']", "!!binary aGk=", "&a", "*a",
    "<<: *a", "---", "...", "%TAG ! tag:x", ": ", "\n", "\n  ", "\n- ", "- ", "[", "]", ",", '"', "'", "|", ">", "#",
    "@",
    "`", "\t", "???", "~", ".inf", ".nan", "0x1f", "0b1", "1:2:3", "1e-4", "2026-01-01", "1_0", "null", "true", "no",
    "[" * 50, "{a: " * 50, "9" * 70, "1:" + "59:" * 30, "\ufeff", "\x85", "\u2028",
)  # fmt: skip
VALUES: Final = (*changes.VALUES, *POINTERS, *CALLS)
SIZES: Final = {"num_classes": 3, "num_frames": 4}
NETWORK: Final = {
    T: "lit_distill.models.PPTSMv2", **SIZES, "scale": 0.125, "depths": [1, 1, 1, 1], "class_expand": 8
}  # fmt: skip
DATA: Final = {
    T: "lit_distill.data.VideoDataModule", "root": ".", "train_list": "train.txt", "val_list": "val.txt", **SIZES,
    "size": 32, "scale": 32, "roots": ["."],
}  # fmt: skip
CONFIG: Final = {
    "a": {"b": [1, {"c": "${student}"}]}, "models": {"Student": {**NETWORK, "pretrained": None}}, "data": DATA,
    "student": "Student", "d": "$", "c": "{oc.create:{_target_: os.system, command: touch outside}}",
    "losses": {"ce": {T: "lit_distill.LossTerm", "loss": {T: "torch.nn.CrossEntropyLoss"},
                      "pair": ["Student", "GroundTruth"]}},
    "optimizer": {T: "torch.optim.SGD", "_partial_": True, "lr": 0.1}, "scheduler": None, "frozen": [], "callbacks": {},
}  # fmt: skip
SMALL: Final = {
    "a": {"b": [1, {"c": "x"}], "f": "${..c}"}, "c": "{oc.env:HOME}", "d": "$", "width": 4,
    "data": {"size": "${width}"},
    "layer": {T: "torch.nn.Linear", "_args_": ["${width}", 2]},
    "net": {T: "torch.nn.Sequential", "_args_": [{T: "torch.nn.Identity"}, {T: "torch.nn.Linear", "in_features": 2,
                                                                         "out_features": "${data.size}"}]},
}  # fmt: skip


def encoded(*tokens: str) -> tuple[bytes, ...]:
    return tuple(token.encode("utf-8", "surrogatepass") for token in tokens)


def reading(
    folder: Path, name: str, honest: Collection[bytes], change: Callable[[bytes, Random], bytes],
    read: Callable[[Path], object],
) -> Case:  # fmt: skip
    """A target that reads one file: the honest ones first, each of them must give a value."""
    file, corpus = folder / name, list(honest)
    for content in corpus:
        file.write_bytes(content)
        read(file)

    def case(chance: Random) -> object:
        file.write_bytes(change(chance.choice(corpus), chance))
        return read(file)

    return case


# configs


def as_text(tree: Any, chance: Random) -> bytes:
    """A tree as YAML or JSON, its text changed now and then."""
    text = json.dumps(tree) if chance.random() < 0.7 else yaml.dump(tree, Dumper=yaml.CSafeDumper)
    if chance.random() < 0.3:
        text = rewritten(text, chance, MARKS)
    return text.encode("utf-8", "surrogatepass")


def check_plain(tree: Any) -> None:
    """What a checked config must be: plain data, no interpolation left, nothing but admitted names to call."""
    for _, value in walk(tree):
        assert not isinstance(value, str) or "${" not in value, f"interpolation left: {value!r}"
        if isinstance(value, Mapping) and T in value:
            assert rule_of(value[T]) is not None, f"admitted: {value[T]!r}"


def configs(folder: Path) -> Case:
    def read(file: Path) -> object:
        tree = check_targets(resolved(read_plain(file)), run_dir=folder)
        check_plain(tree)
        return tree

    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    read(file)

    def case(chance: Random) -> object:
        file.write_bytes(as_text(regrown(SMALL, chance, VALUES, KEYS), chance))
        return read(file)

    return case


def yaml_texts(folder: Path) -> Case:
    text = yaml.safe_dump({"a": {"b": [1, {"c": "x"}]}, "width": 4, "layer": {T: "torch.nn.Linear"}, "f": "${width}"})

    def case(chance: Random) -> object:
        tree = resolved(parse_yaml(rewritten(text, chance, MARKS)))
        check_plain_text(tree)
        return tree

    def check_plain_text(tree: Any) -> None:
        assert all(not isinstance(value, str) or "${" not in value for _, value in walk(tree))

    return case


def write_run(folder: Path) -> Path:
    torch.manual_seed(0)
    run = folder / "run"
    run.mkdir()
    state = build({T: NETWORK[T], **{key: value for key, value in NETWORK.items() if key != T}}).eval().state_dict()
    write_student(run, state, {"model": NETWORK, "data": DATA, "class_names": ["a", "b", "c"]})
    return run


def runs(folder: Path) -> Case:
    """Whole run folders, opened and built as the commands do."""
    run = write_run(folder)
    file = run / "config.yaml"

    def opened() -> object:
        one = load_run(run)
        for group in ("losses", "optimizer", "scheduler", "callbacks"):
            build(one.config.get(group), name=group, run_dir=run)
        one.preprocess()
        one.view()
        return one

    file.write_text(yaml.safe_dump(CONFIG))
    opened()

    def case(chance: Random) -> object:
        file.write_bytes(as_text(regrown(CONFIG, chance, VALUES, KEYS), chance))
        return opened()

    return case


def cards(folder: Path) -> Case:
    run = write_run(folder)
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "student": "best", "stages": {"a": {}}}))
    stage = run / "stages" / "1_a"
    stage.mkdir(parents=True)
    (stage / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    card = json.loads((run / "student.json").read_text()) | {"input": {"size": 16}, "teachers": {"T": {"sha256": "x"}}}
    results = {"student": "Student", "student_stage": "1_a", "versions": {}, "best": {}, "final": {"a": 1.0}}
    (run / "results.json").write_text(json.dumps(results))
    load_run(run), load_run(run / "student.safetensors"), read_results(run)
    honest = {name: (run / name).read_bytes() for name in ("student.json", "results.json")}

    def case(chance: Random) -> object:
        name, tree = ("student.json", card) if chance.random() < 0.6 else ("results.json", results)
        text = json.dumps(regrown(tree, chance, VALUES, (*KEYS, *tree)))
        text = rewritten(text, chance, MARKS) if chance.random() < 0.3 else text
        (run / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            if name == "results.json":
                return load_run(run), read_results(run)
            one = load_run(run / "student.safetensors")
            one.preprocess()
            return one.class_names, one.view()
        finally:
            (run / name).write_bytes(honest[name])

    return case


def paddle_configs(folder: Path) -> Case:
    from test_convert import ALONE, DISTILLATION

    file, target = folder / "pptsm.yaml", folder / "out" / "experiment" / "pptsm.yaml"
    tokens = (*MARKS, "RecognizerDistillation", "ResNetTweaksTSM", "PPTSM_v2", "MODEL", "epochs", "None", "- ")

    def case(chance: Random) -> object:
        text = rewritten(chance.choice((ALONE, DISTILLATION)), chance, tokens)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        target.unlink(missing_ok=True)
        convert_config(file, folder / "out")
        written = target.read_text()
        assert "${" not in written
        assert not any(word in json.dumps(yaml.safe_load(written)) for word in ("os.system", "eval", "://", "::"))
        return written

    return case


def names(folder: Path) -> Case:
    """Names that others gave, as file names, as places to write, as addresses and on the screen."""
    pieces = (*NAMES, "/", ".", "a", "Student", "b.ckpt", "link", "home", "..", "//", "\u2044", "e\u0301")
    (folder / "in").mkdir()
    (folder / "in" / "link").symlink_to("/etc")
    (folder / "in" / "home").symlink_to(folder)
    real = os.path.join(os.path.realpath(folder / "in"), "")

    def case(chance: Random) -> object:
        name = "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 4)))
        assert printable(name).isprintable()
        assert not cell(name).lstrip().startswith(("=", "+", "-", "@"))
        assert is_address(name) or not ("://" in name or "::" in name)
        try:
            made = file_name(name)
        except ValueError:
            pass
        else:
            assert made == name
            assert os.path.basename(made) == made not in ("", ".", "..")
        place = inside(folder / "in", name)
        assert os.path.realpath(place).startswith(real)
        return place

    return case


# lists and shards

LINES: Final = (
    *NAMES, "a.mp4 0", "a b.mp4 1", "a.mp4,1", "dir 9 1", "a.mp4 2", "a.mp4 -1", "a.mp4 99999999999999999999",
    "a.mp4 0 0.5",
    "link/a.mp4 0", "run/a.mp4", ",", ", ,", "0", "a.mp4 ²", "a.mp4 ٣", "\r", "\x0b", "\x1c", "\x85", "\u2028",
    "\ufeff",
    "concat:a|b 0", "file,a 0", "CON: 0", "a.M3U8 0", "/dev/stdin 0", "subfile,,start,0,end,0,,:a 0", "9" * 5000,
)  # fmt: skip
PATTERNS: Final = (
    "{0..9}", "{00..03}", "{9..0}", "{0..99999999999}", "{a,b}", "{,}", "{}", "{", "}", "{{0..1}}", ".tar", "a-",
    "train",
    "{0..999}", "{²..³}", "{٠..٣}", *NAMES, "/", "\n", "{a..b}", "{0..1}{0..1}", "{0..1_0}",
)  # fmt: skip


def lists(folder: Path) -> Case:
    (folder / "run").mkdir()
    (folder / "link").symlink_to("/etc")
    root = os.path.join(os.path.realpath(folder), "")
    text = "a.mp4 0\nrun/b c.mp4 1\nrun/d.mp4,2\n\nx/y/z.avi 0\n"
    file = folder / "train.txt"
    file.write_text(text)
    read_list(file, root=folder, num_classes=3)

    def case(chance: Random) -> object:
        file.write_bytes(rewritten(text, chance, LINES).encode("utf-8", "surrogatepass"))
        if chance.random() < 0.2:
            return read_class_names(file, 3)
        options: dict[str, Any] = {"counted": chance.random() < 0.3, "labelled": chance.random() < 0.8}
        samples = read_list(file, root=folder, num_classes=3, class_names=("run", "x", "y"), **options)
        for sample in samples:
            assert os.path.realpath(sample.path).startswith(root), sample
            assert -1 <= sample.label < 3, sample
        return samples

    return case


def shard_lists(folder: Path) -> Case:
    archives, file = Archives(folder), folder / "train.txt"

    def case(chance: Random) -> object:
        name = "".join(chance.choice(PATTERNS) for _ in range(chance.randrange(1, 5)))
        name += ".tar" if chance.random() < 0.6 else ""
        if chance.random() < 0.1:
            return expand(name)
        if chance.random() < 0.3:
            file.write_bytes(f"a.tar\n{name}\n".encode("utf-8", "surrogatepass"))
            name = file.name
        made = shard_names(name, archives)
        for each in (*made[:50], *made[-50:]):
            assert each.endswith(".tar"), each
            assert not any((is_address(each), os.path.isabs(each), ".." in each.split("/"), "\0" in each)), each
        return made

    return case


def tar_bytes(format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in (("0001.mp4", b"m" * 600), ("0001.cls", b"1"), ("é" * 60 + "/2.avi", b""),
                              ("é" * 60 + "/2.json", b'{"label": "a"}'), (".notes", b"x")):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def tars(folder: Path) -> Case:
    tokens = encoded(*NAMES, "0002.mp4", "0001.cls", "0001.json", ".mp4", "x.", "30 path=../../outside\n",
        "99999999999 a=b\n",
                     "25 size=99999999999999\n", "22 GNU.sparse.major=1\n", "1", "²", '{"label": true}',
                     "[" * 500)  # fmt: skip

    def read(file: Path) -> object:
        size = file.stat().st_size
        entries = scan_shard(Archives(folder), str(file), size)
        for entry in entries:
            assert 0 <= entry.video.size <= size - entry.video.offset <= size, entry
            assert not {"..", ""} & set(entry.key.split("/")[:-1]), entry
        return entries

    honest = [tar_bytes(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[1:]]
    return reading(folder, "a.tar", honest, lambda data, chance: changes.reheaded(data, chance, tokens), read)


# weights


def state() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16),
        "n": torch.tensor(3), "u": torch.ones(4, dtype=torch.bool), "e": torch.empty(0, 3),
    }  # fmt: skip


def read_weights(file: Path) -> object:
    tensors = read_state(file)
    unfolded = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert unfolded <= UNFOLDED * file.stat().st_size + UNFOLDED_FREE, unfolded
    for name, tensor in tensors.items():
        assert (tensor.device.type, tensor.layout) == ("cpu", torch.strided), name
        tensor.clone()  # a read beyond its storage would end the process
    return tensors


def pdparams(folder: Path) -> Case:
    arrays = {"fc.weight": np.ones((2, 3), np.float32), "bn._mean": np.zeros(3, np.float32), "b": np.ones(2, np.uint16)}
    contents = (arrays, {"model": arrays, "epoch": 3, "names": [("x", arrays["b"])]},
                {**arrays, "StructuredToParameterName@@": {"fc.weight": "linear_0"}},
                {"w.0": arrays["b"], "w.1": arrays["b"],
                 "UnpackBigParamInfor@@": {"w": {"OriginShape": [4], "slices": ["w.0", "w.1"]}}})  # fmt: skip
    honest = [pickle.dumps(content, protocol) for content in contents for protocol in (2, 3, 4)]
    return reading(
        folder, "a.pdparams", honest, lambda data, chance: changes.repickled(data, chance, PICKLE), read_weights
    )


def saved(content: Any, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def archive_changed(data: bytes, chance: Random) -> bytes:
    if not data.startswith(b"PK") or chance.random() < 0.1:
        return flipped(data, chance, PICKLE)

    def change(name: str, content: bytes) -> bytes:
        return changes.repickled(content, chance, PICKLE) if name.endswith(".pkl") else flipped(content, chance)

    return changes.rezipped(data, chance, change)


def pth(folder: Path) -> Case:
    honest = [saved(state()), saved({"state_dict": state(), "epoch": 1}), saved(state(), zipped=False)]
    return reading(folder, "a.pth", honest, archive_changed, read_weights)


def old_pth(folder: Path) -> Case:
    """Files of torch before 1.6: pickles one after another, then the values."""

    def change(data: bytes, chance: Random) -> bytes:
        cut = chance.randrange(len(data))
        return (
            data[:cut] + changes.repickled(data[cut:], chance, PICKLE)
            if chance.random() < 0.3
            else flipped(data, chance, PICKLE)
        )

    return reading(folder, "a.pth", [saved(state(), zipped=False)], change, read_weights)


def checkpoints(folder: Path) -> Case:
    content = {"state_dict": state(), "pytorch-lightning_version": "2.6.0", "epoch": 1, "callbacks": {"a": {"b": [1]}}}
    write_checkpoint(content, folder / "honest.ckpt")
    data = (folder / "honest.ckpt").read_bytes()
    (folder / "honest.ckpt").unlink()
    return reading(folder, "a.ckpt", [data], archive_changed, read_checkpoint)


def safetensors(folder: Path) -> Case:
    from safetensors.torch import save

    data = save(state(), {"origin": "published", "format": "pt"})
    length = struct.unpack("<Q", data[:8])[0]
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    kinds = ("F32", "F64", "BF16", "F8_E4M3", "F4", "U8", "BOOL", "I64", "C64", "CODE", "dtype", "shape",
        "data_offsets",
             "__metadata__", *NAMES)  # fmt: skip
    more = (*changes.VALUES, *kinds, [0, 4], [4, 0], [0, 1 << 40], [-1, 3], [1 << 62, 4], [0], [2**32, 2**32])

    def change(_: bytes, chance: Random) -> bytes:
        text = json.dumps(regrown(header, chance, more, kinds)).encode()
        if chance.random() < 0.2:
            text = flipped(text, chance, encoded(*kinds, "[" * 200, '{"a":', "1e999", "\\ud800"))
        size = len(text) if chance.random() < 0.95 else chance.choice(changes.EDGES)
        return struct.pack("<Q", size % 2**64) + text + (values if chance.random() < 0.9 else flipped(values, chance))

    def read(file: Path) -> object:
        tensors, metadata = read_safetensors(file)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= file.stat().st_size
        return {name: tensor.clone() for name, tensor in tensors.items()}, metadata

    return reading(folder, "a.safetensors", [data], change, read)


def onnx_files(folder: Path) -> Case:
    import onnx
    from onnx import TensorProto, helper

    from lit_distill.inference import onnx_files as runtime

    runtime.ONNX_BYTES = 128 << 20  # type: ignore[attr-defined]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], np.ones(12, np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["clips", "w"], ["x"]), helper.make_node("Relu", ["x"], ["logits"])], "g",
        [helper.make_tensor_value_info("clips", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    outside = onnx.StringStringEntryProto(key="location", value="/etc/passwd").SerializeToString()
    # what a node, a model and a graph may have besides: a graph, a function, a sparse tensor
    body = onnx.AttributeProto(name="body", type=onnx.AttributeProto.GRAPH, g=graph).SerializeToString()
    sparse = helper.make_sparse_tensor(weight, helper.make_tensor("at", TensorProto.INT64, [1], [0]), [1 << 30])
    function = helper.make_function("x", "f", ["a"], ["b"], [helper.make_node("f", ["a"], ["b"], domain="x")],
                                    [helper.make_opsetid("x", 1)]).SerializeToString()  # fmt: skip
    named = encoded(*NAMES, "MatMul", "Relu", "Constant", "Expand", "ConstantOfShape", "Loop", "If", "clips", "logits",
                    "com.microsoft", "ai.onnx.ml", "location", "value")  # fmt: skip
    tokens = (
        body, function, sparse.SerializeToString(), graph.SerializeToString(), *named, outside,
        struct.pack("<q", 1 << 40), b"\x0a" + bytes([len(outside)]) + outside,
    )  # fmt: skip

    def read(file: Path) -> object:
        network = runtime.OnnxNetwork(file, threads=1, seconds=1)
        check_nodes(onnx.ModelProto.FromString(file.read_bytes()))
        shape = [size if isinstance(size, int) and 0 <= size < 64 else 2 for size in network.input_shape]
        return network(torch.zeros([2, *shape[1:]])) if len(shape) > 1 else network.input_shape

    def check_nodes(parsed: Any) -> None:
        """What protobuf's own reader finds in a file that was not refused."""
        assert not parsed.functions
        assert not parsed.training_info
        assert not parsed.graph.sparse_initializer
        for part in (attribute for node in parsed.graph.node for attribute in node.attribute):
            assert not part.HasField("g"), "a node with a graph"
            assert not part.graphs
            assert not part.HasField("sparse_tensor")
            assert not part.sparse_tensors

    honest = [model.SerializeToString()]
    return reading(folder, "a.onnx", honest, lambda data, chance: changes.refielded(data, chance, tokens), read)


# videos and images


def videos(folder: Path) -> list[bytes]:
    """Small honest files: mp4, mov and fragmented, Matroska, AVI, with sound."""
    frames = np.arange(4 * 16 * 16 * 3, dtype=np.uint8).reshape(4, 16, 16, 3)
    found = []
    for name, options in (("a.mp4", {}), ("b.mp4", {"movflags": "frag_keyframe+empty_moov"}), ("c.mov", {}),
        ("d.mkv", {}),
                          ("e.avi", {}), ("f.webm", {})):  # fmt: skip
        path = folder / name
        with av.open(str(path), "w", options=options) as container:
            codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
            stream: Any = container.add_stream(codec, rate=25, width=16, height=16, pix_fmt="yuv420p")
            heard: Any = (
                None if name == "f.webm" else container.add_stream("pcm_s16le" if name != "a.mp4" else "aac", rate=8000)
            )
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if heard is not None and not name.startswith("b"):
                tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
                tone.sample_rate = 8000
                container.mux(heard.encode(tone))
                container.mux(heard.encode())
            container.mux(stream.encode())
        found.append(path.read_bytes())
        path.unlink()
    return found


def video_changed(data: bytes, chance: Random) -> bytes:
    if data[4:8] == b"ftyp" and chance.random() < 0.8:
        return changes.reboxed(data, chance)
    head = min(len(data), 1500)  # of Matroska and AVI the elements before the pictures
    tokens = encoded(*NAMES[-12:], "vide", "V_MPEG4", "ftypisom", "#EXTM3U\n")
    more = (
        *tokens,
        b"\x1aE\xdf\xa3",
        b"\x19\x41\xa4\x69",
        b"\x1f\x43\xb6\x75",
        b"\xff" * 8,
        b"\x01" + b"\xff" * 7,
        b"LIST",
    )
    return flipped(data[:head], chance, more) + data[head:]


def boxes(folder: Path) -> Case:
    """What videos declare, without FFmpeg."""
    corpus = videos(folder)

    def case(chance: Random) -> object:
        data = video_changed(chance.choice(corpus), chance)
        return check_container(io.BytesIO(data), len(data), data[:8])

    return case


def decoded_videos(folder: Path) -> Case:
    def read(file: Path) -> object:
        layout = scan(file, limits=LIMITS)
        frames = read_frames(file, [0], limits=LIMITS)
        assert len(frames) == 1
        return layout

    return reading(folder, "a.mp4", videos(folder), video_changed, read)


def images(folder: Path) -> Case:
    honest = []
    picture = Image.effect_noise((24, 16), 60).convert("RGB")
    for name, options in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("BMP", {}),
        ("PPM", {}),
                          ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})):  # fmt: skip
        file = io.BytesIO()
        picture.save(file, name, **options)
        honest.append(file.getvalue())
    tokens = (*encoded("%!PS-Adobe-3.0 EPSF-3.0\n", "P6\n99999 99999\n255\n", "P7", "P4", "P0CMYK", *NAMES[:4]),
        b"\xff\xda",
              b"\xff\xd8", b"\xff\xe1", b"\xff\xc2", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF",
              b"\x0a\x05\x01\x08")  # fmt: skip

    def change(data: bytes, chance: Random) -> bytes:
        if data.startswith(b"\x89PNG") and chance.random() < 0.8:
            return changes.rechunked(data, chance)
        head = chance.choice((40, 200, len(data)))
        return flipped(data[:head], chance, tokens) + data[head:]

    return reading(folder, "a.png", honest, change, read_image)


# what runs and caches keep


def metrics(folder: Path) -> Case:
    text = "step,epoch,train/loss,val/top1\n10,0,1.5,\n20,0,,0.25\n30,1,1.25,\n"
    tokens = (
        *NAMES,
        ",",
        "\n",
        '"',
        '""',
        "nan",
        "inf",
        "1e999",
        "step",
        "\r",
        "\0",
        "," * 50,
        "1_0",
        "٣",
        "0x1",
        '"\n',
    )
    return reading(
        folder, "metrics.csv", [text.encode()],
        lambda data, chance: rewritten(data.decode(), chance, tokens).encode("utf-8", "surrogatepass"),
        lambda file: read_history(file, "a"),
    )  # fmt: skip


def index(folder: Path) -> Case:
    """An index of videos, of which no line may be an error: what it does not know is read again."""
    write_video(folder / "a.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    honest = VideoIndex(folder)
    path = str(folder / "a.mp4")
    honest.layout(path)
    content, size = honest.file.read_bytes(), os.stat(path).st_size
    line = json.loads(content.splitlines()[-1])

    def case(chance: Random) -> object:
        changed = json.dumps(regrown(line, chance)).encode()
        if chance.random() < 0.3:
            changed = flipped(changed, chance, encoded("[" * 300, "{", "NaN", "\n", "9" * 5000, "\\ud800"))
        honest.file.write_bytes(content + changed + b"\n" + (content if chance.random() < 0.1 else b""))
        found = VideoIndex(folder)
        found.load()
        entry = found.find(path)
        if entry is not None:
            assert isinstance(entry.layout, VideoLayout)
            read_frames(path, [0], layout=entry.layout)
        return size

    return case


def shard_index(folder: Path) -> Case:
    """What the cache keeps of shards: the same samples, or the shard is read again."""
    (folder / "a.tar").write_bytes(tar_bytes(tarfile.GNU_FORMAT))
    listed = ListFile(file="a.tar", key="data.train_list", root=folder, num_classes=2, class_names=("a", "b"))
    source = Shards(archives=Archives(folder))
    wanted = source.samples(listed)
    (kept,) = cache_folder("shards").glob("*.json")
    record, size = json.loads(kept.read_bytes()), (folder / "a.tar").stat().st_size

    def case(chance: Random) -> object:
        text = json.dumps(regrown(record, chance)).encode("utf-8", "surrogatepass")
        kept.write_bytes(flipped(text, chance, encoded("[" * 300, "9" * 5000)) if chance.random() < 0.2 else text)
        kept.chmod(0o600)
        found = source.samples(listed)
        assert all(s.member is not None and 0 <= s.member.offset <= size - s.member.size for s in found), found
        assert all(0 <= s.label < 2 for s in found), found
        return found == wanted

    return case


def quarantine(folder: Path) -> Case:
    """The list of bad videos of a checkpoint."""
    entry = {"path": "a.mp4", "reason": "it is empty", "split": "train", "epoch": 0}

    def case(chance: Random) -> object:
        listed = QuarantineList(max_bad=2, root=folder)
        listed.merge([from_json(regrown({"quarantine": [entry, {**entry, "path": "b.mp4"}]}, chance))])
        listed.check()
        return listed.to_json(), listed.known_before(1)

    return case


def teacher_cache(folder: Path) -> Case:
    file = folder / "honest.shard"
    write_shard(file, [bytes([n]) * 16 for n in range(3)], np.arange(24, dtype=np.uint8).reshape(3, 8))

    def read(path: Path) -> object:
        path.chmod(0o600)
        shard = Shard(path, 8)
        return [shard.row(number).tolist() for number in range(len(shard.keys))]

    def change(data: bytes, chance: Random) -> bytes:
        if chance.random() < 0.5:
            return flipped(data, chance)
        head = list(struct.unpack_from("<8sQQI4x", data))
        head[chance.choice((1, 2, 3))] = chance.choice(changes.EDGES) % (1 << 32)
        return struct.pack("<8sQQI4x", *head) + flipped(data[28:], chance) if chance.random() < 0.5 else data[:28]

    return reading(folder, "a.shard", [file.read_bytes()], change, read)


DAMAGED: Final = (ValueError, OSError, DamagedShardError)
TARGETS: Final = (
    Target("configs, parsed, resolved and checked", configs, 80_000, 300),
    Target("YAML texts, parsed and resolved", yaml_texts, 156_000, 400, (ValueError, yaml.YAMLError), one_line=False),
    Target("run folders, opened and built", runs, 12_000, 40),
    Target("cards and results", cards, 20_000, 50),
    Target("PaddleVideo configs, converted", paddle_configs, 4_000, 40),
    Target("names as files, places and addresses", names, 150_000, 400),
    Target("lists of samples and of classes", lists, 120_000, 300, one_line=False),
    Target("names of shards", shard_lists, 110_000, 300, one_line=False),
    Target("tar shards", tars, 60_000, 200),
    Target(".pdparams", pdparams, 60_000, 200),
    Target(".pth, zipped", pth, 15_000, 50),
    Target(".pth of old torch", old_pth, 20_000, 50),
    Target("checkpoints", checkpoints, 12_000, 40),
    Target(".safetensors", safetensors, 40_000, 100),
    Target("what videos declare", boxes, 40_000, 100),
    Target("videos, decoded", decoded_videos, 6_000, 20, (VideoError,), seconds=6.0),
    Target("images", images, 25_000, 80, resident=600 << 20, seconds=3.0),
    Target("ONNX files", onnx_files, 5_000, 20),
    Target("metrics.csv", metrics, 35_000, 100),
    Target("indexes of videos", index, 5_000, 20),
    Target("indexes of shards", shard_index, 10_000, 30),
    Target("quarantine lists", quarantine, 20_000, 50, (ValueError, QuarantineError)),
    Target("shards of teacher caches", teacher_cache, 25_000, 50, DAMAGED),
)
