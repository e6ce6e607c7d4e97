"""The relational losses as they were published: from N x N x D differences, in autograd. References for the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def differences(rows: Tensor) -> Tensor:
    """(N, N, D) e_i - e_j, at [j, i]."""
    return rows[None] - rows[:, None]


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD's angles, with differences of exactly 0 kept out of the gradient."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(rows: Tensor) -> Tensor:
    apart = differences(rows.flatten(1))
    coincide = (apart == 0).all(dim=2, keepdim=True)
    directions = F.normalize(torch.where(coincide, torch.ones_like(apart), apart), dim=2).masked_fill(coincide, 0)
    return directions @ directions.mT


def distance(
    student: Tensor, teacher: Tensor, *, squared: bool = False, eps: float = 1e-12, paddleclas: bool = False
) -> Tensor:
    """RKD's distances."""

    def relative(rows: Tensor) -> Tensor:
        apart = differences(rows.flatten(1)).square().sum(dim=2).clamp(min=eps)
        apart = apart if squared else apart.sqrt()
        if paddleclas:
            return apart / (apart.mean() + eps)
        apart = apart.masked_fill(torch.eye(len(rows), dtype=torch.bool), 0)
        return apart / apart[apart > 0].mean()

    return F.smooth_l1_loss(relative(student), relative(teacher))


def both(student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """mdistiller's and RepDistiller's sum."""
    return distance_weight * distance(student, teacher) + angle_weight * angle(student, teacher)


def similarity(student: Tensor, teacher: Tensor, *, p: float = 2.0) -> Tensor:
    """SP: squared Frobenius norm over N²."""
    student, teacher = (F.normalize(x.flatten(1) @ x.flatten(1).T, p=p, dim=1) for x in (student, teacher))
    return (student - teacher).square().sum() / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """PKT: the mean over all pairs of the Kullback-Leibler terms."""

    def affinities(rows: Tensor) -> Tensor:
        rows = rows.flatten(1)
        unit = rows / (rows.square().sum(dim=1, keepdim=True).sqrt() + eps)
        cosines = (unit @ unit.T + 1) / 2
        return cosines / cosines.sum(dim=1, keepdim=True)

    q, p = affinities(student), affinities(teacher)
    return (p * torch.log((p + eps) / (q + eps))).mean()
