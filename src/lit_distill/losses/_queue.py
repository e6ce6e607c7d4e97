"""The newest features of a network, kept over batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """A buffer (size, width) of the newest rows, newest first, saved with the run.

    It begins as zeros. In training each call puts a batch at the front and drops the oldest; of a batch larger than the
    queue the first rows stay. In eval mode nothing moves, so that validation leaves no trace. Each process has its own
    unless its caller gathers the batch.

    Args:
        size: number of rows.
        width: of a row.

    Example:
        >>> queue = FeatureQueue(3, 1)
        >>> queue(torch.tensor([[1.0], [2.0]])).flatten().tolist()
        [1.0, 2.0, 0.0]
        >>> queue(torch.tensor([[3.0]])).flatten().tolist()
        [3.0, 1.0, 2.0]
    """

    rows: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))

    def forward(self, batch: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rows (size, width) after this batch (B, width), without gradients, in the batch's precision.

        Rows that do not count by ``mask`` (B,) do not enter.
        """
        if self.training:
            with torch.no_grad():
                newest = torch.cat([batch.detach().to(self.rows.dtype), self.rows])
                if mask is not None:
                    left_out = torch.cat([mask == 0, torch.zeros_like(self.rows[:, 0], dtype=torch.bool)])
                    newest = newest[left_out.long().argsort(stable=True)]  # behind the oldest
                self.rows.copy_(newest[: len(self.rows)])
        return self.rows.to(batch.dtype, copy=True)  # what the loss saves for backward stays when the queue moves
