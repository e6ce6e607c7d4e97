"""Names of the published Paddle state dicts, and of ours: rules in both directions, no tables.

Both sides agree on most of the path. What differs: BatchNorm's running statistics, PP-TSMv2's attention, and in the
PP-TSM ResNet the names of blocks and layers. A Linear weight is [in, out] in Paddle, (out, in) in torch: transpose it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

RESNET_DEPTHS: Mapping[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Blocks in each of the four stages, by depth of the ResNet."""

_FUSED = re.compile(r"stages\.\d+\.\d+\.dw_conv\.(weight|bias)")
_BLOCK_LAYERS = {"conv0": "conv1", "conv1": "conv2", "conv2": "conv3", "short": "shortcut"}


def pptsm_v2_to_native(key: str) -> str | None:
    """Our name of a tensor of a published PPTSM_v2 or PPLCNetV2_base state dict, or None where there is none.

    Example:
        >>> pptsm_v2_to_native("stages.0.1.pw_conv.bn._variance")
        'stages.0.1.pw_conv.bn.running_var'
        >>> pptsm_v2_to_native("global_attention.fc.weight")
        'temporal_attention.fc.weight'
    """
    if not re.match(r"(stem|stages|last_conv|fc|global_attention)\.", key):
        return None
    return statistics_to_native(re.sub(r"^global_attention\.", "temporal_attention.", key))


def pptsm_v2_to_published(key: str) -> str | None:
    """The published name of a tensor of :class:`lit_distill.models.PPTSMv2`; the inverse of :func:`pptsm_v2_to_native`.

    ``num_batches_tracked`` has no counterpart and gives None.
    """
    if not re.match(r"(stem|stages|last_conv|fc|temporal_attention)\.", key):
        return None
    return _statistics_to_published(re.sub(r"^temporal_attention\.", "global_attention.", key))


def is_fused_branch(key: str) -> bool:
    """Whether ``key`` is a fused depthwise convolution of PPTSM_v2, which training never uses and fusing recomputes.

    Published state dicts hold these tensors from the start, and until the branches are fused their values mean nothing.

    Example:
        >>> is_fused_branch("stages.2.0.dw_conv.weight"), is_fused_branch("stages.0.0.dw_conv.conv.weight")
        (True, False)
    """
    return _FUSED.fullmatch(key) is not None


def pptsm_resnet_to_native(key: str, *, depth: int) -> str | None:
    """Our name of a tensor of a published PP-TSM ResNet or ResNet-vd state dict, or None where there is none.

    Three namings are read: ``bb_<stage>_<i>`` (PP-TSM from 50 layers on, PaddleClas 2.0), ``res<stage + 2><letter>``
    (PP-TSM of 18 and 34 layers) and ``blocks.<n>`` counted through all stages (PaddleClas from 2.2 on). The ImageNet
    classifiers ``out`` and ``fc`` have no place here: PP-TSM's own is ``head.fc``.

    Example:
        >>> pptsm_resnet_to_native("bb_1_0.short._batch_norm._mean", depth=50)
        'stages.1.0.shortcut.bn.running_mean'
        >>> pptsm_resnet_to_native("res2b.conv1._conv.weight", depth=18)
        'stages.0.1.conv2.conv.weight'
        >>> pptsm_resnet_to_native("blocks.3.conv0.conv.weight", depth=50)
        'stages.1.0.conv1.conv.weight'
    """
    key = re.sub(r"\._conv\.", ".conv.", re.sub(r"\._batch_norm\.", ".bn.", key))
    if match := re.fullmatch(r"head\.fc\.(weight|bias)", key):
        return f"fc.{match[1]}"
    if match := re.fullmatch(r"(?:conv1_([123])|stem\.([012]))\.(.+)", key):
        index = int(match[1]) - 1 if match[1] else int(match[2])
        return statistics_to_native(f"stem.{index}.{match[3]}")
    if match := re.fullmatch(r"(bb_\d_\d+|res[2-5][a-z]|blocks\.\d+)\.(conv[012]|short)\.(.+)", key):
        place = _block_place(match[1], depth)
        layer = _BLOCK_LAYERS[match[2]]
        return None if place is None else statistics_to_native(f"stages.{place[0]}.{place[1]}.{layer}.{match[3]}")
    return None


def pptsm_resnet_to_published(key: str, *, depth: int) -> str | None:
    """The published name of a tensor of :class:`lit_distill.models.PPTSMResNet`, as PP-TSM itself saves it.

    ``num_batches_tracked`` has no counterpart and gives None.

    Example:
        >>> pptsm_resnet_to_published("stages.0.1.conv2.conv.weight", depth=18)
        'res2b.conv1._conv.weight'
    """
    if match := re.fullmatch(r"fc\.(weight|bias)", key):
        return f"head.fc.{match[1]}"
    if match := re.fullmatch(r"stem\.([012])\.(.+)", key):
        published = f"conv1_{int(match[1]) + 1}.{match[2]}"
    elif match := re.fullmatch(r"stages\.([0-3])\.(\d+)\.(conv[123]|shortcut)\.(.+)", key):
        stage, index = int(match[1]), int(match[2])
        block = f"bb_{stage}_{index}" if depth >= 50 else f"res{stage + 2}{chr(ord('a') + index)}"
        layer = next(published for published, native in _BLOCK_LAYERS.items() if native == match[3])
        published = f"{block}.{layer}.{match[4]}"
    else:
        return None
    return _statistics_to_published(published.replace(".conv.", "._conv.").replace(".bn.", "._batch_norm."))


def _block_place(name: str, depth: int) -> tuple[int, int] | None:
    """Stage and position of a published block, or None where a ResNet of this depth has no such block."""
    blocks = RESNET_DEPTHS[depth]
    if match := re.fullmatch(r"bb_(\d)_(\d+)", name):
        stage, index = int(match[1]), int(match[2])
    elif match := re.fullmatch(r"res([2-5])([a-z])", name):
        stage, index = int(match[1]) - 2, ord(match[2]) - ord("a")
    else:
        stage, index = 0, int(name.removeprefix("blocks."))
        while stage < len(blocks) - 1 and index >= blocks[stage]:
            index -= blocks[stage]
            stage += 1
    return (stage, index) if stage < len(blocks) and index < blocks[stage] else None


def statistics_to_native(key: str) -> str:
    """Torch's names of Paddle's running statistics; any other name as it is."""
    return re.sub(r"\._mean$", ".running_mean", re.sub(r"\._variance$", ".running_var", key))


def _statistics_to_published(key: str) -> str | None:
    if key.endswith(".num_batches_tracked"):
        return None
    return re.sub(r"\.running_mean$", "._mean", re.sub(r"\.running_var$", "._variance", key))
