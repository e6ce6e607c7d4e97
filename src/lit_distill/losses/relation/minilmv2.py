"""MiniLMv2 (Wang et al., Findings of ACL 2021): relations of queries, of keys and of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import Count, NonNegative, Rule
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature._tokens import Tokens, as_tokens, sample_weights
from lit_distill.losses.relation._rows import relation_divergence

__all__ = ["MiniLMv2Loss", "minilmv2_loss"]

Pairs: TypeAlias = Annotated[
    Sequence[Sequence[int]] | None,
    Rule(
        lambda pairs: pairs is None or (len(pairs) > 0 and all(len(pair) == 2 and min(pair) >= 0 for pair in pairs)),
        "pairs of positions of the signals, such as [[0, 0], [1, 1]], or None",
    ),
]


@full_precision
def minilmv2_loss(
    student: Signal,
    teacher: Signal,
    *,
    mask: Tensor | None = None,
    relation_heads: Count = 48,
    pairs: Pairs = None,
    weights: Sequence[NonNegative] | None = None,
) -> Tensor:
    """KL between the scaled dot products of tokens, head by head; see :class:`MiniLMv2Loss`."""
    ours, theirs = tensors_of(student), tensors_of(teacher)
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"minilmv2_loss expects as many signals of the student as of the teacher: {shapes_of(student, teacher)}"
        )
    s = [as_tokens("minilmv2_loss", x, mask) for x in ours]
    t = [as_tokens("minilmv2_loss", x.detach(), mask) for x in theirs]
    if len({x.values.shape[:2] for x in (*s, *t)}) > 1:
        raise ValueError(f"minilmv2_loss expects as many tokens in all signals: {shapes_of(student, teacher)}")
    for x in (*s, *t):
        if x.values.shape[2] % relation_heads:
            raise ValueError(
                f"minilmv2_loss splits each token into relation_heads={relation_heads} parts of equal width, "
                f"{shapes_of(student, teacher)}: choose a number that divides both widths"
            )
    chosen = [(n, n) for n in range(len(s))] if pairs is None else [(int(a), int(b)) for a, b in pairs]
    shares = [1 / len(chosen)] * len(chosen) if weights is None else list(weights)
    if len(shares) != len(chosen) or max(max(pair) for pair in chosen) >= len(s):
        raise ValueError(
            f"minilmv2_loss expects a weight for each pair, of the {len(s)} signals given, "
            f"got pairs {chosen} and weights {shares}"
        )
    first = t[0]
    kept = (
        first.values.new_ones(first.values.shape[:2]) if first.places is None else first.places.to(first.values.dtype)
    )
    columns = None if mask is None else kept[:, None, None]
    total = kept.sum(dim=1)
    parts = []
    for share, (a, b) in zip(shares, chosen, strict=True):
        ours_ab, theirs_ab = (_scores(side[a], side[b], relation_heads) for side in (s, t))
        by_token = relation_divergence(ours_ab, theirs_ab, columns).mean(dim=1)
        by_sample = (by_token * kept).sum(dim=1) / total.masked_fill(total == 0, 1)
        parts.append(share * masked_mean(by_sample, sample_weights(first, mask)))
    return torch.stack(parts).sum()


def _scores(a: Tokens, b: Tokens, heads: int) -> Tensor:
    """(B, heads, N, N)."""
    first, second = (x.values.unflatten(2, (heads, -1)).transpose(1, 2) for x in (a, b))  # type: ignore[no-untyped-call]
    scores: Tensor = first @ second.mT / first.shape[-1] ** 0.5
    return scores


@hyperparameters
class MiniLMv2Loss(Loss):
    r"""Tokens attend to each other in the student as in the teacher: by queries, by keys and by values.

    With X queries, keys or values of a layer, split into A relation heads of width d:

    .. math:: L = \sum_{X \in \{Q, K, V\}} w_X \frac1N \sum_{i=1}^N \frac{1}{A |x_i|} \sum_{a, p}
        \mathrm{KL}\left(\mathrm{softmax}(X^t_a {X^t_a}^\top / \sqrt{d_t})_p \,\|\,
        \mathrm{softmax}(X^s_a {X^s_a}^\top / \sqrt{d_s})_p\right)

    A mean over the tokens of a sequence that count, then over sequences. Widths and numbers of attention heads of both
    networks may differ, as both are split into the same number of relation heads. No parameters, and
    no gradient for the teacher.

    Signals: one to any number a network, usually queries, keys and values of one layer: tokens (B, N, C), or maps
    (B, C, H, W), whose places are tokens. A mask (B, N) is the attention mask: what it leaves out is neither a row nor
    a column.

    Paper: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers", Findings of ACL 2021, arXiv:2012.15828: 48 relation heads, the last layer of the student from an
    upper middle one of the teacher (the last of BERT-base), weights 1/3. The relations of MiniLM (2020) are
    ``pairs=[[0, 1], [2, 2]]`` with as many relation heads as attention heads.

    Use when: a transformer teaches a smaller one of any width, before the task is known; one layer is enough.

    Args:
        relation_heads: A; it must divide the width of every signal.
        pairs: which signal is related to which, by position; None for each to itself.
        weights: w of each pair; None for equal ones that sum to 1.

    Raises:
        ValueError: a bad hyperparameter, signals that cannot be paired, NaN or infinite values.

    Example:
        >>> student, teacher = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 12)
        >>> MiniLMv2Loss(relation_heads=4)(list(student), list(teacher)).shape
        torch.Size([])
    """

    relation_heads: Count = 48
    pairs: Pairs = None
    weights: Sequence[NonNegative] | None = None

    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return minilmv2_loss(student, teacher, mask=mask, **self.hyperparameters)
