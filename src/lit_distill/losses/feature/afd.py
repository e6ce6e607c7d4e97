"""Attention-based feature distillation: the loss itself finds out which layer should learn from which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import (
    apply_layer,
    as_maps,
    averaged,
    shapes_of,
    size_of,
)

__all__ = ["AFDLoss", "afd_loss"]


@full_precision
def afd_loss(
    student_values: Sequence[Tensor],
    teacher_values: Sequence[Tensor],
    *,
    keys: Tensor,
    queries: Tensor,
    student_positions: Tensor,
    teacher_positions: Tensor,
) -> Tensor:
    r"""Mean squared differences of all pairs of student and teacher layers, weighted by attention.

    .. math:: L = \sum_t \frac1N \sum_n \sum_s α_{nts}\, \operatorname{mean}_x (v^s_{nsx} - v^t_{nx})^2, \quad
        α_{nt} = \operatorname{softmax}_s \frac{k_{nst}^\top q_{nt} + p_t^\top p_s}{\sqrt D}

    Args:
        student_values: for each of T teacher layers, all S student layers at its size, (N, S, H_t*W_t).
        teacher_values: the T teacher layers, (N, H_t*W_t) each.
        keys: k, bilinear in student and teacher layers, (N, S, T, D).
        queries: q, (N, T, D).
        student_positions: p_s, an embedding a student layer, (S, D).
        teacher_positions: p_t, an embedding a teacher layer, (T, D).

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes do not fit, or the result is not finite.

    Example:
        >>> zeros = torch.zeros
        >>> afd_loss([zeros(2, 3, 9)], [torch.ones(2, 9)], keys=zeros(2, 3, 1, 4), queries=zeros(2, 1, 4),
        ...          student_positions=zeros(3, 4), teacher_positions=zeros(1, 4))
        tensor(1.)
    """
    n, s, t, d = keys.shape
    fits = (
        queries.shape == (n, t, d)
        and student_positions.shape == (s, d)
        and teacher_positions.shape == (t, d)
        and len(student_values) == len(teacher_values) == t
        and all(v.shape == (n, s, w.shape[-1]) for v, w in zip(student_values, teacher_values, strict=True))
        and all(w.shape[:-1] == (n,) for w in teacher_values)
    )
    if not fits:
        raise ValueError(
            f"afd_loss expects keys (N, S, T, D), queries (N, T, D), positions (S, D) and (T, D) and T values, got "
            f"{tuple(keys.shape)}, {tuple(queries.shape)}, {tuple(student_positions.shape)}, "
            f"{tuple(teacher_positions.shape)}; values: {shapes_of(student_values, teacher_values)}"
        )
    scores = torch.einsum("nstd,ntd->nts", keys, queries) + teacher_positions @ student_positions.mT
    attention = (scores / math.sqrt(d)).softmax(dim=2)
    differences = [
        (v - w.unsqueeze(1)).square().mean(dim=2) for v, w in zip(student_values, teacher_values, strict=True)
    ]
    return (attention * torch.stack(differences, dim=1)).sum(dim=(1, 2)).mean()


@hyperparameters
class AFDLoss(SizedLoss):
    r"""Attention-based feature distillation: each teacher layer attends to the student layers that learn from it.

    Signals: lists of feature maps (N, C, H, W), S of the student and T of the teacher; numbers, channels and sizes may
    all differ. What is compared is each layer's energy, the mean over channels of the squares, at the teacher layer's
    size (adaptive average pooling), as a vector of length 1. Attention comes from the layers' channel means: linear
    layers with BatchNorm, sized from an example batch, trained and saved with the run. Summed over teacher layers,
    averaged over the batch. Tokens (N, L, C) and maps (N, C, T, H, W) too.

    Formula:
        L = Σ_t mean over N of Σ_s α_ts mean over positions of (v_s - v_t)²
        α_t = softmax over s of (k_st · q_t + p_t · p_s) / √D
        q_t = BN(W_t c_t),  k_s = BN(W ReLU(BN(W_s c_s))),  c: channel means,  v: unit vectors of the energy maps

    Paper: Ji et al., "Show, Attend and Distill: Knowledge Distillation via Attention-based Feature Matching", AAAI
        2021, arXiv:2102.02973. Matches the authors' code, whose indexing of equal shapes goes wrong unless they are
        adjacent. :func:`afd_loss` alone is PaddleClas' AFDLoss, whose linear layers live in the networks.

    Use when: it is unclear which layers correspond, as between architectures of different kinds: tap several blocks of
        each and let the attention decide. Its usual weight is 200. BatchNorm needs two or more samples a batch.

    Args:
        qk_dim: D, the size of queries and keys.

    Raises:
        ValueError: D is below 1, or maps of different batch sizes.

    Example:
        >>> student = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> teacher = [torch.randn(2, 32, 4, 4)]
        >>> loss = AFDLoss(qk_dim=4)
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    qk_dim: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.keys = nn.ModuleList()
        self.queries = nn.ModuleList()
        self.bilinear = nn.Sequential()
        self.register_parameter("student_positions", None)
        self.register_parameter("teacher_positions", None)
        self._channels: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the attention's layers exist."""
        return self._channels is not None

    def build(self, example: Example) -> None:
        """Create the attention's layers.

        Raises:
            ValueError: the batch sizes differ, or the loss was built for other channels.
        """
        ours, theirs = self._channels_of(example.student, example.teacher)
        if self._channels is not None:
            return
        d = self.qk_dim
        self.keys.extend(nn.Sequential(nn.Linear(c, d), nn.BatchNorm1d(d), nn.ReLU()) for c in ours)
        self.queries.extend(nn.Sequential(nn.Linear(c, d), nn.BatchNorm1d(d)) for c in theirs)
        self.bilinear.extend([nn.Linear(d, d * len(theirs)), nn.BatchNorm1d(d * len(theirs))])
        self.student_positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(ours), d)))
        self.teacher_positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(theirs), d)))
        self._channels = (ours, theirs)
        self.to(tensors_of(example.student)[0].device)

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        self._channels_of(student, teacher)
        ours, theirs = as_maps("AFDLoss", student, teacher, places=True)
        key = torch.stack([apply_layer(k, s.mean(dim=(2, 3))) for k, s in zip(self.keys, ours, strict=True)], dim=1)
        keys = apply_layer(self.bilinear, key.flatten(0, 1)).reshape(*key.shape[:2], len(theirs), self.qk_dim)
        queries = [apply_layer(q, t.mean(dim=(2, 3))) for q, t in zip(self.queries, theirs, strict=True)]
        energies = [s.square().mean(dim=1) for s in ours]
        sizes = [size_of(t) for t in theirs]
        # Equal sizes share one pooled tensor, wherever in the list they stand.
        values = {size: _values(energies, size) for size in dict.fromkeys(sizes)}
        return afd_loss(
            [values[size] for size in sizes],
            [unit_vectors(t.square().mean(dim=1).flatten(1)) for t in theirs],
            keys=keys,
            queries=torch.stack(queries, dim=1),
            student_positions=self.student_positions,
            teacher_positions=self.teacher_positions,
        )

    def _channels_of(self, student: Signal, teacher: Signal) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ours, theirs = (tuple(t.shape[1] for t in maps) for maps in as_maps("AFDLoss", student, teacher, places=True))
        if self._channels not in (None, (ours, theirs)):
            raise ValueError(f"AFDLoss was built for student and teacher channels {self._channels}, got {ours, theirs}")
        return ours, theirs


def _values(energies: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Energy maps (N, H, W) of all layers at one size, as unit vectors (N, S, H*W)."""
    return unit_vectors(torch.stack([averaged(e.unsqueeze(1), size).flatten(1) for e in energies], dim=1))
