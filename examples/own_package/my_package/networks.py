from __future__ import annotations

from torch import Tensor, nn


class FrameNet(nn.Module):
    """Clips (B, T, 3, H, W) to logits (B, num_classes): frames alone, then their mean."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        frames: Tensor = self.features(clips.flatten(0, 1))
        logits: Tensor = self.fc(frames.reshape(*clips.shape[:2], -1).mean(dim=1))
        return logits
