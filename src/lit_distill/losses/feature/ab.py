"""Activation boundaries (Heo et al., AAAI 2019): the student's units are active where the teacher's are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import NonNegative
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision, nan_unless_finite
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._maps import ConnectedMapsLoss, conv_bn
from lit_distill.losses.feature._tokens import token_pairs

__all__ = ["ABLoss", "ab_loss"]


@full_precision
def ab_loss(student: Signal, teacher: Signal, *, mask: Tensor | None = None, margin: NonNegative = 1.0) -> Tensor:
    """Squared hinge on the side of 0 where the teacher's unit is, summed over layers; see :class:`ABLoss`.

    Args:
        student: features before the activation: maps (B, C, H, W), tokens (B, N, C), vectors (B, C); or a list.
        teacher: the same shapes.
        mask: which places count: (B,), (B, H, W) or (B, N).
        margin: how far on its side of 0 a unit must be.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> ab_loss(torch.tensor([[0.5, 2.0, 0.5]]), torch.tensor([[3.0, 3.0, -3.0]]))  # 0.5² + 0 + 1.5²
        tensor(2.5000)
    """
    layers = []
    for ours, theirs in token_pairs("ab_loss", student, teacher, mask, alike=True):
        s, t = ours.rows, theirs.rows
        active = t > 0
        short = torch.where(active, margin - s, margin + s)
        wrong = torch.where(active, s <= margin, s > -margin)
        error = torch.where(wrong, short, 0 * s).square().sum(dim=1)  # times 0, so that NaN stays
        layers.append(masked_mean(error, ours.mask) * ours.values.shape[1] + nan_unless_finite(t))
    return torch.stack(layers).sum()


@hyperparameters
class ABLoss(ConnectedMapsLoss):
    r"""Activation boundaries: a student's unit is pushed past a margin on the side of 0 where the teacher's unit is.

    With s the connected student's features and t the teacher's, before the activation:

    .. math:: L = \frac1N \sum_n \sum_j \begin{cases}
        (s_{nj} - m)^2 & t_{nj} > 0,\; s_{nj} \le m \\
        (s_{nj} + m)^2 & t_{nj} \le 0,\; s_{nj} > -m \\
        0 & \text{else} \end{cases}

    A sum over channels, positions and layers, a mean over samples (under a mask, the mean over the places that count
    times the number of places). The teacher enters by its signs alone and gets no gradient. A connector, a 1x1
    convolution without bias and BatchNorm, brings the student to the teacher's channels; it is sized from an example
    batch, trained and saved with the run.

    Signals: feature maps (N, C, H, W) before the activation (``….conv``, ``….bn``, ``….act:input``), one a network or
    a list; sizes must be equal. With ``connect=False`` tokens (B, N, C) and vectors (B, C) too, of equal channels.
    After a ReLU, as torchdistill taps, a unit of the teacher that is 0 counts as inactive.

    Paper: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI
    2019, arXiv:1811.03233. torchdistill trains with it alone for an epoch at weight 1, on four stages, then with the
    cross-entropy alone. The authors and mmrazor weigh it 3/1000 times 1/8, 1/4, 1/2 and 1 from the first stage to the
    last.

    Use when: the student is initialized from the teacher's features, before it trains on labels.

    Args:
        margin: m, at least 0.
        connect: whether there is a connector.

    Raises:
        ValueError: a bad hyperparameter, or layers that cannot be compared.

    Example:
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = ABLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    margin: NonNegative = 1.0
    connect: bool = True

    def _connector(self, ours: int, theirs: int) -> nn.Module:
        return conv_bn(ours, theirs)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return ab_loss(*self._connected(student, teacher), mask=mask, margin=self.margin)
