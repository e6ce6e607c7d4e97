"""Prime-aware adaptive distillation (Zhang et al., ECCV 2020): hard samples count less, by a learned variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, SizedLoss, hyperparameters
from lit_distill.losses.feature._maps import apply_layer, shapes_of
from lit_distill.losses.feature._tokens import as_tokens, pooled_tokens, token_pairs

__all__ = ["PADLoss", "pad_loss"]


@full_precision
def pad_loss(
    student: Tensor, teacher: Tensor, log_variance: Tensor, *, mask: Tensor | None = None, eps: Positive = 1e-6
) -> Tensor:
    """Squared error in units of a predicted variance, which has its price; see :class:`PADLoss`.

    Args:
        student: features: vectors (B, C), tokens (B, N, C) or maps (B, C, H, W).
        teacher: the same shape.
        log_variance: the same shape, of any sign.
        mask: which places count: (B,), (B, N) or (B, H, W).
        eps: added to the variance.

    Returns:
        The loss, a scalar in float32 or better. It may be negative.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> round(pad_loss(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2)).item(), 4)
        1.0
    """
    if not student.shape == teacher.shape == log_variance.shape:
        raise ValueError(
            "pad_loss expects features and log-variances of one shape, got log-variances "
            f"{tuple(log_variance.shape)} and: {shapes_of(student, teacher)}"
        )
    tokens = [as_tokens("pad_loss", x, mask) for x in (student, teacher, log_variance)]
    s, t, v = (x.rows for x in tokens)
    # 1 / (eps + exp(v)) by its logarithm: exp(v) may overflow.
    precision = (-torch.logaddexp(v, v.new_full((), math.log(eps)))).exp()
    return masked_mean(((t - s).square() * precision + v).mean(dim=1), tokens[0].mask)


@hyperparameters
class PADLoss(SizedLoss):
    r"""Prime-aware adaptive distillation: a branch says how uncertain each feature is, and what is counts less.

    With s, t the features of a sample and v = BatchNorm(W s + b) a log-variance of each of the d features:

    .. math:: L = \frac{1}{N d} \sum_i \sum_j \left( \frac{(t_{ij} - s_{ij})^2}{ε + \exp(v_{ij})} + v_{ij} \right)

    A mean over everything, and no ½ as a Gaussian would have. It may fall below 0. The branch's gradient reaches the
    student too. Where the widths differ, a linear layer brings the student to the teacher's first. The layers are
    sized from an example batch, trained and saved with the run.

    Signals: vectors (B, C), or tokens (B, N, C) and maps (B, C, H, W), which are averaged over their places.

    Paper: Zhang et al., "Prime-Aware Adaptive Distillation", ECCV 2020, arXiv:2008.01458. Matches torchdistill, which
    trains with a squared error and the cross-entropy for 10 epochs, then with this and the cross-entropy for 10 more,
    all of weight 1 at a learning rate of 1e-4.

    Use when: the pooled features of a trained student are refined, and some samples are beyond it.

    Args:
        eps: ε, above 0.

    Raises:
        ValueError: a bad hyperparameter, or signals that do not fit what the loss was built for.

    Example:
        >>> student, teacher = torch.randn(4, 8), torch.randn(4, 16)
        >>> loss = PADLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    eps: Positive = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projector: nn.Linear | None = None
        self.variance: nn.Sequential | None = None
        self._widths: tuple[int, int] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the branch exists."""
        return self.variance is not None

    def build(self, example: Example) -> None:
        """Create the branch.

        Raises:
            ValueError: more than one layer, or the loss was built for other widths.
        """
        student, teacher = self._vectors(example.student, example.teacher)  # type: ignore[arg-type]
        widths = student.shape[1], teacher.shape[1]
        if self._widths not in (None, widths):
            raise ValueError(f"PADLoss was built for (student, teacher) widths {self._widths}, got {widths}")
        if self._widths is None:
            if widths[0] != widths[1]:
                self.projector = nn.Linear(*widths)
            self.variance = nn.Sequential(nn.Linear(widths[1], widths[1]), nn.BatchNorm1d(widths[1]))
            self._widths = widths
            self.to(student.device)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        assert self.variance is not None
        ours, theirs = self._vectors(student, teacher)
        if self.projector is not None:
            ours = apply_layer(self.projector, ours)
        return pad_loss(ours, theirs, apply_layer(self.variance, ours), eps=self.eps)

    def _vectors(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        ((ours, theirs),) = token_pairs("PADLoss", student, teacher)
        return pooled_tokens(ours).rows, pooled_tokens(theirs).rows
