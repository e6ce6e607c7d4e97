"""A network is no larger than its weights: what a config asks for beyond is refused before memory is taken."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._pytree import tree_leaves

from lit_distill.data import Limits
from lit_distill.inference.evaluation import ClassificationReport
from lit_distill.models import PPTSMv2, torchvision_model
from lit_distill.runs import artifacts
from lit_distill.runs.opened import load_run
from lit_distill.runs.run import Run
from lit_distill.untrusted import batches, networks
from lit_distill.untrusted.building import build
from lit_distill.untrusted.networks import FREE_BYTES, check_forward, held_to


def student_of(model: dict[str, Any], folder: Path) -> Path:
    """A card that asks for ``model``, beside honest weights of a linear layer."""
    folder.mkdir()
    state = nn.Linear(2, 3).state_dict()
    artifacts.write_student(folder, state, {"model": model, "data": {"num_classes": model.get("num_classes", 3)}})
    return folder / "student.safetensors"


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6},
        {"_target_": "torch.nn.Linear", "in_features": 10**9, "out_features": 10**9},
        {"_target_": "torch.nn.Embedding", "num_embeddings": 10**8, "embedding_dim": 10},
        {"_target_": "torch.nn.Conv3d", "in_channels": 4096, "out_channels": 4096, "kernel_size": 99},
        {"_target_": "lit_distill.models.PPTSMv2", "num_classes": 10**9, "num_frames": 4},
        {"_target_": "lit_distill.models.PPTSMv2", "num_classes": 3, "num_frames": 4, "scale": 1000.0},
        {"_target_": "lit_distill.models.torchvision_model", "name": "vit_b_16", "num_classes": 10**8},
    ],
    ids=lambda model: f"{model['_target_']} {max(v for v in model.values() if isinstance(v, int | float))}",
)
def test_a_run_that_asks_for_a_giant_is_refused_in_one_line(model: dict[str, Any], tmp_path: Path) -> None:
    run = load_run(student_of(model, tmp_path / "run"))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"Student: its config asks for a network of more than [\d,]+ bytes"):
        run.model()
    assert time.process_time() - started < 5  # a second where the machine is idle
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


LAYER = {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 1, "nhead": 1, "dim_feedforward": 1}
ENCODER: dict[str, Any] = {
    "_target_": "torch.nn.TransformerEncoder",
    "encoder_layer": LAYER,
    "num_layers": 2,
    "enable_nested_tensor": False,
}


def test_copies_count_as_what_they_hold() -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"asks for a network of more than [\d,]+ bytes"):
        build({**ENCODER, "encoder_layer": {**LAYER, "d_model": 1024}, "num_layers": 256})
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def test_small_tensors_count_more_than_they_hold() -> None:
    kept: list[torch.Tensor] = []
    with pytest.raises(ValueError, match="asks for a network of more"), held_to(0, "Student"):
        kept.extend(torch.empty(1) for _ in range(17_000))


def test_many_small_layers_are_refused_soon() -> None:
    """10,240 layers in 40 encoders took 17 seconds, and so did 100,000 blocks, before there were too many."""
    small = {**ENCODER, "encoder_layer": {**LAYER, "d_model": 2, "nhead": 1, "dim_feedforward": 1}, "num_layers": 256}
    started = time.process_time()
    with pytest.raises(ValueError, match="asks for a network of more"):
        build({"_target_": "torch.nn.Sequential", "_args_": [small] * 40})
    assert time.process_time() - started < 4, "0.6 seconds where the machine is idle"


def test_a_network_has_a_number_of_modules() -> None:
    with pytest.raises(ValueError, match="more than 20,000 modules"), held_to(0, "Student"):
        nn.Sequential(*[nn.Identity()] * 20_001)


@pytest.mark.parametrize("file", ["config.yaml", "student.json"])
@pytest.mark.parametrize("key", ["models", "losses", "callbacks", "unused"])
def test_a_run_has_a_number_of_targets(key: str, file: str, tmp_path: Path) -> None:
    """9,000 identities were built and run in four seconds."""
    weights = student_of({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, tmp_path / "run")
    many = {key: {f"a{number}": {"_target_": "torch.nn.Identity"} for number in range(2_001)}}
    card = json.loads((weights.parent / "student.json").read_text())
    (weights.parent / file).write_text(json.dumps({**card, "models": {"Student": card["model"]}, **many}))
    with pytest.raises(ValueError, match="names more than 2,000 targets"):
        load_run(weights if file == "student.json" else weights.parent)


def test_the_clock_is_not_asked_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is a call of the system, it took four times as long as the steps."""
    asked: list[float] = []

    def clock() -> float:
        asked.append(0.0)
        return 0.0

    monkeypatch.setattr(time, "thread_time", clock)
    check_forward(nn.Sequential(*[nn.ReLU() for _ in range(200)]), (4,), "Student")
    assert 1 < len(asked) < 10


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.nn.LSTM", "input_size": 1, "hidden_size": 1, "num_layers": 10**9},
        {"_target_": "torch.nn.GRU", "_args_": [1, 1, 10**9]},
        {"_target_": "torch.nn.RNNBase", "mode": "GRU", "input_size": 1, "hidden_size": 1, "num_layers": 10**5},
        {"_target_": "torch.nn.Transformer", "d_model": 8, "num_decoder_layers": 10**9},
        {"_target_": "torch.nn.Transformer", "_args_": [8, 8, 10**9]},
        {**ENCODER, "num_layers": 10**9},
        {"_target_": "lit_distill.models.timm_model", "name": "vit_tiny_patch16_224", "depth": 6 * 10**7},
        {"_target_": "lit_distill.models.timm_model", "name": "convnext_tiny", "depths": [3, 3, 10**7, 3]},
    ],
)
def test_layers_have_a_number(node: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected numbers from \d to \d+|its arguments go by name"):
        build(node)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.nn.TransformerEncoder", "encoder_layer": {"_target_": "torch.nn.Identity"}},
        {"_target_": "torch.nn.TransformerDecoder", "decoder_layer": ENCODER},
        {"_target_": "torch.nn.TransformerEncoder", "_args_": [LAYER]},
    ],
)
def test_what_is_copied_is_a_layer(node: dict[str, Any]) -> None:
    """Others hold no tensors, so that a billion copies of them would count for nothing."""
    with pytest.raises(ValueError, match=r"expected a torch\.nn\.Transformer|its arguments go by name"):
        build({**node, "num_layers": 2})
    assert build(ENCODER).num_layers == 2


@pytest.mark.parametrize("place", ["transform", "root", "x"])
def test_the_data_of_a_run_have_a_budget_too(place: str, tmp_path: Path) -> None:
    file = student_of({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, tmp_path / "run")
    giant = {"_target_": "torch.nn.Linear", "in_features": 10**5, "out_features": 10**5}
    card = json.loads((file.parent / "student.json").read_text())
    card["data"] = {"_target_": "lit_distill.data.ImageFolderDataModule", "num_classes": 3, place: giant}
    (file.parent / "student.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"data: its config asks for a network of more than"):
        load_run(file).data()


def test_links_to_weights_add_no_bytes(tmp_path: Path) -> None:
    file = student_of({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, tmp_path / "run")
    before = load_run(file).weights_bytes
    (file.parent / "checkpoints").mkdir()
    for number in range(10):
        (file.parent / "checkpoints" / f"{number}.ckpt").symlink_to(file)
    assert load_run(file).weights_bytes == before


@pytest.mark.parametrize("name", ["library.so", "video.mp4", "weights", "folder.pth", "pipe.pth"])
def test_only_files_that_weights_are_read_from_count(name: str, tmp_path: Path) -> None:
    model = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    run = load_run(student_of(model, tmp_path / "run"))
    alone, named = run.weights_bytes, tmp_path / name
    if name.startswith("folder"):
        named.mkdir()
    elif name.startswith("pipe"):
        os.mkfifo(named)
    else:
        named.write_bytes(b"a" * 100_000)
    run.config["models"]["Teacher"] = {**model, "pretrained": str(named)}
    run.config["start"] = {"Teacher": str(named)}  # type: ignore[index]
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "notes.txt").write_bytes(b"a" * 100_000)
    assert run.weights_bytes == alone


def test_layers_that_hold_nothing_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MODULES", 100)
    layers = [{"_target_": "torch.nn.ReLU"}] * 101
    run = load_run(student_of({"_target_": "torch.nn.Sequential", "_args_": layers}, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"Student: its config asks for a network of more than 100 modules"):
        run.model()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PPTSMv2(num_classes=400, num_frames=8),
        lambda: torchvision_model("swin_t", num_classes=10),
        lambda: nn.LSTM(64, 64, num_layers=3),
        lambda: nn.init.orthogonal_(torch.empty(512, 512)),
    ],
)
def test_an_honest_network_is_the_same_as_ever(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    with held_to(0, "Student"):
        held = make()
    if isinstance(plain, nn.Module):
        states = zip(plain.state_dict().values(), held.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in states)
    else:
        assert torch.equal(plain, held)


VIDEO = {
    "_target_": "lit_distill.data.VideoDataModule", "root": ".", "train_list": "a", "val_list": "b", "num_classes": 3,
    "num_frames": 4, "size": 32, "scale": 32,
}  # fmt: skip


def run_of(*layers: dict[str, Any], folder: Path, **data: Any) -> Run:
    """A run whose network has these layers before an honest end."""
    end = [{"_target_": "torch.nn.Flatten"}, {"_target_": "torch.nn.Linear", "in_features": 12_288, "out_features": 3}]
    folder.mkdir()
    state = {f"{len(layers) + 1}.{name}": value for name, value in nn.Linear(12_288, 3).state_dict().items()}
    model = {"_target_": "torch.nn.Sequential", "_args_": [*layers, *end]}
    artifacts.write_student(folder, state, {"model": model, "data": {**VIDEO, **data}})
    return load_run(folder / "student.safetensors")


def layer(name: str, *args: Any, **named: Any) -> dict[str, Any]:
    return {"_target_": f"torch.nn.{name}", "_args_": list(args), **named}


def test_a_forward_pass_of_steps_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty seconds of CPU time were not enough to look at an LSTM over the 12,288 numbers of a clip."""
    monkeypatch.setattr(networks, "FORWARD_SECONDS", 0.2)
    network = nn.LSTM(1, 1, num_layers=20, batch_first=True)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"a forward pass of one sample of \(12288, 1\) has too many steps"):
        check_forward(network, (12_288, 1), "Student")
    assert time.process_time() - started < 2


def test_an_honest_forward_pass_is_within_its_memory(tmp_path: Path) -> None:
    run = run_of(layer("Upsample", scale_factor=2), layer("AvgPool3d", [2, 2, 2]), folder=tmp_path / "run")
    assert run.model()(torch.zeros(1, 4, 3, 32, 32)).shape == (1, 3)


def test_the_weights_of_a_network_are_none_of_its_values() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2**14, 2**15))  # 2 GB, which nothing writes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.t()[0, 0]

    check_forward(Wide(), (3, 8, 8), "Student")


@pytest.mark.parametrize(
    "layers",
    [
        (layer("Upsample", scale_factor=4000), layer("AdaptiveAvgPool3d", [3, 32, 32])),
        (layer("Upsample", size=[4, 40_000, 40_000]),),
        (layer("AdaptiveAvgPool3d", [3, 100_000, 100_000]),),
        (layer("AdaptiveMaxPool3d", [3, 100_000, 100_000]),),
        (layer("Flatten", 1, 2), layer("Unfold", 99, padding=400)),
        (layer("ZeroPad3d", 5_000), layer("AdaptiveAvgPool3d", [3, 32, 32])),
        tuple(layer("ReflectionPad3d", [31, 31, 31, 31, 0, 0]) for _ in range(8)),
        (*(layer("Upsample", scale_factor=3) for _ in range(8)), layer("AdaptiveAvgPool3d", [3, 32, 32])),
        (layer("Flatten"), layer("Unflatten", 1, [12_288, 1]), layer("Upsample", scale_factor=10**6)),
        (layer("Flatten", 2), layer("Upsample", scale_factor=10**6)),
        tuple(layer("Upsample", scale_factor=[1, 4000, 4000]) for _ in range(1)),
    ],
    ids=lambda layers: " ".join(each["_target_"].rpartition(".")[2] for each in layers[:2]),
)
def test_a_forward_pass_that_takes_all_memory_is_refused_before_it_runs(
    layers: tuple[dict[str, Any], ...], tmp_path: Path
) -> None:
    run = run_of(*layers, folder=tmp_path / "run")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"holds more than [\d,]+ bytes|cannot be run|cannot be built") as caught:
        run.model()
    assert str(caught.value).isprintable()
    assert time.process_time() - started < 5  # a second where the machine is idle
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_a_network_that_does_not_take_its_samples_is_refused_at_once(tmp_path: Path) -> None:
    run = run_of(layer("Flatten"), layer("Linear", 5, 12_288, bias=False), folder=tmp_path / "run")
    with pytest.raises(ValueError, match=r"does not fit|cannot be run on a sample of"):
        run.model()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 100_000), ("scale", 10**9), ("num_frames", 10**8), ("batch_size", 10**9), ("eval_batch_size", 10**6),
        ("num_workers", 10**4), ("prefetch", 10**9), ("num_classes", 10**9), ("size", 1e308), ("size", float("nan")),
        ("num_workers", -(10**9)), ("shuffle_window", 10**12),
    ],
)  # fmt: skip
def test_the_data_of_a_run_asks_for_what_a_machine_has(name: str, value: Any, tmp_path: Path) -> None:
    run = run_of(layer("Identity"), folder=tmp_path / "run", **({name: value} if name != "num_classes" else {}))
    run.config["data"][name] = value
    with pytest.raises(ValueError, match=f"data.{name}: expected at most .* set data.{name}="):
        run.data()
    if name in ("batch_size", "num_workers"):
        given: dict[str, Any] = {name: 2}
        assert run.data(**given).batch_size, "the caller's own counts"  # type: ignore[attr-defined]


def test_a_batch_is_held_as_a_whole(tmp_path: Path) -> None:
    run = run_of(layer("Identity"), folder=tmp_path / "run", batch_size=1024, num_frames=1024, size=2048, scale=2048)
    with pytest.raises(ValueError, match=r"data: its batches of 1024 x 1024 x 2048 x 2048 pixels .* data.batch_size="):
        run.data()


def test_the_views_of_a_batch_count(tmp_path: Path) -> None:
    large = {"views": "dense", "num_frames": 16, "size": 224, "scale": 256, "batch_size": 512, "num_workers": 64}
    honest = run_of(layer("Identity"), folder=tmp_path / "honest", **large)
    assert honest.data().eval_batch_size == 1  # type: ignore[attr-defined]
    hostile = run_of(layer("Identity"), folder=tmp_path / "hostile", **large, eval_batch_size=512)
    with pytest.raises(ValueError, match=r"data: its batches of 15360 x 16 x 224 x 224 pixels .* data.batch_size="):
        hostile.data()


def test_limits_on_videos_are_lowered_and_never_raised(tmp_path: Path) -> None:
    assert Limits(**batches.LIMITS) == Limits()  # type: ignore[arg-type]
    raised = {"frames": 10**12, "pixels": 10**12, "seconds": 1e9}
    run = run_of(layer("Identity"), folder=tmp_path / "run", limits=raised, cache="memory", cache_gb=1e6)
    with pytest.warns(UserWarning, match="is lowered") as said:
        data = run.data()
    assert [str(warning.message).partition(" of")[0] for warning in said] == [
        "data.limits.frames=1e+12", "data.limits.pixels=1e+12", "data.limits.seconds=1e+09", "data.cache_gb=1e+06"
    ]  # fmt: skip
    assert "is lowered to 1e+06, the limit: set data.limits.frames=<number>" in str(said[0].message)
    assert data.limits == Limits()  # type: ignore[attr-defined]
    assert data.cache_gb == 4.0  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="is lowered"):
        assert run.preprocess().limits == Limits()
    run.config["data"]["cache_gb"] = 4.0
    assert run.data(limits={"frames": 10**7}).limits.frames == 10**7, "the caller's own"  # type: ignore[attr-defined]
    run.config["data"]["limits"] = {"frames": 10, "seconds": float("inf"), "pixels": None}
    with pytest.warns(UserWarning, match="data.limits.seconds=inf of an untrusted run is lowered to 60"):
        assert run.data().limits == Limits(frames=10)  # type: ignore[attr-defined]
    run.config["data"]["limits"] = {"frames": "10"}
    with pytest.raises(ValueError, match="data"):
        run.data()


def test_a_confusion_matrix_has_a_limit() -> None:
    with pytest.raises(ValueError, match=r"at most 10,000 classes .* got 100,000: classify by predict"):
        ClassificationReport(num_classes=100_000)


def test_what_is_allowed_grows_with_the_weights() -> None:
    elements = FREE_BYTES // 4 + 1000
    with pytest.raises(ValueError, match="its weights have 0"), held_to(0, "Student"):
        torch.empty(elements)
    with held_to(1000, "Student"):
        torch.empty(elements)


def test_a_frozen_teacher_is_held_to_its_own_file(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(10)}, tmp_path / "teacher.safetensors")
    model = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    run = load_run(student_of(model, tmp_path / "run"))
    alone = run.weights_bytes
    run.config["models"]["Teacher"] = {**model, "pretrained": str(tmp_path / "teacher.safetensors")}
    assert run.weights_bytes == alone + (tmp_path / "teacher.safetensors").stat().st_size


X, BIAS = torch.empty(2, 4, 6, 6), torch.empty(4)
ATEN: Any = torch.ops.aten
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    *((function, (value,)) for function in (ATEN.relu.default, ATEN.hardtanh.default, ATEN.gelu.default)
      for value in (X, X.half(), X.transpose(1, 2), X[:, :1].expand(2, 4, 6, 6), torch.empty(0, 4))),
    *((ATEN.add.Tensor, (X, other)) for other in (X, X.double(), BIAS.view(4, 1, 1), X.int(), 2, 2.0)),
    (ATEN.mul.Tensor, (BIAS.view(4, 1, 1), X)),
    (ATEN.native_batch_norm.default, (X, BIAS, BIAS, BIAS, BIAS, False, 0.1, 1e-5)),
    (ATEN.native_batch_norm.default, (X, None, None, BIAS, BIAS, False, 0.1, 1e-5)),
    (ATEN.native_batch_norm.default, (X, BIAS, BIAS, None, None, True, 0.1, 1e-5)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_shapes_that_are_known_without_a_call_are_those_of_torch(function: Any, arguments: tuple[Any, ...]) -> None:
    arguments = tuple(value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments)

    def seen(made: Any) -> tuple[Any, ...]:
        value = tree_leaves(made)[0]  # the others of a batch norm are for its gradient
        return value.shape, value.stride(), value.dtype, value.untyped_storage().nbytes(), value.device

    assert seen(networks._on_meta(function, arguments, {})) == seen(function(*arguments))
