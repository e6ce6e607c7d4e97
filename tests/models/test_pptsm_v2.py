from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_distill.models import PPTSMv2, temporal_shift
from models.taps import outputs_of


def small(**options: Any) -> PPTSMv2:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"scale": 0.25, "depths": (1, 1, 2, 2), "class_expand": 16} | options
    return PPTSMv2(settings.pop("num_classes", 5), settings.pop("num_frames", 4), **settings)


def with_statistics(network: nn.Module) -> nn.Module:
    """Running statistics and scales as after some training, so that fusing has something to do."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 2.0)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.3)
    return network


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96), (8, 8)])
@pytest.mark.parametrize("num_frames", [3, 8])
def test_shapes_at_every_tap(size: tuple[int, int], num_frames: int) -> None:
    network = small(num_frames=num_frames).eval()
    names = ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "last_conv", "fc:input", "fc"]
    *features, last, embedding, logits = outputs_of(network, torch.randn(2, num_frames, 3, *size), *names)
    for feature, channels, stride in zip(features, (16, 32, 64, 128, 256), (2, 4, 8, 16, 32), strict=True):
        assert feature.shape == (2 * num_frames, channels, *(math.ceil(side / stride) for side in size))
    assert last.shape == (2 * num_frames, 16, 1, 1)
    assert embedding.shape == (2, 16)
    assert logits.shape == (2, 5)


def test_published_size() -> None:
    network = PPTSMv2(400, 8)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_918_680
    fused = copy.deepcopy(network).reparameterize()
    dead = sum(p.numel() for name, p in fused.named_parameters() if name.endswith(("dw_conv.weight", "dw_conv.bias")))
    assert 5_918_680 + dead == 6_031_832
    assert network.eval()(torch.zeros(1, 8, 3, 224, 224)).shape == (1, 400)


def test_time_is_exchanged_once_before_the_third_stage() -> None:
    network = small().eval()
    before, weighed, entering = outputs_of(
        network, torch.randn(2, 4, 3, 32, 32), "stages.1", "temporal_attention", "stages.2.0:input"
    )
    torch.testing.assert_close(network.temporal_attention(before), weighed)
    assert torch.equal(entering, temporal_shift(weighed, 4))
    still = small(temporal_attention=False).eval()
    before, entering = outputs_of(still, torch.randn(2, 4, 3, 32, 32), "stages.1", "stages.2.0:input")
    assert torch.equal(entering, temporal_shift(before, 4))
    assert not [name for name in still.state_dict() if "attention" in name]


def test_shortcut_only_between_equal_shapes_and_after_the_last_relu() -> None:
    network = small().eval()
    pairs = outputs_of(network, torch.randn(2, 4, 3, 32, 32), "stages.3.1:input", "stages.3.1.pw_conv", "stages.3.1")
    assert torch.equal(pairs[2], pairs[0] + pairs[1])
    first = outputs_of(network, torch.randn(2, 4, 3, 32, 32), "stages.3.0.pw_conv", "stages.3.0")
    assert torch.equal(*first)


def test_evaluation_scales_by_single_precision() -> None:
    video = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    (plain,) = outputs_of(small(dropout=0.0).double().eval(), video, "fc:input")
    (scaled,) = outputs_of(small(dropout=0.2).double().eval(), video, "fc:input")
    torch.testing.assert_close(scaled, plain * float(np.float32(0.8)), rtol=1e-12, atol=0)
    (torchs,) = outputs_of(small(dropout=0.2, dropout_mode="upscale_in_train").double().eval(), video, "fc:input")
    assert torch.equal(torchs, plain)


def test_every_parameter_learns() -> None:
    network = small()
    network(torch.randn(2, 4, 3, 32, 32)).logsumexp(dim=1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(("num_frames", "size"), [(3, (32, 32)), (8, (33, 47))])
def test_fusing_changes_no_output(num_frames: int, size: tuple[int, int]) -> None:
    network = with_statistics(small(num_frames=num_frames)).double().eval()
    video = torch.randn(2, num_frames, 3, *size, dtype=torch.float64)
    expected = network(video)
    parameters = sum(1 for _ in network.parameters())
    assert isinstance(network, PPTSMv2)
    assert network.reparameterize() is network
    torch.testing.assert_close(network(video), expected, rtol=1e-10, atol=1e-10)
    assert sum(1 for _ in network.parameters()) < parameters
    state = {key: value.clone() for key, value in network.state_dict().items()}
    assert not any("dw_conv_list" in key for key in state)
    again = network.reparameterize().state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_a_fused_state_dict_loads_into_a_fused_network() -> None:
    trained = with_statistics(small()).eval()
    assert isinstance(trained, PPTSMv2)
    video = torch.randn(1, 4, 3, 32, 32)
    fused = small(reparameterized=True).eval()
    fused.load_state_dict(trained.reparameterize().state_dict())
    assert torch.equal(fused(video), trained(video))
    with pytest.raises(RuntimeError, match="dw_conv_list"):
        small().load_state_dict(fused.state_dict())


@pytest.mark.parametrize("fused", [False, True])
def test_copies_and_pickles(fused: bool) -> None:
    network, video = small(reparameterized=fused).eval(), torch.randn(1, 4, 3, 32, 32)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(video), network(video))
        assert torch.equal(twin.reparameterize()(video), copy.deepcopy(network).reparameterize()(video))


def test_fusing_keeps_what_was_frozen_frozen() -> None:
    network = small().requires_grad_(False).reparameterize()
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_starts_as_published() -> None:
    network = PPTSMv2(400, 8)
    for path in ("stages.3.1.pw_conv.conv", "stages.2.3.se.conv1", "last_conv", "stages.3.1.dw_conv_list.0.conv"):
        weight = network.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.05), path
    bound = math.sqrt(6 / (1280 + 400))
    assert network.fc.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert network.fc.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".bn." in name:
            assert (parameter == 1).all(), name


def test_features_keep_the_layout_of_fast_kernels_and_the_network_takes_either() -> None:
    network, video = small().eval(), torch.randn(2, 4, 3, 32, 32)
    features = outputs_of(network, video, "stages.0", "temporal_shift", "stages.3")
    assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in features)
    expected = network(video)
    moved = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(video), expected, rtol=1e-4, atol=1e-5)
    strided = video.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(network(strided), expected, rtol=1e-4, atol=1e-5)


def test_trains_under_bfloat16_autocast() -> None:
    network, video = small(dropout=0.0), torch.randn(2, 4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(video)
    logits.float().logsumexp(dim=1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.grad is not None)
    network.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        half = network(video)
    torch.testing.assert_close(half.float(), network(video), rtol=0.1, atol=0.1)


# tests/test_export.py exports one that is fused.
@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_with_any_batch(fused: bool) -> None:
    network = small(reparameterized=fused).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(network, (torch.randn(2, 4, 3, 32, 32),), dynamic_shapes=({0: batch},))
    video = torch.randn(3, 4, 3, 32, 32)
    torch.testing.assert_close(program.module()(video), network(video))


def test_starts_from_a_file(tmp_path: Path) -> None:
    source, path, video = small(), tmp_path / "student.pth", torch.randn(1, 4, 3, 32, 32)
    nn.init.normal_(source.fc.bias)
    torch.save(source.state_dict(), path)
    torch.manual_seed(5)
    settings: dict[str, Any] = {"scale": 0.25, "depths": (1, 1, 2, 2), "class_expand": 16, "pretrained": path}
    loaded = PPTSMv2(5, 4, **settings)
    assert loaded.load_report.complete
    assert torch.equal(loaded.eval()(video), source.eval()(video))
    with pytest.raises(ValueError, match="fc"):
        PPTSMv2(7, 4, **settings)
    fresh = PPTSMv2(7, 4, reset_head=True, **settings)
    assert not fresh.load_report.complete
    assert torch.equal(fresh.last_conv.weight, source.last_conv.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes and class_expand above 0, got 0, 16"),
        ({"class_expand": 0}, "class_expand above 0"),
        ({"num_frames": 2}, "at least 3 frames, or 1 for stills, got 2"),
        ({"scale": 0.0}, "scale above 0"),
        ({"depths": (2, 2, 6)}, r"4 stages.*\(2, 2, 6\)"),
        ({"depths": (2, 2, 0, 2)}, "1 or more each"),
        ({"dropout": 1.0}, r"\[0, 1\)"),
        ({"batch_norm": "paddle"}, r"batch_norm expects one of \['torch', 'published'\], got 'paddle'"),
    ],
)
def test_hyperparameters_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_stills_have_the_state_dict_of_clips_without_attention() -> None:
    stills, clips = small(num_frames=1), small(num_frames=4)
    expected = {name: value.shape for name, value in clips.state_dict().items() if "temporal_attention" not in name}
    assert {name: value.shape for name, value in stills.state_dict().items()} == expected
    assert small(num_frames=1, temporal_attention=False).state_dict().keys() == stills.state_dict().keys()


def test_a_clip_of_equal_frames_is_a_still_where_nothing_is_shifted() -> None:
    stills, clips = small(num_frames=1).eval(), small(num_frames=4, temporal_attention=False).eval()
    clips.load_state_dict(stills.state_dict())
    clips.temporal_shift = nn.Identity()  # type: ignore[assignment]
    frame = torch.randn(2, 1, 3, 32, 32)
    torch.testing.assert_close(clips(frame.expand(-1, 4, -1, -1, -1)), stills(frame))


def test_names_itself_in_errors() -> None:
    with pytest.raises(ValueError, match=r"PPTSMv2 expects float clips of shape \(B, 4, 3, H, W\)"):
        small()(torch.zeros(2, 8, 3, 32, 32))
