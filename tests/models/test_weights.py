"""Loading weights: every format and naming, and nothing that does not fit goes by in silence."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_distill.models import LoadReport, PPTSMResNet, PPTSMv2, WeightsError, load_weights, read_state
from lit_distill.models.paddle_keys import is_fused_branch
from published_shapes import published_shapes

Arrays = dict[str, np.ndarray[Any, Any]]
CLASSES, FRAMES = 6, 8


def student(classes: int = CLASSES, frames: int = FRAMES, **options: Any) -> PPTSMv2:
    return PPTSMv2(classes, frames, **{"scale": 0.125, "depths": (1, 1, 2, 2), "class_expand": 16, **options})


def teacher(depth: int = 18, classes: int = CLASSES, width: float = 0.125) -> PPTSMResNet:
    return PPTSMResNet(depth, classes, FRAMES, width=width)


def published(network: PPTSMv2 | PPTSMResNet) -> Arrays:
    """The network's weights as Paddle saves them; fused branches hold rubbish, as they do there."""
    state, arrays = network.state_dict(), {}
    for key, shape in published_shapes(state, network.published_key).items():
        native = network.native_key(key)
        assert native is not None
        value = torch.full(shape, 7.0) if is_fused_branch(native) else state[native]
        arrays[key] = np.ascontiguousarray(value.T.numpy() if value.ndim == 2 and "fc" in key else value.numpy())
    return arrays


def of_images(network: PPTSMv2 | PPTSMResNet, naming: str = "old") -> Arrays:
    """As PaddleClas names the same layers: no attention, and 1000 classes."""
    arrays = {key: value for key, value in published(network).items() if "attention" not in key and "fc." not in key}
    if isinstance(network, PPTSMv2):
        return {**arrays, "fc.weight": np.zeros((16, 1000), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    if naming == "old":
        return {**arrays, "out.weight": np.zeros((8, 1000), np.float32), "out.bias": np.zeros(1000, np.float32)}
    blocks: dict[str, int] = {}
    renamed = {}
    for key, value in arrays.items():
        first, _, rest = key.partition(".")
        if match := re.fullmatch(r"conv1_(\d)", first):
            first = f"stem.{int(match[1]) - 1}"
        else:
            first = f"blocks.{blocks.setdefault(first, len(blocks))}"
        renamed[f"{first}.{rest}".replace("._conv.", ".conv.").replace("._batch_norm.", ".bn.")] = value
    return {**renamed, "fc.weight": np.zeros((8, 1000), np.float32), "fc.bias": np.zeros(1000, np.float32)}


def pdparams(folder: Path, arrays: Mapping[str, Any], name: str = "net.pdparams", protocol: int = 4) -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(dict(arrays), protocol=protocol))
    return path


def assert_same(network: nn.Module, other: nn.Module, *, without: tuple[str, ...] = ()) -> None:
    expected = other.state_dict()
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked") and not name.startswith(without):
            assert torch.equal(value, expected[name]), name


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Published files


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("make", [student, teacher, lambda: teacher(50), lambda: student(temporal_attention=False)])
def test_a_published_network_fills_ours(make: Any, protocol: int, tmp_path: Path) -> None:
    source, target = make(), make()
    path = pdparams(tmp_path, published(source), protocol=protocol)
    report = load_weights(target, path)
    assert report.complete
    assert report.matched == report.total
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(is_fused_branch(key) for key in report.ignored)
    assert_same(target, source)


def test_an_image_network_starts_a_student(tmp_path: Path) -> None:
    source, target = student(), student()
    fresh = snapshot(target)
    report = load_weights(target, pdparams(tmp_path, of_images(source)))
    attention = {"temporal_attention.fc.weight", "temporal_attention.fc.bias"}
    assert report.missing.keys() == {"fc.weight", "fc.bias", *attention}
    assert "ImageNet" in report.missing["fc.weight"]
    assert (report.matched, report.unexpected, report.reset) == (report.total - 4, {}, {})
    assert not report.complete
    assert_same(target, source, without=("fc.", "temporal_attention."))
    for name in report.missing:
        assert torch.equal(target.state_dict()[name], fresh[name])


def test_a_thousand_classes_of_images_load_into_a_thousand(tmp_path: Path) -> None:
    target = student(1000, temporal_attention=False)
    assert load_weights(target, pdparams(tmp_path, of_images(student()))).complete
    assert not target.fc.weight.any()


@pytest.mark.parametrize("naming", ["old", "new"])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_an_image_network_starts_a_teacher(depth: int, naming: str, tmp_path: Path) -> None:
    source, target = teacher(depth), teacher(depth)
    report = load_weights(target, pdparams(tmp_path, of_images(source, naming)))
    assert report.missing == {"fc.weight": "not in the file", "fc.bias": "not in the file"}
    assert report.unexpected.keys() == ({"out.weight", "out.bias"} if naming == "old" else {"fc.weight", "fc.bias"})
    assert report.matched == report.total - 2
    assert_same(target, source, without=("fc.",))


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "module.backbone.", "0.", "model.0."])
def test_prefixes_of_a_whole_file(prefix: str, tmp_path: Path) -> None:
    source, target = student(), student()
    report = load_weights(target, pdparams(tmp_path, {prefix + key: value for key, value in published(source).items()}))
    assert report.complete
    assert_same(target, source)


def test_recognizer_2d_keeps_the_head_apart(tmp_path: Path) -> None:
    source, target = teacher(), teacher()
    arrays = {k if k.startswith("head.") else f"backbone.{k}": v for k, v in published(source).items()}
    assert load_weights(target, pdparams(tmp_path, arrays)).complete
    assert_same(target, source)


def distillation(first: PPTSMv2 | PPTSMResNet, second: PPTSMv2 | PPTSMResNet) -> Arrays:
    arrays = {}
    for name, network in (("Teacher", first), ("Student", second)):
        for key, value in published(network).items():
            arrays[f"{name}.1.{key[5:]}" if key.startswith("head.") else f"{name}.0.{key}"] = value
    return arrays


@pytest.mark.parametrize("depth", [18, 50])
def test_a_distillation_checkpoint_gives_the_network_that_fits(depth: int, tmp_path: Path) -> None:
    networks: dict[str, PPTSMv2 | PPTSMResNet] = {"Teacher": teacher(depth), "Student": student()}
    path = pdparams(tmp_path, distillation(networks["Teacher"], networks["Student"]))
    for name, make in (("Teacher", lambda: teacher(depth)), ("Student", student)):
        target = make()
        report = load_weights(target, path)
        assert (report.name, report.complete) == (name, True)
        assert_same(target, networks[name])


def test_two_networks_that_fit_must_be_named(tmp_path: Path) -> None:
    first, second = student(), student()
    path = pdparams(tmp_path, distillation(first, second))
    with pytest.raises(WeightsError, match=r"several networks that fit, Student, Teacher: name one.*#Student"):
        load_weights(student(), path)
    for name, source in (("Teacher", first), ("Student", second)):
        target = student()
        assert load_weights(target, f"{path}#{name}").name == name
        assert_same(target, source)
    with pytest.raises(WeightsError, match=r"no fitting network of the name Assistant; it holds Student, Teacher"):
        load_weights(student(), f"{path}#Assistant")


def test_a_nested_save_is_searched(tmp_path: Path) -> None:
    source, target = student(), student()
    report = load_weights(target, pdparams(tmp_path, {"model": published(source), "epoch": 3}))
    assert (report.name, report.complete) == ("model", True)
    assert_same(target, source)


def test_attention_that_the_network_has_not_is_told(tmp_path: Path) -> None:
    report = load_weights(student(temporal_attention=False), pdparams(tmp_path, published(student())))
    assert report.unexpected.keys() == {"global_attention.fc.weight", "global_attention.fc.bias"}
    assert not report.complete


def test_attention_of_other_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\(8, 8\) in the file, \(16, 16\) in the network.*num_frames"):
        load_weights(student(frames=16), pdparams(tmp_path, published(student())))


def test_a_head_of_other_classes_must_be_asked_for(tmp_path: Path) -> None:
    path, target = pdparams(tmp_path, published(student(400))), student(101)
    fresh = snapshot(target)
    with pytest.raises(WeightsError, match=r"fc\.weight is \(400, 16\) in the file, \(101, 16\).*reset_head=True"):
        load_weights(target, path)
    assert all(torch.equal(value, fresh[name]) for name, value in target.state_dict().items())
    report = load_weights(target, path, reset_head=True)
    assert report.reset.keys() == {"fc.weight", "fc.bias"}
    assert not report.complete
    assert torch.equal(target.fc.weight, fresh["fc.weight"])


def test_reset_head_leaves_a_head_that_fits(tmp_path: Path) -> None:
    source, target = student(), student()
    assert load_weights(target, pdparams(tmp_path, published(source)), reset_head=True).complete
    assert_same(target, source)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: student(scale=0.25), r"of \d+ tensors with another shape or type, stem\.1\.pw_conv\.conv\.weight"),
        (lambda: teacher(), r"only \d+ of its \d+ tensors match, so it is another network's file"),
        (lambda: nn.ModuleDict({"dense": nn.Linear(3, 2)}), "nothing in .* matches ModuleDict: it holds stem"),
    ],
)
def test_another_network_is_an_error(target: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        load_weights(target(), pdparams(tmp_path, published(student())))


def test_a_shallower_file_is_told_tensor_by_tensor(tmp_path: Path) -> None:
    report = load_weights(teacher(34), pdparams(tmp_path, published(teacher(18))))
    assert len(report.missing) == report.total - report.matched
    assert all(name.startswith("stages.") for name in report.missing)
    assert not report.complete


def test_branches_do_not_go_into_a_fused_network(tmp_path: Path) -> None:
    path = pdparams(tmp_path, published(student()))
    with pytest.raises(WeightsError, match=r"load it before reparameterize\(\)"):
        load_weights(student().reparameterize(), path)


def test_paddles_own_layers_fill_torchvisions(tmp_path: Path) -> None:
    source, target = torchvision.models.resnet18(num_classes=5), torchvision.models.resnet18(num_classes=5)
    arrays = {}
    for key, value in source.state_dict().items():
        name = key.replace("running_mean", "_mean").replace("running_var", "_variance")
        if "num_batches" not in key:
            arrays[name] = (value.T if key == "fc.weight" else value).numpy()
    assert load_weights(target, pdparams(tmp_path, arrays)).complete
    assert_same(target, source)


# The networks' own formats


def store(path: Path, state: Mapping[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".bin"])
def test_own_formats_any_network(suffix: str, tmp_path: Path) -> None:
    source, target = torchvision.models.resnet18(num_classes=5), torchvision.models.resnet18(num_classes=5)
    report = load_weights(target, store(tmp_path / f"net{suffix}", source.state_dict()))
    assert report.complete
    assert report.matched == report.total == 102
    assert_same(target, source)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_formats_are_strict(suffix: str, tmp_path: Path) -> None:
    state = dict(student().state_dict())
    short = {name: value for name, value in state.items() if name != "last_conv.weight"}
    with pytest.raises(WeightsError, match=r"missing 1: last_conv\.weight; unexpected 0: none"):
        load_weights(student(), store(tmp_path / f"short{suffix}", short))
    long = {**state, "extra.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"missing 0: none; unexpected 1: extra\.weight"):
        load_weights(student(), store(tmp_path / f"long{suffix}", long))
    without = {name: value for name, value in state.items() if not name.startswith("temporal_attention.")}
    with pytest.raises(WeightsError, match=r"missing 2: temporal_attention\.fc\.weight"):
        load_weights(student(), store(tmp_path / f"without{suffix}", without))


def test_counters_may_be_absent(tmp_path: Path) -> None:
    state = {name: value for name, value in student().state_dict().items() if "num_batches" not in name}
    assert load_weights(student(), store(tmp_path / "net.pth", state)).complete


def test_a_torchvision_head_of_other_classes(tmp_path: Path) -> None:
    path = store(tmp_path / "net.pth", torchvision.models.mobilenet_v3_small(num_classes=5).state_dict())
    target = torchvision.models.mobilenet_v3_small(num_classes=7)
    with pytest.raises(WeightsError, match="reset_head=True"):
        load_weights(target, path)
    report = load_weights(target, path, reset_head=True)
    assert report.reset.keys() == {"classifier.3.weight", "classifier.3.bias"}


def lightning(path: Path, networks: Mapping[str, nn.Module]) -> Path:
    state = {f"models.{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save(
        {"epoch": 3, "state_dict": {**state, "losses.kd.weight": torch.ones(1)}, "optimizer_states": [optimizer]}, path
    )
    return path


def test_a_lightning_checkpoint_gives_the_network_that_fits(tmp_path: Path) -> None:
    networks = {"Student": student(), "Teacher": teacher()}
    path = lightning(tmp_path / "best.ckpt", networks)
    for name, target in (("Student", student()), ("Teacher", teacher())):
        report = load_weights(target, path)
        assert (report.name, report.complete) == (name, True)
        assert_same(target, networks[name])


def test_a_lightning_checkpoint_of_equals_must_be_named(tmp_path: Path) -> None:
    networks = {"Student": student(), "Teacher": student()}
    path = lightning(tmp_path / "best.ckpt", networks)
    with pytest.raises(WeightsError, match=r"Student, Teacher: name one of them, .*best\.ckpt#Student"):
        load_weights(student(), path)
    target = student()
    assert load_weights(target, f"{path}#Teacher").complete
    assert_same(target, networks["Teacher"])


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "_orig_mod.", "model.module."])
def test_prefixes_of_torch(prefix: str, tmp_path: Path) -> None:
    source, target = student(), student()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "net.ckpt")
    assert load_weights(target, tmp_path / "net.ckpt").complete
    assert_same(target, source)


def test_a_hash_in_a_files_own_name(tmp_path: Path) -> None:
    path = store(tmp_path / "net#2.pth", student().state_dict())
    assert load_weights(student(), path).complete
    named = lightning(tmp_path / "best#1.ckpt", {"Student": student()})
    assert load_weights(student(), f"{named}#Student").name == "Student"


# Types, state, speed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_converted_and_counted(dtype: torch.dtype, tmp_path: Path) -> None:
    source, target = student().to(dtype), student()
    report = load_weights(target, store(tmp_path / "net.pth", source.state_dict()))
    name = str(dtype).removeprefix("torch.")
    assert report.casts == {f"{name} -> float32": report.total}
    assert {value.dtype for value in target.parameters()} == {torch.float32}
    assert_same(target, source.float())


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = {"weight": torch.ones(2, 3, dtype=torch.int64), "bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match="weight is int64 in the file, float32 in the network"):
        load_weights(nn.Linear(3, 2), store(tmp_path / "net.pth", state))


def test_the_network_keeps_its_mode_and_its_gradients(tmp_path: Path) -> None:
    target = student().requires_grad_(False).eval()
    load_weights(target, store(tmp_path / "net.pth", student().state_dict()))
    assert not target.training
    assert not any(parameter.requires_grad for parameter in target.parameters())


@pytest.mark.parametrize(("protocol", "seconds"), [(2, 2.0), (4, 1.0)])  # protocol 2 stores bytes as text: 0.7 and 0.15
def test_a_resnet50_loads_within_a_second(protocol: int, seconds: float, tmp_path: Path) -> None:
    target = PPTSMResNet(50, 400, 8)
    path = pdparams(tmp_path, published(target), protocol=protocol)
    for _ in range(3):
        start = time.process_time()
        report = load_weights(target, path)
        spent = time.process_time() - start
        if spent < seconds:
            break
    assert report.matched == 277
    assert spent < seconds


# Files that are refused


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pdparams"])
def test_code_in_a_file_does_not_run(suffix: str, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    evil = {"weight": torch.zeros(2, 3).numpy(), "bias": _Evil(f"touch {ran}")}
    if suffix == ".pdparams":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path)
    with pytest.raises(WeightsError, match="refused") as caught:
        load_weights(nn.Linear(3, 2), path)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pdparams"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damaged_files_are_one_line(suffix: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    if suffix == ".pdparams":
        pdparams(tmp_path, published(student()))
    else:
        store(path, student().state_dict())
    data = {"empty": b"", "text": b"not weights at all\n", "cut": path.read_bytes()[:-1000]}[damage]
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=re.escape(str(path))) as caught:
        load_weights(student(), path)
    assert "\n" not in str(caught.value)


def test_no_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file at .*gone\.pth"):
        load_weights(student(), tmp_path / "gone.pth")
    (tmp_path / "net.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"weights are read from \.pdparams \.safetensors .*, not from \.h5"):
        read_state(tmp_path / "net.h5")


def test_the_report_is_a_short_table(tmp_path: Path) -> None:
    report = load_weights(student(), pdparams(tmp_path, of_images(student().half())))
    lines = str(report).splitlines()
    assert isinstance(report, LoadReport)
    assert lines[0] == f"{report.path}, sha256 {report.sha256[:12]}"
    assert lines[1].split() == ["matched", str(report.matched), "of", str(report.total)]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["missing", "2"],
        ["missing", "2"],
        ["ignored", str(len(report.ignored))],
        ["cast", str(report.matched)],
    ]
