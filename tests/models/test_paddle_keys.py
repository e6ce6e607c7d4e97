from __future__ import annotations

import pytest

from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.models.paddle_keys import (
    is_fused_branch,
    pptsm_resnet_to_native,
    pptsm_v2_to_native,
)
from published_shapes import published_shapes


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_tensor_of_a_resnet_has_one_published_name_and_back(depth: int) -> None:
    network = PPTSMResNet(depth, 4, 8, width=0.1)
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    published = [network.published_key(key) for key in keys]
    assert len(set(published)) == len(keys)
    assert [network.native_key(key or "") for key in published] == keys


def test_every_tensor_of_pptsm_v2_has_one_published_name_and_back() -> None:
    network = PPTSMv2(4, 8, scale=0.25)
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    assert [network.native_key(network.published_key(key) or "") for key in keys] == keys


def test_new_names_count_blocks_through_all_stages() -> None:
    places = [pptsm_resnet_to_native(f"blocks.{n}.conv0.conv.weight", depth=50) for n in (0, 2, 3, 6, 7, 12, 13, 15)]
    stages = ["0.0", "0.2", "1.0", "1.3", "2.0", "2.5", "3.0", "3.2"]
    assert places == [f"stages.{stage}.conv1.conv.weight" for stage in stages]


@pytest.mark.parametrize(
    "key", ["out.weight", "fc.weight", "blocks.16.conv0.conv.weight", "bb_0_3.conv0._conv.weight", "res2d.conv0.x", ""]
)
def test_what_has_no_place_in_a_resnet(key: str) -> None:
    assert pptsm_resnet_to_native(key, depth=50) is None


@pytest.mark.parametrize(
    "key", ["Student.0.fc.weight", "backbone.fc.weight", "head.fc.weight", "StructuredToParameterName@@"]
)
def test_what_has_no_place_in_pptsm_v2(key: str) -> None:
    assert pptsm_v2_to_native(key) is None


def test_published_shapes_hold_fused_branches_and_transposed_linear_layers() -> None:
    network = PPTSMv2(4, 8, scale=0.25, class_expand=24)
    shapes = published_shapes(network.state_dict(), network.published_key)
    assert shapes["fc.weight"] == (24, 4)
    assert shapes["stages.2.1.dw_conv.weight"] == shapes["stages.2.1.dw_conv_list.0.conv.weight"] == (128, 1, 5, 5)
    assert shapes["stages.2.1.dw_conv.bias"] == (128,)
    assert sum(map(is_fused_branch, shapes)) == 2 * 8
    fused = published_shapes(network.reparameterize().state_dict(), network.published_key)
    assert {key: shape for key, shape in shapes.items() if "dw_conv_list" not in key} == fused
