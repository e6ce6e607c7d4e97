"""A simple recipe for distillation (Miles and Mikolajczyk, AAAI 2024): batch norm and a logarithm of differences."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import NonNegative, Rule
from lit_distill.losses._masks import column_means
from lit_distill.losses._normalized import standardized
from lit_distill.losses._numerics import full_precision, log_power_sum
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._tokens import as_tokens
from lit_distill.losses.feature.regression import Projector
from lit_distill.losses.relation._projected import ProjectedLoss

__all__ = ["SRDLoss", "srd_loss"]

Form: TypeAlias = Literal["differences", "correlations"]
Exponent: TypeAlias = Annotated[float, Rule(lambda x: 1 <= x < math.inf, "a finite number of at least 1")]


@full_precision
def srd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    form: Form = "differences",
    exponent: Exponent = 4.0,
    bn_eps: NonNegative | None = 1e-4,
    eps: NonNegative = 0.0,
    gather: bool = False,
) -> Tensor:
    """The logarithm of a sum of powers of standardized features' differences; see :class:`SRDLoss`.

    Args:
        student: projected vectors (B, C), tokens (B, N, C) or maps (B, C, H, W), of which every place is a row.
        teacher: the same shape.
        mask: which rows count.
        form: compare rows, or columns by their correlation.
        exponent: of a difference.
        bn_eps: of the standardization over the batch; None for features that are standardized already.
        eps: added to the sum.
        gather: take the rows of all processes.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ, or the result is not finite.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0], [-1.0]])
        >>> round(srd_loss(rows, -rows, bn_eps=0.0).item(), 4) == round(math.log(2 * 2**4), 4)
        True
    """
    if student.shape != teacher.shape:
        raise ValueError(
            "srd_loss expects features of one shape, of the same samples: "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    ours, theirs = (as_tokens("srd_loss", x, mask) for x in (student, teacher))
    s, t, weights = ours.rows, theirs.rows, None if ours.mask is None else ours.mask.to(ours.values.dtype)
    if gather:
        s, t = gather_with_gradients(s), gather_with_gradients(t)
        weights = None if weights is None else gather_with_gradients(weights)
    column = None if weights is None else weights[:, None]
    if bn_eps is not None:
        s, t = (standardized(x, 0, eps=bn_eps, weights=column, batch_norm=True) for x in (s, t))
    if form == "differences":
        loss = log_power_sum(s - t, exponent, column, eps=eps)
    else:
        loss = log_power_sum(1 - column_means(s * t, weights), exponent, eps=eps)
    return loss if weights is None else loss * (weights.sum() > 0)


@hyperparameters
class SRDLoss(ProjectedLoss):
    r"""The largest differences between standardized features count, as the logarithm of a sum of their powers.

    With s = BN(P(student)), t = BN(teacher), batch normalization of the batch at hand and without weights:

    .. math:: L = \log \sum_{i=1}^N \sum_d |s_{id} - t_{id}|^\alpha \quad\text{or}\quad
        L = \log\left(ε + \sum_d |1 - ρ_d|^\alpha\right), \; ρ_d = \frac1N \sum_i s_{id} t_{id}

    P is a linear projector, sized from an example batch, trained and saved with the run. A sum: the value of
    ``differences`` grows with log N, its gradient does not. It depends on the batch, whose statistics it takes, in
    evaluation as well: under DDP ``gather`` makes it that of the global batch. Features that agree exactly have a large
    negative value without a gradient, where ``eps`` is 0.

    Signals: one feature a network: vectors (B, C), or tokens and maps, which are averaged over their places. A mask has
    (B,), or the places of both.

    Paper: Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
    arXiv:2303.11098. The default is the authors' for convolutional networks, as in torchdistill: the term at weight 2,
    beside KD at temperature 1 and the cross-entropy at weight 1. Theirs for DeiT is
    ``form="correlations", bn_eps=0.0, eps=1e-5``.

    Use when: a strong and simple loss of the pooled feature is wanted, with batches of dozens of samples.

    Args:
        form: ``differences`` of rows, or ``correlations`` of columns.
        exponent: α, of at least 1.
        bn_eps: ε of batch normalization; None for features that are normalized already.
        eps: added to the sum, whose logarithm then has a lower bound.
        projector: ``linear``, ``mlp``, ``orthogonal``, or None for equal widths.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, features that cannot be paired, NaN or infinite features.

    Example:
        >>> import torch
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(4, 8), torch.randn(4, 16, 3, 3)
        >>> loss = SRDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    form: Form = "differences"
    exponent: Exponent = 4.0
    bn_eps: NonNegative | None = 1e-4
    eps: NonNegative = 0.0
    projector: Projector | None = "linear"
    gather: bool = False

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        ours, theirs = self._features(student, teacher, mask)
        return srd_loss(
            self._projected(ours)[:, 0],
            theirs.values[:, 0],
            mask=ours.mask,
            form=self.form,
            exponent=self.exponent,
            bn_eps=self.bn_eps,
            eps=self.eps,
            gather=self.gather,
        )
