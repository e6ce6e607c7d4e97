"""Regression of the teacher's features from the student's, through a projector of its own: vectors, tokens, maps."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lit_distill.losses._hyperparameters import Count, NonNegative, Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import standardized, unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters
from lit_distill.losses.feature._maps import apply_layer, shapes_of
from lit_distill.losses.feature._tokens import Tokens, as_tokens, pooled_tokens, resized_tokens, token_pairs

__all__ = ["RegressionLoss", "regression_loss"]

Distance: TypeAlias = Literal["mse", "cosine", "smooth_l1"]
Projector: TypeAlias = Literal["linear", "mlp", "orthogonal"]
Scale: TypeAlias = Literal["layer_norm", "length", "standardized"]


@full_precision
def regression_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    distance: Distance = "mse",
    delta: Positive = 1.0,
) -> Tensor:
    """Distance between projected student features and the teacher's, a mean over the places that count.

    Args:
        student: vectors (B, C), tokens (B, N, C) or maps (B, C, H, W).
        teacher: the same shape.
        mask: which places count: (B,), (B, N) or (B, H, W).
        distance: ``mse`` and ``smooth_l1`` are means over channels, ``cosine`` is one minus the cosine of a place.
        delta: where ``smooth_l1`` goes from square to straight.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ, or the result is not finite.

    Example:
        >>> regression_loss(torch.zeros(2, 4, 8), torch.ones(2, 4, 8))
        tensor(1.)
    """
    if student.shape != teacher.shape:
        raise ValueError(f"regression_loss expects features of one shape: {shapes_of(student, teacher)}")
    ours, theirs = (as_tokens("regression_loss", x, mask) for x in (student, teacher))
    return masked_mean(_distances(ours.rows, theirs.rows, distance, delta), ours.mask)


def _distances(student: Tensor, teacher: Tensor, distance: Distance, delta: float) -> Tensor:
    """One value a row."""
    if distance == "cosine":
        return 1 - (unit_vectors(student) * unit_vectors(teacher)).sum(dim=-1)
    if distance == "mse":
        return (student - teacher).square().mean(dim=-1)
    return F.smooth_l1_loss(student, teacher, reduction="none", beta=delta).mean(dim=-1)


def scaled(rows: Tensor, scale: Scale | None, mask: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Rows (N, C) on one scale: each by LayerNorm without weights or by its length, or each channel over the rows."""
    if scale == "layer_norm":
        return F.layer_norm(rows, rows.shape[-1:], eps=eps)
    if scale == "length":
        return unit_vectors(rows)
    if scale is None:
        return rows
    return standardized(rows, 0, eps=eps, weights=None if mask is None else mask.to(rows.dtype)[:, None])


def make_projector(kind: Projector, ours: int, theirs: int, hidden: int | None = None) -> nn.Module:
    """Layers from ``ours`` to ``theirs`` channels in the last dimension.

    ``orthogonal`` has no bias, and orthonormal columns (rows, where it narrows) by torch's parametrization: a matrix
    exponential for a square, Householder reflections otherwise; so it keeps all lengths and angles of what it widens.
    """
    if kind == "linear":
        return nn.Linear(ours, theirs)
    if kind == "mlp":
        width = hidden or theirs
        return nn.Sequential(nn.Linear(ours, width), nn.GELU(), nn.Linear(width, theirs))
    projector: nn.Module = parametrizations.orthogonal(nn.Linear(ours, theirs, bias=False))
    return projector


@hyperparameters
class RegressionLoss(SizedLoss):
    r"""Features of the teacher are predicted from the student's by a projector, place by place.

    With s, t the features of a place (a vector, a token, a position of a map) and P the projector:

    .. math:: L = \frac{1}{|M|} \sum_{i \in M} d\left(P(s_i), n(t_i)\right), \quad
        d = \tfrac1C \|a - b\|^2, \; 1 - \cos(a, b) \;\text{ or }\; \tfrac1C \sum_c \mathrm{smooth}_{L1}(a_c - b_c)

    M are the places that count, all by default. n scales the teacher: ``layer_norm`` or ``length`` by place,
    ``standardized`` by channel over the batch. Layers are summed. Projectors are sized from an example batch, trained
    and saved with the run; one alone serves all layers where ``shared``.

    Signals: vectors (B, C), tokens (B, N, C) or maps (B, C, H, W) or (B, C, T, H, W), one a network or a list of equal
    length. Maps and square grids of tokens of other sizes are brought to the teacher's bilinearly, after the projector.
    A mask has (B,), (B, N) or (B, H, W); it needs places of one number on both sides.

    Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in the form that transformers take: hidden
    states as in TinyBERT (Jiao et al., 2020: ``shared``), foundation features as in LightlyTrain (``linear``, MSE), and
    Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024, arXiv:2403.06213
    (``projector="orthogonal"``, ``scale="layer_norm"``, ``distance="smooth_l1"``, ``pooled``, at weight 1; for
    detection both sides ``standardized`` and no projector).

    Use when: hidden states or features of a foundation model are to be learned, whatever the widths, and places
    correspond. ``orthogonal`` cannot hide a difference in the projector; scale the teacher where its channels differ
    much in size.

    Args:
        projector: ``linear``, ``mlp`` (one hidden layer, GELU), ``orthogonal``, or None for equal widths.
        distance: ``mse``, ``cosine`` or ``smooth_l1``.
        scale: of the teacher, ``layer_norm``, ``length``, ``standardized``, or None.
        scale_student: scale the projected student alike.
        delta: where ``smooth_l1`` goes from square to straight.
        hidden: width of the hidden layer of ``mlp``; None for the teacher's.
        shared: one projector for all layers, which then have one width a side.
        eps: of ``layer_norm`` (under the root) and ``standardized`` (added to the standard deviation).
        pooled: average each signal over its places that count first, and compare the vectors.
        skip: leading tokens of tokens (B, N, C) to leave out: class tokens, registers.

    Raises:
        ValueError: a bad hyperparameter, layers that cannot be paired, or widths that no projector joins.

    Example:
        >>> student, teacher = torch.randn(2, 9, 8), torch.randn(2, 16, 4, 4)
        >>> loss = RegressionLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    projector: Projector | None = "linear"
    distance: Distance = "mse"
    scale: Scale | None = None
    scale_student: bool = False
    delta: Positive = 1.0
    hidden: Count | None = None
    shared: bool = False
    eps: NonNegative = 1e-5
    pooled: bool = False
    skip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projectors = nn.ModuleList()
        self._widths: list[tuple[int, int]] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the projectors exist; nothing is missing without one."""
        return self._widths is not None or self.projector is None

    def build(self, example: Example) -> None:
        """Create the projectors for the widths of ``example``.

        Raises:
            ValueError: the layers cannot be paired, or the loss was built for other widths.
        """
        pairs = self._pairs(example.student, example.teacher)
        widths = [(s.values.shape[2], t.values.shape[2]) for s, t in pairs]
        if self._widths not in (None, widths):
            raise ValueError(f"RegressionLoss was built for (student, teacher) widths {self._widths}, got {widths}")
        if self.shared and len(set(widths)) > 1:
            raise ValueError(f"RegressionLoss: a shared projector needs layers of one width a side, got {widths}")
        if self.projector is None and any(ours != theirs for ours, theirs in widths):
            raise ValueError(f"RegressionLoss without a projector needs equal widths, got {widths}")
        if self._widths is None:
            made = widths[:1] if self.shared else widths
            if self.projector is not None:
                self.projectors.extend(make_projector(self.projector, *width, hidden=self.hidden) for width in made)
            self._widths = widths
            self.to(pairs[0][0].values.device)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        losses = []
        for number, (ours, theirs) in enumerate(self._pairs(student, teacher, mask)):
            projected = ours
            if self.projector is not None:
                layer = self.projectors[0 if self.shared else number]
                projected = ours._replace(values=apply_layer(layer, ours.values))
            predicted = resized_tokens("RegressionLoss", projected, theirs).flatten(0, 1)
            if predicted.shape != theirs.rows.shape:
                raise ValueError(
                    f"RegressionLoss expects features of equal width and places: {shapes_of(student, teacher)}"
                )
            if self.scale_student:
                predicted = scaled(predicted, self.scale, theirs.mask, eps=self.eps)
            wanted = scaled(theirs.rows, self.scale, theirs.mask, eps=self.eps)
            losses.append(masked_mean(_distances(predicted, wanted, self.distance, self.delta), theirs.mask))
        return torch.stack(losses).sum()

    def _pairs(self, student: Signal, teacher: Signal, mask: Tensor | None = None) -> list[tuple[Tokens, Tokens]]:
        pairs = token_pairs("RegressionLoss", student, teacher, mask, skip=self.skip)
        return [(pooled_tokens(s), pooled_tokens(t)) for s, t in pairs] if self.pooled else pairs
