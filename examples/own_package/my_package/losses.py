from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CosineLoss(nn.Module):
    """1 - the cosine between the logits of student and teacher, each less its mean: a loss takes two signals."""

    def __init__(self, *, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = (x.float() - x.float().mean(dim=1, keepdim=True) for x in (student, teacher))
        return (1 - F.cosine_similarity(student, teacher)).pow(self.power).mean()
