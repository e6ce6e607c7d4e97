from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model, list_models

from lit_distill.models import LoadReport, WeightsError, timm_model, torchvision_model
from lit_distill.models.identity import fill

Build = Callable[..., nn.Module]
BOTH = pytest.mark.parametrize("build", [torchvision_model, timm_model], ids=["torchvision", "timm"])


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def report_of(network: nn.Module) -> LoadReport:
    report = network.load_report
    assert isinstance(report, LoadReport)
    return report


@pytest.mark.parametrize(
    ("build", "name", "reference"),
    [
        (torchvision_model, "resnet18", lambda: get_model("resnet18", weights=None, num_classes=5)),
        (timm_model, "resnet18", lambda: timm.create_model("resnet18", num_classes=5)),
        (timm_model, "resnet18.a1_in1k", lambda: timm.create_model("resnet18", num_classes=5)),
    ],
)
def test_it_is_the_librarys_own(build: Build, name: str, reference: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build(name, num_classes=5)
    torch.manual_seed(0)
    assert same(network, reference())
    assert not hasattr(network, "load_report")
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_x_400mf", "googlenet"]
)
def test_logits_in_training_and_in_evaluation(name: str) -> None:
    network = torchvision_model(name, num_classes=4)
    for mode in (True, False):
        assert network.train(mode)(torch.zeros(2, 3, 64, 64)).shape == (2, 4)


def test_a_network_whose_modules_have_versions_is_filled_from_tensors_alone() -> None:
    """MNASNet refuses a state without versions, as files of tensors have it: no run with one could be opened."""
    network, other = (torchvision_model("mnasnet0_5", num_classes=4) for _ in range(2))
    assert not same(network, other)
    fill(other, dict(network.state_dict()))
    assert same(network, other)


def test_every_classifier_of_torchvision_is_known_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights, **_: asked.append((name, weights)))
    names = list_models(module=torchvision.models)
    for name in names:
        torchvision_model(name, num_classes=4)
    assert asked == [(name, None) for name in names]


def test_further_arguments_reach_the_network() -> None:
    slim = torchvision_model("mobilenet_v2", num_classes=2, width_mult=0.25)
    assert slim.get_parameter("features.0.0.weight").shape == (8, 3, 3, 3)
    assert timm_model("resnet18", num_classes=2, in_chans=1).get_parameter("conv1.weight").shape[1] == 1


@BOTH
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(build: Build, suffix: str, tmp_path: Path) -> None:
    source = build("resnet18", num_classes=5)
    file = tmp_path / f"weights{suffix}"
    torch.save(source.state_dict(), file) if suffix == ".pth" else save_file(source.state_dict(), file)
    network = build("resnet18", num_classes=5, pretrained=file)
    assert same(network, source)
    report = report_of(network)
    assert report.complete
    assert (report.path, report.matched) == (file, report.total)


@BOTH
def test_another_number_of_classes_needs_reset_head(build: Build, tmp_path: Path) -> None:
    source = build("resnet18", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "imagenet.safetensors")
    arguments: dict[str, Any] = {"num_classes": 5, "pretrained": str(tmp_path / "imagenet.safetensors")}
    with pytest.raises(WeightsError, match=r"fc\.weight is \(1000, 512\) in the file, \(5, 512\).*reset_head=True"):
        build("resnet18", **arguments)
    network = build("resnet18", reset_head=True, **arguments)
    report = report_of(network)
    assert set(report.reset) == {"fc.weight", "fc.bias"}
    assert not report.complete
    body = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in body.items())


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "densenet121", "squeezenet1_0", "efficientnet_b0"])
def test_the_head_to_reset_is_found_in_other_networks(name: str, tmp_path: Path) -> None:
    torch.save(torchvision_model(name, num_classes=7).state_dict(), tmp_path / "weights.pth")
    network = torchvision_model(name, num_classes=3, pretrained=tmp_path / "weights.pth", reset_head=True)
    assert {key.rpartition(".")[2] for key in report_of(network).reset} == {"weight", "bias"}


@BOTH
def test_another_networks_file_is_refused(build: Build, tmp_path: Path) -> None:
    save_file(build("resnet34", num_classes=5).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="does not fit ResNet"):
        build("resnet18", num_classes=5, pretrained=tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="gone"):
        build("resnet18", num_classes=5, pretrained=tmp_path / "gone.pth")


def test_torchvisions_own_inception_file_fits_with_its_auxiliary_classifier(tmp_path: Path) -> None:
    source = get_model("googlenet", weights=None, num_classes=5, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "googlenet.pth")
    arguments: dict[str, Any] = {"num_classes": 5, "pretrained": tmp_path / "googlenet.pth", "init_weights": False}
    with pytest.raises(WeightsError, match=r"unexpected \d+: aux1\."):
        torchvision_model("googlenet", **arguments)
    network = torchvision_model("googlenet", aux_logits=True, transform_input=True, **arguments)
    assert report_of(network).complete
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (torchvision_model, "resnet19", r"torchvision\.models has no classifier .*'resnet19': .*'resnet18'"),
        (torchvision_model, "fasterrcnn_resnet50_fpn", "has no classifier"),
        (torchvision_model, "raft_large", "has no classifier"),
        (torchvision_model, "???????", "it has 80 others|it has .* others, such as"),
        (timm_model, "resnet18dd", r"timm has no classifier .*'resnet18dd': .*'resnet18d'"),
        (timm_model, "hf-hub:timm/resnet18", "has no classifier"),
    ],
)
def test_an_unknown_name_says_the_closest(build: Build, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, num_classes=5)


@BOTH
def test_a_classifier_needs_classes(build: Build) -> None:
    with pytest.raises(ValueError, match="resnet18 needs num_classes of at least 1, got 0"):
        build("resnet18", num_classes=0)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"timm is missing: pip install 'lit-distill\[timm\]'"):
        timm_model("resnet18", num_classes=5)
