"""What PaddleVideo's networks save, worked out from ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor


def published_shapes(
    state: Mapping[str, Tensor], to_published: Callable[[str], str | None]
) -> dict[str, tuple[int, ...]]:
    """Names and Paddle shapes that the published network of the state dict ``state`` saves, in its own order.

    Linear weights are [in, out] there. A block with parallel branches also saves the fused depthwise convolution that
    they will become, whether or not it was fused.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for key, tensor in state.items():
        published = to_published(key)
        if published is None:
            continue
        shape = tuple(tensor.shape)
        fused = re.match(r"(stages\.\d+\.\d+)\.(?!dw_conv_list)", key)
        branch = state.get(f"{fused[1]}.dw_conv_list.0.conv.weight") if fused else None
        if fused and branch is not None:
            shapes.setdefault(f"{fused[1]}.dw_conv.weight", tuple(branch.shape))
            shapes.setdefault(f"{fused[1]}.dw_conv.bias", (branch.shape[0],))
        shapes[published] = shape[::-1] if len(shape) == 2 else shape
    return shapes
