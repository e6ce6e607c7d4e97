"""The rules of cases.json that rebuild weights from their published names, and clips from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.models.paddle_keys import is_fused_branch
from published_shapes import published_shapes

Array = npt.NDArray[Any]


def rule_weight(key: str, shape: Sequence[int]) -> Array:
    """The float64 weight of a published name, in its Paddle shape."""
    x = np.random.default_rng(zlib.crc32(key.encode("utf-8"))).standard_normal(shape)
    if key.endswith("._mean"):
        return 0.1 * x
    if key.endswith("._variance"):
        return 1 + 0.1 * np.abs(x)
    if len(shape) == 4:
        return x * math.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    if len(shape) == 2:
        return x / math.sqrt(shape[0])
    return 1 + 0.1 * x if key.endswith(".weight") else 0.1 * x


def rule_video(seed: int, shape: Sequence[int]) -> Tensor:
    """The float64 clips (N, T, C, H, W) of a seed."""
    generator = np.random.default_rng(seed)
    n, t, c, h, w = shape
    base = generator.standard_normal((n, t, c, math.ceil(h / 8), math.ceil(w / 8)))
    base = base.repeat(8, axis=3).repeat(8, axis=4)[..., :h, :w]
    gain = generator.uniform(0.3, 2.0, (n, t, 1, 1, 1))
    offset = generator.standard_normal((n, t, c, 1, 1))
    return torch.from_numpy(gain * (base + 0.5 * generator.standard_normal(tuple(shape))) + offset)


def load_rule_weights(network: PPTSMv2 | PPTSMResNet, rename: Callable[[str], str] = lambda key: key) -> int:
    """Give a float64 network the weights of its published names, renamed first; returns how many names there are."""
    ours = network.state_dict()
    shapes = published_shapes(ours, network.published_key)
    state = {}
    for key, shape in shapes.items():
        native = network.native_key(key)
        assert native is not None
        if native in ours:
            weight = rule_weight(rename(key), shape)
            state[native] = torch.from_numpy(weight.T if weight.ndim == 2 else weight)
        else:
            assert is_fused_branch(key)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return len(shapes)


def build_network(config: Mapping[str, Any], **options: Any) -> PPTSMv2 | PPTSMResNet:
    """Our float64 network of a published configuration, with the published defaults; an unknown key is an error."""
    left = dict(config)
    frames = left.pop("num_seg", 8)
    network: PPTSMv2 | PPTSMResNet
    if left.pop("cls", "PPTSM_v2") == "ResNetTweaksTSM":
        options["dropout"] = left.pop("drop_ratio", 0.8)
        network = PPTSMResNet(left.pop("depth"), left.pop("num_classes"), frames, **options)
        assert network.fc.in_features == left.pop("in_channels")
    else:
        options["temporal_attention"] = left.pop("use_temporal_att", False)
        options |= {"dropout": left.pop("dropout_prob")} if "dropout_prob" in left else {}
        options |= {key: left.pop(key) for key in ("scale", "depths", "class_expand") if key in left}
        network = PPTSMv2(left.pop("class_num", 400), frames, **options)
    assert not left, f"unknown configuration {sorted(left)}"
    return network.double()
