"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation._gram import gram, sample_rows

__all__ = ["PKTLoss", "pkt_loss"]


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor, *, eps: Positive = 1e-7, gather: bool = False) -> Tensor:
    """KL divergence between the affinities of the samples; see :class:`PKTLoss`."""
    q, p = (_affinities(x, eps) for x in sample_rows("pkt_loss", student, teacher.detach(), gather=gather))
    return (p * ((p + eps) / (q + eps)).log()).mean()


def _affinities(rows: Tensor, eps: float) -> Tensor:
    """(N, N) the probability of each sample as a neighbor of another, from cosines moved to 0 … 1."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / (norms + eps)
    cosines = gram(unit).clamp(min=-1)  # rounding below -1 would make a probability negative
    return (cosines + 1) / (cosines + 1).sum(dim=1, keepdim=True)


@hyperparameters
class PKTLoss(Loss):
    r"""The student matches the teacher's probability distribution over each sample's neighbors.

    Signals: student embeddings (N, D_s) and teacher embeddings (N, D_t) of the same N samples; more dimensions are
    flattened, one row a sample. The scalar is a mean over all N² pairs, as published, so it falls with N. Each
    sample's scale and the order of the samples do not matter. No gradient reaches the teacher.

    Formula:
        p_k|i = (cos(t_i, t_k) + 1) / Σ_l (cos(t_i, t_l) + 1),   q_k|i alike from the student
        cos(a, b) = <a, b> / ((|a| + ε) (|b| + ε))
        L = 1/N² Σ_ik p_k|i log ((p_k|i + ε) / (q_k|i + ε))

    Paper: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        arXiv:1803.10837. Matches the authors' code, RepDistiller and torchdistill; RepDistiller weighs it with 30000.

    Use when: the teacher's neighborhoods matter more than its exact distances, as in retrieval. Cheap; wants large
        batches, with several processes ``gather=True``.

    Args:
        eps: ε, above 0.
        gather: relate the samples of all processes; each must then take the same number of steps.

    Raises:
        ValueError: an ``eps`` that is not positive, signals of different N, NaN or infinite embeddings.

    Example:
        >>> import torch
        >>> loss = PKTLoss()
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(loss(student, torch.eye(3)).item(), 4)
        0.0104
        >>> round(loss(student, 2 * student).item(), 6)
        0.0
    """

    eps: Positive = 1e-7
    gather: bool = False

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of student embeddings against teacher embeddings: a scalar."""
        return pkt_loss(student, teacher, **self.hyperparameters)
