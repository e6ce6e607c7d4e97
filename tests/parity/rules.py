"""The rules of cases.json that rebuild weights from their published names, and clips from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.models.paddle_keys import is_fused_branch, published_shapes

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
    shapes = published_shapes(network.state_dict(), network.published_key)
    state = {}
    for key, shape in shapes.items():
        native = network.native_key(key)
        assert native is not None
        if native in network.state_dict():
            weight = rule_weight(rename(key), shape)
            state[native] = torch.from_numpy(weight.T if weight.ndim == 2 else weight)
        else:
            assert is_fused_branch(key)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return len(shapes)


def build_network(config: dict[str, Any], **options: Any) -> PPTSMv2 | PPTSMResNet:
    """Our network of a published configuration, in float64; an unknown key of it is an error."""
    config = dict(config)
    frames = config.pop("num_seg")
    if config.pop("cls", "PPTSM_v2") == "ResNetTweaksTSM":
        depth, classes, channels = config.pop("depth"), config.pop("num_classes"), config.pop("in_channels")
        network: PPTSMv2 | PPTSMResNet = PPTSMResNet(
            depth, classes, frames, dropout=config.pop("drop_ratio"), **options
        )
        assert network.fc.in_features == channels
    else:
        renamed = {"use_temporal_att": "temporal_attention", "dropout_prob": "dropout"}
        classes = config.pop("class_num")
        options |= {renamed.get(k, k): config.pop(k) for k in tuple(config) if k in renamed}
        options |= {k: config.pop(k) for k in ("scale", "depths", "class_expand") if k in config}
        network = PPTSMv2(classes, frames, **options)
    assert not config, f"unknown configuration {sorted(config)}"
    return network.double()
