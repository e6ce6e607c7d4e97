"""Mutual learning of any number of peers (Zhang et al., CVPR 2018): each learns from all the others."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters, tensors_of
from lit_distill.losses.response._logits import logit_rows
from lit_distill.losses.response.dml import PUBLISHED_EPS, Form, cost_of_logarithms

__all__ = ["DMLGroupLoss", "dml_group_loss"]


@full_precision
def dml_group_loss(
    peers: Signal,
    others: Signal,
    *,
    mask: Tensor | None = None,
    mutual: Form = "symmetric",
    average: bool = False,
    eps: NonNegative | None = None,
    class_dim: int | None = None,
) -> Tensor:
    """Divergences between the class probabilities of all peers; see :class:`DMLGroupLoss`."""
    eps = PUBLISHED_EPS[mutual] if eps is None else eps
    ours, theirs = tensors_of(peers), tensors_of(others)
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(
            f"dml_group_loss expects the same peers twice, two or more, got {len(ours)} and {len(theirs)}: "
            "pair: [[Student, Peer], [Student, Peer]]"
        )
    logs = []
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.shape != ours[0].shape:
            raise ValueError(
                f"dml_group_loss expects logits of one shape, got {tuple(ours[0].shape)} of the first peer and "
                f"{tuple(one.shape)} of peer {number + 1}"
            )
        rows = logit_rows("dml_group_loss", one, other, class_dim, mask)
        logs.append((rows.student.log_softmax(dim=-1), rows.teacher.log_softmax(dim=-1)))
    costs = []
    for i, (log_i, _) in enumerate(logs):
        for j, (as_peer, as_teacher) in enumerate(logs):
            if j > i or (j < i and mutual == "one_sided"):
                log_j = as_teacher.detach() if mutual == "one_sided" else as_peer  # a symmetric pair teaches both
                costs.append(rows.mean(cost_of_logarithms(log_i, log_j, mutual, eps).sum(dim=-1)))
    return torch.stack(costs).sum() / (len(ours) - 1 if average else 1)


@hyperparameters
class DMLGroupLoss(Loss):
    r"""Deep mutual learning of K peers: each matches the class probabilities of all others.

    With :math:`p_k` the softmax of peer k's logits and :math:`D` the divergences of
    :class:`lit_distill.losses.DMLLoss` in the same ``mutual`` form, summed over classes and averaged over samples:

    .. math::
        \begin{aligned}
        L_\text{symmetric} &= \sum_{i < j} D_\text{symmetric}(p_i, p_j) \\
        L_\text{one sided} &= \sum_i \sum_{j \ne i} D_\text{one sided}(p_i, p_j),\quad
            D_\text{one sided}(p_i, p_j) = \mathrm{KL}(p_j \,\|\, p_i)
        \end{aligned}

    Divided by K - 1 where ``average``. A group of two is DMLLoss: one symmetric term, or both one-sided ones. No
    temperature; the cross-entropy of each peer with the labels is a separate term.

    ``symmetric``, the default as in DMLLoss, is PaddleVideo's form between each two peers: nothing is detached, a peer
    gets the gradients of both directions. ``one_sided`` is that of the paper's authors: a peer learns from the others
    as they are, and its own answers as a teacher are constant. Their code sums over the others; the paper's equation
    averages over them, ``average=True``.

    Signals: the same list of two or more peers twice, ``pair: [[A, B, C], [A, B, C]]``, logits (B, C), (B, T, C), or
    any with ``class_dim``, all of one shape. The first list learns, the second teaches. ``same_signals``
    has a LossTerm refuse two lists that differ; ``teaches_both``, true for ``symmetric``, leaves the second attached.

    Paper: Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384, section 3.3, for more than two networks;
    the authors' code for ``one_sided``. Symmetric: PaddleVideo's DistillationDMLLoss over every pair.

    Use when: no trained teacher exists and the budget is K trainings at once: in the paper accuracy grows with the
    number of peers. The best of them is deployed: ``student: best`` lets the validation choose it.

    Args:
        mutual: ``symmetric`` or ``one_sided``.
        average: divide by K - 1, so that the pull on a peer does not grow with the group.
        eps: ε of DMLLoss, at least 0; None is the published 1e-12 for ``symmetric`` and 1e-8 for ``one_sided``.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: an unknown option, fewer than two peers, lists of different lengths, shapes that differ, NaN or
            infinite logits.

    Example:
        >>> peers = [torch.tensor([logits]) for logits in ([1.0, 0.0, -1.0], [3.0, 0.0, -3.0], [0.0, 0.0, 0.0])]
        >>> round(DMLGroupLoss()(peers, peers).item(), 4)
        2.0823
        >>> round(DMLGroupLoss()(peers[:2], peers[:2]).item(), 4)  # that of DMLLoss
        0.3728
    """

    expects_logits = True

    same_signals = True

    mutual: Form = "symmetric"
    average: bool = False
    eps: NonNegative | None = None
    class_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.eps = PUBLISHED_EPS[self.mutual] if self.eps is None else self.eps
        self.teaches_both = self.mutual == "symmetric"

    def forward(self, peers: Signal, others: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch: a scalar.

        Args:
            peers: the logits of every peer, which learn.
            others: the same, which teach.
            mask: which rows count.
        """
        return dml_group_loss(peers, others, mask=mask, **self.hyperparameters)
