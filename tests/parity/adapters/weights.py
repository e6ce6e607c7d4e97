"""Adapters from golden files of weights, and lists of their names, to the readers of weights."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_distill.models import PPTSMResNet, PPTSMv2, load_weights
from lit_distill.models.paddle import NAME_TABLE, read_pdparams
from lit_distill.models.paddle_keys import RESNET_DEPTHS, is_fused_branch, pptsm_resnet_to_native
from parity.harness import Case, CaseAdapter
from parity.rules import Array, build_network, rule_weight
from published_shapes import published_shapes

Shapes = dict[str, tuple[int, ...]]


def check_file(case: Case) -> None:
    """As many tensors as were saved, under their names, with their types; and not the table of internal names."""
    tensors = read_pdparams(case.path)
    assert len(tensors) == case.meta["types"].get("ndarray", len(tensors)), f"{case}: number of tensors"
    assert NAME_TABLE not in tensors
    key, kind, dtype, *_ = case.meta.get("first_item") or (None, None, None)
    if kind == "ndarray":
        assert next(iter(tensors)) == key
        assert str(tensors[key].dtype) == f"torch.{'bfloat16' if dtype == 'uint16' else dtype}", (
            f"{case}: type of {key}"
        )
    for key in case.meta.get(NAME_TABLE, ()):
        assert key in tensors, f"{case}: {key}"


def check_model(case: Case) -> None:
    """Every file gives the rule's weights bit by bit, fills the network, and with that the published logits."""
    arrays, config = _arrays(case), dict(case.meta["config"])
    if "ResNet" in str(case.meta.get("class_name")):
        config.setdefault("cls", "ResNetTweaksTSM")
    for file in case.meta["files"]:
        tensors = read_pdparams(case.folder / file)
        for (key, tensor), total in zip(tensors.items(), arrays["sum_abs"], strict=True):
            rule = torch.from_numpy(rule_weight(key, tensor.shape).astype(np.float32)).to(tensor.dtype)
            assert torch.equal(tensor, rule), f"{case}: {key} of {file}"
            np.testing.assert_allclose(float(tensor.abs().double().sum()), total, rtol=1e-5, err_msg=f"{case}: {key}")
        network = build_network(config).float().eval()
        report = load_weights(network, case.folder / file)
        assert report.complete, f"{case}: {report}"
        assert len(tensors) == report.matched + len(report.ignored)
        with torch.inference_mode():
            logits = network(_video(case, arrays)).numpy()
        scale = float(np.abs(arrays["logits"]).max())
        np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=1e-5 * scale, err_msg=f"{case}: {file}")


def check_keys(case: Case) -> None:
    """The listed state dict loads, tensor by tensor, into the network that it belongs to."""
    rows = [line.split("\t") for line in case.path.read_text().splitlines() if line.strip()]
    if not rows[0][1].startswith("["):
        _check_renaming(case, {old: new for old, new, *_ in rows})
        return
    shapes: Shapes = {key: tuple(json.loads(shape)) for key, shape, *_ in rows}
    marks = {key: float(mark + 1) for mark, key in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "listed.pdparams"
        with file.open("wb") as stream:
            state = {key: np.full(shape, marks[key], np.float32) for key, shape in shapes.items()}
            pickle.dump({**state, NAME_TABLE: {}}, stream, protocol=4)
        for name, network_shapes in _networks(shapes).items():
            _check_network(case, file, name, network_shapes, marks)


def _check_network(case: Case, file: Path, name: str, shapes: Shapes, marks: Mapping[str, float]) -> None:
    network = _build(shapes)
    where = f"{file}#{name}" if name else file
    report = load_weights(network, where)
    classifier = {key for key in shapes if re.fullmatch(r"(out|fc)\.(weight|bias)", key)}
    if isinstance(network, PPTSMResNet) and classifier:  # of images: the network is a backbone to start from
        assert report.missing.keys() == {"fc.weight", "fc.bias"}, f"{case}: {report}"
        assert report.unexpected.keys() == classifier, f"{case}: {report}"
        assert len(shapes) == report.matched + len(classifier)
    else:
        assert report.complete, f"{case}: {report}"
        assert len(shapes) == report.matched + len(report.ignored)
        assert published_shapes(network.state_dict(), network.published_key) == shapes
    start = f"{name}.0." if name else ""
    state = network.state_dict()
    for key in shapes.keys() - classifier if isinstance(network, PPTSMResNet) else shapes.keys():
        if not is_fused_branch(key):
            native = network.native_key(key)
            stored = f"{name}.1.{key.removeprefix('head.')}" if name and key.startswith("head.") else start + key
            assert native is not None
            assert bool((state[native] == marks[stored]).all()), f"{case}: {key} did not reach {native}"
    if isinstance(network, PPTSMv2) and network.num_classes == 1000:  # an image network starts a video network
        report = load_weights(PPTSMv2(400, 8), where)
        lacking = {"fc.weight", "fc.bias", "temporal_attention.fc.weight", "temporal_attention.fc.bias"}
        assert report.missing.keys() == lacking, f"{case}: {report}"


def _check_renaming(case: Case, renamed: Mapping[str, str]) -> None:
    """Both names of a tensor are one of ours; a dropped one is none."""
    last = max(int(match[1]) for key in renamed if (match := re.match(r"blocks\.(\d+)\.", key)))
    bottleneck = any(re.match(r"blocks\.0\.conv2\.", key) for key in renamed)
    depth = next(d for d, blocks in RESNET_DEPTHS.items() if sum(blocks) == last + 1 and (d >= 50) == bottleneck)
    for new, old in renamed.items():
        native = pptsm_resnet_to_native(new, depth=depth)
        expected = None if old == "(dropped)" else pptsm_resnet_to_native(old, depth=depth)
        assert native == expected, f"{case}: {new} and {old}"
        assert (native is None) == (old == "(dropped)"), f"{case}: {new}"


def _networks(shapes: Shapes) -> dict[str, Shapes]:
    """The state dicts of a list under their own names; a RecognizerDistillation list has several."""
    if not all(re.match(r"\w+\.[01]\.", key) for key in shapes):
        return {"": shapes}
    networks: dict[str, Shapes] = {}
    for key, shape in shapes.items():
        name, part, rest = key.split(".", 2)
        networks.setdefault(name, {})[rest if part == "0" else f"head.{rest}"] = shape
    return networks


def _build(shapes: Shapes) -> PPTSMv2 | PPTSMResNet:
    """Our network with as many blocks, channels, classes and frames as the list has."""
    if "last_conv.weight" in shapes:
        blocks = [{key.split(".")[2] for key in shapes if key.startswith(f"stages.{stage}.")} for stage in range(4)]
        expand, width = shapes["last_conv.weight"][:2]
        attention = shapes.get("global_attention.fc.bias")
        return PPTSMv2(
            shapes["fc.bias"][0],
            attention[0] if attention else 8,
            temporal_attention=attention is not None,
            scale=width / 1024,
            depths=[len(stage) for stage in blocks],
            class_expand=expand,
        )
    count = len({key.split(".conv")[0] for key in shapes if re.match(r"(bb_|res|blocks\.)[^ ]*\.conv0\.", key)})
    bottleneck = any(".conv2." in key for key in shapes)
    depth = next(d for d, blocks in RESNET_DEPTHS.items() if sum(blocks) == count and (d >= 50) == bottleneck)
    stem = next(shape for key, shape in shapes.items() if re.fullmatch(r"(stem\.2|conv1_3)\._?conv\.weight", key))
    return PPTSMResNet(depth, shapes.get("head.fc.bias", (400,))[0], 8, width=stem[0] / 64)


def _arrays(case: Case) -> dict[str, Array]:
    with np.load(case.folder / case.meta["logits_file"]) as archive:
        return {name: archive[name] for name in archive.files}


def _video(case: Case, arrays: Mapping[str, Array]) -> Tensor:
    return torch.from_numpy(arrays["input"]).reshape(*case.meta["input_shape"])


ADAPTERS: dict[str, CaseAdapter] = {
    "pdparams_file": check_file,
    "pdparams_model": check_model,
    "state_dict_keys": check_keys,
}
