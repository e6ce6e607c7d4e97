from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill.models import PPTSMResNet, temporal_shift
from lit_distill.models.temporal import TemporalShift
from models.taps import outputs_of


def small(depth: int = 18, **options: Any) -> PPTSMResNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 0.125} | options
    return PPTSMResNet(depth, settings.pop("num_classes", 5), settings.pop("num_frames", 4), **settings)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96)])
@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (50, 4)])
def test_shapes_at_every_tap(size: tuple[int, int], depth: int, expansion: int) -> None:
    network = small(depth, num_frames=3).eval()
    names = ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "stages.3.1.act:input", "fc:input", "fc"]
    stem, *features, unactivated, embedding, logits = outputs_of(network, torch.randn(2, 3, 3, *size), *names)
    assert stem.shape == (6, 8, math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    for feature, channels, stride in zip(features, (8, 16, 32, 64), (4, 8, 16, 32), strict=True):
        assert feature.shape == (6, channels * expansion, *(math.ceil(side / stride) for side in size))
    assert unactivated.shape == features[-1].shape
    assert embedding.shape == (2, 64 * expansion)
    assert logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("depth", "blocks", "layers"),
    [
        (18, [2, 2, 2, 2], 2),
        (34, [3, 4, 6, 3], 2),
        (50, [3, 4, 6, 3], 3),
        (101, [3, 4, 23, 3], 3),
        (152, [3, 8, 36, 3], 3),
    ],
)
def test_depths(depth: int, blocks: list[int], layers: int) -> None:
    network = small(depth)
    assert [len(stage) for stage in network.stages] == blocks  # type: ignore[arg-type]
    convolutions = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert len(convolutions) == 3 + layers * sum(blocks)
    assert network.eval()(torch.zeros(1, 4, 3, 17, 33)).shape == (1, 5)


def test_published_size() -> None:
    network = PPTSMResNet(50, 400, 8)
    backbone = sum(parameter.numel() for name, parameter in network.named_parameters() if not name.startswith("fc."))
    assert backbone == 23_527_264  # ResNet50-vd without its classifier
    assert network.eval()(torch.zeros(1, 8, 3, 64, 64)).shape == (1, 400)


def test_a_block_shifts_its_branch_only() -> None:
    network = small(50).eval()
    names = ["stages.1.1:input", "stages.1.1.conv1:input", "stages.1.1.conv3", "stages.1.1.act:input", "stages.1.1"]
    entering, shifted, branch, total, output = outputs_of(network, torch.randn(2, 4, 3, 32, 32), *names)
    assert torch.equal(shifted, temporal_shift(entering, 4))
    assert torch.equal(total, entering + branch)
    assert torch.equal(output, F.leaky_relu(total, 0.01))


@pytest.mark.parametrize(("depth", "pooled"), [(34, False), (101, True)])
def test_shortcuts_of_downsampling_blocks(depth: int, pooled: bool) -> None:
    network = small(depth)
    for stage in range(4):
        shortcut = network.get_submodule(f"stages.{stage}.0.shortcut")
        conv, pool = shortcut.get_submodule("conv"), shortcut.get_submodule("pool")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(pool, nn.AvgPool2d) == (pooled and stage > 0)
        assert conv.stride == ((2, 2) if stage > 0 and not pooled else (1, 1))


def test_pooling_at_an_odd_border_averages_what_is_there() -> None:
    pool = small(50).get_submodule("stages.1.0.shortcut.pool")
    frames = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert pool(frames).flatten().tolist() == [2.0, 3.5, 6.5, 8.0]


def test_dropout_acts_on_every_frame_before_the_mean() -> None:
    network = small(dropout=0.5)
    pooled, dropped, embedding = outputs_of(network, torch.randn(2, 4, 3, 32, 32), "pool", "dropout", "fc:input")
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * pooled[kept])
    clips = kept.reshape(2, 4, -1)
    assert (clips != clips[:, :1]).any(), "frames share a mask"
    torch.testing.assert_close(embedding, dropped.reshape(2, 4, -1).mean(dim=1))


@pytest.mark.parametrize("depth", [18, 50])
def test_every_parameter_learns(depth: int) -> None:
    network = small(depth)
    network(torch.randn(2, 4, 3, 32, 32)).logsumexp(dim=1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_starts_as_published() -> None:
    network = PPTSMResNet(50, 400, 8)
    for path in ("stem.1.conv", "stages.3.1.conv2.conv", "stages.2.0.shortcut.conv"):
        weight = network.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=0.05), path
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.fc.bias.any()


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])  # built of the same blocks
def test_copies_pickles_and_exports(depth: int) -> None:
    network, video = small(depth).eval(), torch.randn(3, 4, 3, 33, 31)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(video), network(video))
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(network, (video[:2],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(video), network(video))


def test_layouts_and_bfloat16() -> None:
    network, video = small(50).eval(), torch.randn(2, 4, 3, 32, 32)
    expected = network(video)
    (feature,) = outputs_of(network, video, "stages.2")
    assert feature.is_contiguous(memory_format=torch.channels_last)
    moved = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(video), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(video)
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.05)


def test_starts_from_a_file(tmp_path: Path) -> None:
    source, path, video = small(), tmp_path / "teacher.pth", torch.randn(1, 4, 3, 32, 32)
    torch.save(source.state_dict(), path)
    torch.manual_seed(5)
    loaded = PPTSMResNet(18, 5, 4, width=0.125, pretrained=path)
    assert loaded.load_report.complete
    assert torch.equal(loaded.eval()(video), source.eval()(video))
    with pytest.raises(ValueError, match="fc"):
        PPTSMResNet(18, 7, 4, width=0.125, pretrained=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, r"depth of \[18, 34, 50, 101, 152\], got 20"),
        ({"num_classes": 0}, "num_classes above 0"),
        ({"num_frames": 2}, "at least 3 frames, or 1 for stills, got 2"),
        ({"width": 0.0}, "width above 0"),
        ({"dropout": -0.1}, r"\[0, 1\)"),
        ({"batch_norm": "paddle"}, "batch_norm expects one of"),
    ],
)
def test_hyperparameters_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("depth", [18, 50])
def test_stills_have_the_state_dict_of_clips(depth: int) -> None:
    stills, clips = small(depth, num_frames=1).eval(), small(depth, num_frames=4).eval()
    clips.load_state_dict(stills.state_dict(), strict=True)
    shifted = [module for module in clips.modules() if isinstance(module, TemporalShift)]
    for module in shifted:
        module.from_previous = module.from_next = 0
    frame = torch.randn(2, 1, 3, 32, 32)
    assert shifted
    torch.testing.assert_close(clips(frame.expand(-1, 4, -1, -1, -1)), stills(frame))


def test_names_itself_in_errors() -> None:
    with pytest.raises(ValueError, match=r"PPTSMResNet expects float clips of shape \(B, 4, 3, H, W\)"):
        small()(torch.zeros(2, 4, 32, 32))
