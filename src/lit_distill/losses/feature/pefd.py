"""Projector ensemble feature distillation (Chen et al., NeurIPS 2022): the direction of a mean of projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, SizedLoss, hyperparameters
from lit_distill.losses.feature._maps import apply_layer, shapes_of
from lit_distill.losses.feature._tokens import Tokens, pooled_tokens, token_pairs
from lit_distill.losses.feature.regression import regression_loss

__all__ = ["PEFDLoss", "pefd_loss"]


@full_precision
def pefd_loss(projected: Sequence[Tensor], teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """One minus the cosine between the mean of rectified projections and the teacher's features; see :class:`PEFDLoss`.

    Args:
        projected: what each projector gives: vectors (B, C) or tokens (B, N, C).
        teacher: the same shape.
        mask: which places count: (B,) or (B, N).

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> round(pefd_loss([torch.tensor([[1.0, -9.0]]), torch.tensor([[0.0, 1.0]])], torch.ones(1, 2)).item(), 6)
        0.0
    """
    mean = torch.stack([x.relu() for x in projected]).mean(dim=0)
    return regression_loss(mean, teacher, mask=mask, distance="cosine")


@hyperparameters
class PEFDLoss(SizedLoss):
    r"""Projector ensemble: several projectors of the student, their mean in the direction of the teacher's feature.

    With P_k the q projectors, linear layers with a ReLU each:

    .. math:: L = \frac1N \sum_n \left(1 - \cos\left(\tfrac1q \textstyle\sum_k P_k(s_n), \; t_n\right)\right)

    A mean over samples. A projection of zeros has the cosine 0. The projectors start differently, are sized from an
    example batch, trained and saved with the run.

    Signals: vectors (B, C), or maps (B, C, H, W) and tokens (B, N, C), which are averaged over their places first,
    unless ``pooled`` is off. A mask has (B,), (B, H, W) or (B, N).

    Paper: Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022, arXiv:2210.15274. Matches
    its authors' program and PaddleClas: q = 3, weight 25 on the feature in front of the classifier beside the
    cross-entropy, and no divergence of logits.

    Use when: one simple term on the embedding; also where the widths agree.

    Args:
        projectors: q.
        pooled: average over places first; else each place counts by itself, of one number on both sides.
        skip: leading tokens of tokens (B, N, C) to leave out: class tokens, registers.

    Raises:
        ValueError: a bad hyperparameter, or signals that do not fit what the loss was built for.

    Example:
        >>> student, teacher = torch.randn(4, 8), torch.randn(4, 16)
        >>> loss = PEFDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    projectors: Count = 3
    pooled: bool = True
    skip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = nn.ModuleList()

    @property
    def is_built(self) -> bool:
        """Whether the projectors exist."""
        return bool(self.layers)

    def build(self, example: Example) -> None:
        """Create the projectors.

        Raises:
            ValueError: signals that cannot be paired, or the loss was built for other widths.
        """
        ours, theirs = self._tokens(example.student, example.teacher)  # type: ignore[arg-type]
        widths = ours.values.shape[2], theirs.values.shape[2]
        if not self.layers:
            self.layers.extend(nn.Linear(*widths) for _ in range(self.projectors))
            self.to(ours.values.device)
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        if (first.in_features, first.out_features) != widths:
            raise ValueError(
                "PEFDLoss was built for (student, teacher) widths "
                f"{(first.in_features, first.out_features)}, got {widths}"
            )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        ours, theirs = self._tokens(student, teacher, mask)
        if ours.values.shape[1] != theirs.values.shape[1]:
            raise ValueError(f"PEFDLoss expects features of the same places: {shapes_of(student, teacher)}")
        return pefd_loss([apply_layer(layer, ours.rows) for layer in self.layers], theirs.rows, mask=theirs.mask)

    def _tokens(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> tuple[Tokens, Tokens]:
        ((ours, theirs),) = token_pairs("PEFDLoss", student, teacher, mask, skip=self.skip)
        return (pooled_tokens(ours), pooled_tokens(theirs)) if self.pooled else (ours, theirs)
