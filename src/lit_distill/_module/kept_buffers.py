"""Small buffers as they were before a step, to put back if it does not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LARGEST = 65_536  # elements of a buffer: running statistics are small, memory banks look after themselves


class KeptBuffers:
    """Small buffers of the modules in training mode, which a forward pass may move."""

    def __init__(self, places: Sequence[tuple[dict[str, Any], str]] = ()) -> None:
        self._places = places
        self._kept: list[Tensor] = []

    @classmethod
    def of(cls, root: nn.Module) -> KeptBuffers:
        return cls([
            (part._buffers, name)
            for part in root.modules() if part.training
            for name, buffer in part._buffers.items() if buffer is not None and buffer.numel() <= _LARGEST
        ])  # fmt: skip

    def keep(self) -> None:
        if not self._places:
            return
        now = [buffers[name] for buffers, name in self._places]
        if not self._kept:
            self._kept = [buffer.detach().clone() for buffer in now]
        else:
            torch._foreach_copy_(self._kept, now)

    def restore_where(self, bad: Tensor) -> None:
        """Restore all where ``bad`` is true, without a look at it: a few kernels a dtype, not a few a buffer."""
        for dtype in {kept.dtype for kept in self._kept}:
            pairs = [
                (buffers[name], kept)
                for (buffers, name), kept in zip(self._places, self._kept, strict=False)
                if kept.dtype == dtype
            ]
            now, kept = (torch.cat([x.flatten() for x in each]) for each in zip(*pairs, strict=True))
            chosen = torch.split(torch.where(bad, kept, now), [x.numel() for x, _ in pairs])
            torch._foreach_copy_([x for x, _ in pairs], [y.view_as(x) for y, (x, _) in zip(chosen, pairs, strict=True)])

    def restore(self) -> None:
        for (buffers, name), kept in zip(self._places, self._kept, strict=False):
            buffers[name].copy_(kept)
