"""Similarities between the tokens of a sample, as LightlyTrain distills them."""

from __future__ import annotations

from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature._tokens import as_tokens, resized_tokens
from lit_distill.losses.feature.regression import Projector
from lit_distill.losses.relation._projected import ProjectedLoss
from lit_distill.losses.relation._rows import relation_divergence

__all__ = ["TokenRelationLoss", "token_relation_loss"]


@full_precision
def token_relation_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, temperature: Positive = 0.07
) -> Tensor:
    """KL between the rows of cosines of a sample's tokens; see :class:`TokenRelationLoss`.

    Args:
        student: tokens (B, N, C) or maps (B, C, H, W).
        teacher: as many of the same samples, of any width.
        mask: which places count: (B,), (B, N) or (B, H, W).
        temperature: of both sides.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the places differ, or the result is not finite.

    Example:
        >>> import torch
        >>> tokens = torch.eye(3)[None]
        >>> token_relation_loss(tokens, 2 * tokens).item()
        0.0
    """
    ours, theirs = (as_tokens("token_relation_loss", x, mask) for x in (student, teacher))
    if ours.values.shape[:2] != theirs.values.shape[:2]:
        raise ValueError(f"token_relation_loss expects as many tokens on both sides: {shapes_of(student, teacher)}")
    s, t = (unit_vectors(tokens.values) for tokens in (ours, theirs))
    columns = None if theirs.places is None else theirs.places[:, None]
    rows = relation_divergence(s @ s.mT / temperature, t @ t.mT / temperature, columns)
    return masked_mean(rows.flatten(), theirs.mask)


@hyperparameters
class TokenRelationLoss(ProjectedLoss):
    r"""Places of an image that look alike to the teacher look alike to the student.

    With s_p, t_p the features of place p of a sample, of length 1, s after a linear projector:

    .. math:: L = \frac{1}{N P} \sum_{i, p} \mathrm{KL}\left(\mathrm{softmax}_q(t_p^\top t_q / τ) \,\|\,
        \mathrm{softmax}_q(s_p^\top s_q / τ)\right)

    Averaged over all places that count, no factor τ²; a place meets itself, with similarity 1 on both sides. Student
    maps, and square grids of tokens, are projected, then brought to the teacher's size bilinearly. Memory grows with
    the squared number of places.

    Signals: one feature a network, tokens (B, N, C) or maps (B, C, H, W) or (B, C, T, H, W). A mask has (B,), or the
    places of both sides, which must then be of one number.

    Paper: the local part of LightlyTrain's ``distillationv3``, computed from its published values: with
    :class:`QueueRelationLoss` of the global feature, both at weight 1. Relations between the places of one sample are
    those of Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, as distributions.

    Use when: a foundation model teaches dense features, without labels, and widths and sizes differ.

    Args:
        temperature: τ.
        projector: ``linear``, ``mlp``, ``orthogonal``, or None for equal widths.

    Raises:
        ValueError: a bad hyperparameter, features that cannot be paired, NaN or infinite features.

    Example:
        >>> import torch
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(2, 8, 3, 3), torch.randn(2, 16, 6, 6)
        >>> loss = TokenRelationLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    pools = False
    initial_std = 0.02

    temperature: Positive = 0.07
    projector: Projector | None = "linear"

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        ours, theirs = self._features(student, teacher, mask)
        resized = resized_tokens("TokenRelationLoss", ours._replace(values=self._projected(ours)), theirs)
        return token_relation_loss(resized, theirs.values, mask=theirs.places, temperature=self.temperature)
