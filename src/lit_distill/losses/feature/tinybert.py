"""TinyBERT (Jiao et al., Findings of EMNLP 2020): attention scores and hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative
from lit_distill.losses._masks import mask_of_rows
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature.regression import RegressionLoss

__all__ = ["TinyBERTLoss", "attention_scores_loss"]


@full_precision
def attention_scores_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, floor: float | None = -100.0
) -> Tensor:
    """Mean squared difference of attention scores, before the softmax.

    Args:
        student: scores (B, heads, N, N), divided by the root of the width as usual.
        teacher: the same shape.
        mask: which tokens count, (B,) or (B, N); a score counts where both of its tokens do.
        floor: what is at most this, on either side, was masked by the network: there it is 0, and counts. None to
            compare all scores as they are.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ, or the result is not finite.

    Example:
        >>> attention_scores_loss(torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), -1e4))
        tensor(0.)
    """
    if student.shape != teacher.shape or student.ndim != 4 or student.numel() == 0:
        raise ValueError(
            f"attention_scores_loss expects scores (B, heads, N, N) of one shape: {shapes_of(student, teacher)}"
        )
    pairs = None
    if mask is not None:
        shape = len(student), student.shape[2]
        kept = mask_of_rows("attention_scores_loss", mask, shape).reshape(shape).to(student.dtype)
        pairs = (kept[:, :, None] * kept[:, None])[:, None].expand_as(student)
        student, teacher = (x.masked_fill(pairs == 0, 0) for x in (student, teacher))
    if floor is not None:
        student, teacher = (x.masked_fill(x <= floor, 0) for x in (student, teacher))
    squares = (student - teacher).square()
    if pairs is None:
        return squares.mean()
    total = pairs.sum()
    return (squares * pairs).sum() / total.masked_fill(total == 0, 1)


@hyperparameters
class TinyBERTLoss(SizedLoss):
    r"""The student repeats the teacher's attention scores and, after one linear layer, its hidden states.

    With A the scores of attention before the softmax, H hidden states and W one linear layer for all of them:

    .. math:: L = a \sum_l \mathrm{mean} (A^s_l - A^t_l)^2 + b \sum_m \mathrm{mean} (W H^s_m - H^t_m)^2

    a and b are ``attention`` and ``hidden``. Means over all elements, or over those of the tokens that count; sums over
    layers. W is sized from an example batch, trained and saved with the run.

    Signals: a list a network. Signals (B, heads, N, N) are scores, which need as many heads on both sides; tokens
    (B, N, C) or vectors (B, C) are hidden states of one width a side, embeddings among them. Each is paired with the
    one at its place on the other side: of a teacher with k times as many layers, scores of layer k (i + 1) - 1 go with
    those of the student's layer i. A mask (B, N) is the attention mask.

    Paper: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020,
    arXiv:1909.10351, as in the authors' program: one projection for embeddings and hidden states, where the paper has
    one for each. Then, in a second stage, soft labels: SoftTargetCrossEntropy at temperature 1.

    Use when: a transformer teaches one with fewer and narrower layers, and its attention scores can be had.

    Args:
        attention: a, the weight of scores.
        hidden: b, the weight of hidden states.
        floor: scores of at most this were masked by the network and count as 0; None for none.
        projector: whether hidden states are projected; without, their widths must be equal.

    Raises:
        ValueError: a bad hyperparameter, or signals that cannot be paired.

    Example:
        >>> student = [torch.randn(2, 4, 5, 5), torch.randn(2, 5, 8)]
        >>> teacher = [torch.randn(2, 4, 5, 5), torch.randn(2, 5, 16)]
        >>> loss = TinyBERTLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    attention: NonNegative = 1.0
    hidden: NonNegative = 1.0
    floor: float | None = -100.0
    projector: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.regression = RegressionLoss(projector="linear" if self.projector else None, shared=True)
        self._built = False

    @property
    def is_built(self) -> bool:
        """Whether the projection exists; nothing is missing without hidden states."""
        return self._built or not self.projector

    def build(self, example: Example) -> None:
        """Create the projection for the width of the hidden states of ``example``.

        Raises:
            ValueError: the signals cannot be paired, or the loss was built for other widths.
        """
        _, states = self._pairs(example.student, example.teacher)
        if states[0]:
            self.regression.build(Example(*states))
        self._built = True

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        scores, states = self._pairs(student, teacher)
        parts = [
            self.attention * attention_scores_loss(s, t, mask=mask, floor=self.floor)
            for s, t in zip(*scores, strict=True)
        ]
        if states[0]:
            parts.append(self.hidden * self.regression(*states, mask=mask))
        return torch.stack(parts).sum()

    @staticmethod
    def _pairs(
        student: Signal, teacher: Signal
    ) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
        """Scores and hidden states of both networks."""
        ours, theirs = tensors_of(student), tensors_of(teacher)
        if [x.ndim for x in ours] != [x.ndim for x in theirs] or not ours or max(x.ndim for x in ours) > 4:
            raise ValueError(
                "TinyBERTLoss expects attention scores (B, heads, N, N) and hidden states (B, N, C) in the same order "
                f"on both sides: {shapes_of(student, teacher)}"
            )
        scores, states = (
            ([x for x in ours if (x.ndim == 4) == wanted], [x for x in theirs if (x.ndim == 4) == wanted])
            for wanted in (True, False)
        )
        return scores, states
