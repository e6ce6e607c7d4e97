"""Information-theoretic representation distillation (Miles et al., BMVC 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._masks import column_means
from lit_distill.losses._normalized import standardized, unit_vectors
from lit_distill.losses._numerics import full_precision, log_power_sum
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._tokens import as_tokens
from lit_distill.losses.feature.regression import Projector
from lit_distill.losses.relation._gram import gram
from lit_distill.losses.relation._projected import ProjectedLoss

__all__ = ["ITRDLoss", "itrd_loss"]


@full_precision
def itrd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    correlation: NonNegative = 2.0,
    mutual: NonNegative = 1.0,
    alpha: Positive = 1.5,
    gather: bool = False,
) -> Tensor:
    """Correlation of columns and mutual information of Gram matrices; see :class:`ITRDLoss`.

    Args:
        student: vectors (B, C), or tokens or maps, of which every place is a row; projected for ``correlation``.
        teacher: as many rows; as wide for ``correlation``.
        mask: which rows count.
        correlation: weight of the first part.
        mutual: weight of the second part.
        alpha: half the exponent of the first part.
        gather: take the rows of all processes.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes cannot be matched, or the result is not finite.

    Example:
        >>> rows = torch.eye(2)
        >>> itrd_loss(rows, rows, correlation=0.0).item()
        0.0
    """
    ours, theirs = (as_tokens("itrd_loss", x, mask) for x in (student, teacher))
    s, t = ours.rows, theirs.rows
    if len(s) != len(t) or (correlation > 0 and s.shape != t.shape):
        raise ValueError(
            "itrd_loss expects vectors of the same samples, of one width for the correlation: "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    weights = s.new_ones(len(s)) if ours.mask is None else ours.mask.to(s.dtype)
    if gather:
        s, t, weights = (gather_with_gradients(x) for x in (s, t, weights))
    parts = [0 * (s.sum() + t.detach().sum())]  # where no row counts, or both weights are 0
    if correlation > 0:
        column = None if ours.mask is None else weights[:, None]
        z_s, z_t = (standardized(x, 0, eps=0.0, weights=column) for x in (s, t))
        parts.append(correlation * log_power_sum(1 - column_means(z_s * z_t, weights), 2 * alpha) / math.log(2))
    if mutual > 0:
        root = weights.sqrt()[:, None]
        g_s, g_t = (gram(unit_vectors(x)) for x in (s, t))
        both = g_s * g_t
        pairs = root @ root.T
        parts.append(mutual * (_purity(g_s, weights, pairs) - _purity(both, weights, pairs)))
    total: Tensor = torch.stack(parts).sum()
    return total if ours.mask is None else total * (weights.sum() > 0)


def _purity(matrix: Tensor, weights: Tensor, pairs: Tensor) -> Tensor:
    """The squared Frobenius norm of a matrix over its squared trace, both weighted; 0 where the trace is."""
    trace = (matrix.diagonal() * weights).sum()
    return (matrix * pairs).square().sum() / trace.square().masked_fill(trace == 0, 1)


@hyperparameters
class ITRDLoss(ProjectedLoss):
    r"""Features correlate with the teacher's column by column, and share its similarities between samples.

    With z the columns of both sides at mean 0 and (unbiased) variance 1, and G Gram matrices of unit rows over their
    traces, ∘ the product by elements:

    .. math:: L = a \log_2 \sum_d |1 - c_d|^{2α} + b \left( \|G_s\|_F^2 - \|G_{st}\|_F^2 \right), \quad
        c_d = \frac1N \sum_i z^s_{id} z^t_{id}, \; G_{st} = \frac{G_s ∘ G_t}{\operatorname{tr}(G_s ∘ G_t)}

    a and b are ``correlation`` and ``mutual``. A perfect match has c = (N - 1)/N, as published. The student is
    projected for the first part always, for the second where the widths differ. Both parts depend on the batch: under
    DDP ``gather`` makes them those of the global batch.

    Signals: one feature a network: vectors (B, C), or tokens and maps, which are averaged over their places. A mask has
    (B,), or the places of both.

    Paper: Miles, Rodríguez and Mikolajczyk, "Information Theoretic Representation Distillation", BMVC 2022,
    arXiv:2112.00459, with the authors' weights. As in their program, the second part has no logarithms, although it
    stands for a difference of Rényi entropies.

    Use when: the pooled feature of a classifier is to be learned cheaply, from batches of dozens of samples.

    Args:
        correlation: a, the weight of the correlation of columns.
        mutual: b, the weight of the relations between samples.
        alpha: α, half the exponent.
        projector: ``linear``, ``mlp``, ``orthogonal``, or None for equal widths.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, features that cannot be paired, NaN or infinite features.

    Example:
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(4, 8), torch.randn(4, 16)
        >>> loss = ITRDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    correlation: NonNegative = 2.0
    mutual: NonNegative = 1.0
    alpha: Positive = 1.5
    projector: Projector | None = "linear"
    gather: bool = False

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        ours, theirs = self._features(student, teacher, mask)
        projected, wanted = self._projected(ours)[:, 0], theirs.values[:, 0]
        alone = ours.values[:, 0] if ours.values.shape[2] == theirs.values.shape[2] else projected
        columns = itrd_loss(
            projected,
            wanted,
            mask=ours.mask,
            correlation=self.correlation,
            mutual=0.0,
            alpha=self.alpha,
            gather=self.gather,
        )
        relations = itrd_loss(alone, wanted, mask=ours.mask, correlation=0.0, mutual=self.mutual, gather=self.gather)
        return columns + relations
