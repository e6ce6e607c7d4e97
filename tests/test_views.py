from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_distill.data import average_views


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.fc = nn.Linear(3, 5)

    def forward(self, clips: Tensor) -> Tensor:
        self.seen.append(len(clips))
        logits: Tensor = self.fc(clips.mean((1, 3, 4)))
        return logits


def test_views_are_averaged_as_probabilities() -> None:
    torch.manual_seed(0)
    model, views = Tiny(), torch.randn(2, 6, 4, 3, 8, 8)
    averaged = average_views(model, views)
    expected = torch.stack([model(video).softmax(-1).mean(0) for video in views])
    torch.testing.assert_close(averaged.exp(), expected)
    torch.testing.assert_close(averaged.softmax(-1), expected)


def test_parts_give_the_same() -> None:
    torch.manual_seed(0)
    model, views = Tiny().eval(), torch.randn(2, 6, 4, 3, 8, 8)
    whole = average_views(model, views)
    torch.testing.assert_close(average_views(model, views, max_clips=5), whole)
    assert model.seen == [12, 5, 5, 2]


def test_single_views_pass_through() -> None:
    clips = torch.randn(2, 4, 3, 8, 8)
    model = Tiny()
    assert torch.equal(average_views(model, clips), model(clips))


def test_confident_views_stay_finite() -> None:
    averaged = average_views(
        lambda clips: torch.eye(2)[:, :2].repeat(len(clips) // 2, 1) * 1e4, torch.zeros(1, 2, 1, 3, 1, 1)
    )
    torch.testing.assert_close(averaged.exp(), torch.full((1, 2), 0.5))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"views \(B, V, T, 3, H, W\), got \(2, 3, 8, 8\)"):
        average_views(Tiny(), torch.zeros(2, 3, 8, 8))
