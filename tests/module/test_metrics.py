"""Metrics of validation."""

from __future__ import annotations

import torch

from lit_distill._module.evaluated import default_metrics


def test_top5_is_counted_by_itself() -> None:
    metrics = default_metrics()
    logits = torch.eye(8)
    metrics.update(logits[:2], torch.tensor([0, 1]))  # both right: equal so far
    metrics.update(logits[:2] + 0.1 * torch.arange(8), torch.tensor([7, 6]))  # wrong, and among the first five
    computed = metrics.compute()
    assert {name: float(value) for name, value in computed.items()} == {"top1": 0.5, "top5": 1.0}
