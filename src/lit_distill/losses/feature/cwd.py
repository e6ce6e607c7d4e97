"""Channel-wise distillation (Shu et al., ICCV 2021): where each channel is active."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature._tokens import Tokens, token_pairs

__all__ = ["CWDLoss", "cwd_loss"]

Over: TypeAlias = Literal["positions", "channels"]
Distance: TypeAlias = Literal["kl", "mse"]


@full_precision
def cwd_loss(
    student: Signal,
    teacher: Signal,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 4.0,
    over: Over = "positions",
    distance: Distance = "kl",
) -> Tensor:
    """Divergence of each channel's softmax over positions, summed over layers; see :class:`CWDLoss`.

    Args:
        student: maps (B, C, H, W) or (B, C, T, H, W), or tokens (B, N, C); or a list of layers.
        teacher: the same shapes.
        mask: which positions count: (B,), (B, H, W) or (B, N).
        temperature: divides the activations.
        over: what a softmax runs over.
        distance: ``kl``, or ``mse``, the squared difference of probabilities.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, a softmax of one value, or a result that is not finite.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([0.0, 4.0]).expand(1, 2, 1, 2)
        >>> round(cwd_loss(student, teacher).item(), 4)  # 16 KL((0.27, 0.73) || (0.5, 0.5))
        1.7751
    """
    pairs = token_pairs("cwd_loss", student, teacher, mask, alike=True)
    if any(s.values.shape[1 if over == "positions" else 2] == 1 for s, _ in pairs):
        raise ValueError(
            f"cwd_loss expects at least two {over}, of which its softmax makes shares: {shapes_of(student, teacher)}"
        )
    layers = [_between(s, t, temperature, over, distance) for s, t in pairs]
    return temperature**2 * torch.stack(layers).sum()


def _between(student: Tokens, teacher: Tokens, temperature: float, over: Over, distance: Distance) -> Tensor:
    s, t = student.values / temperature, teacher.values / temperature
    if over == "channels":
        rows = _distances(s.log_softmax(dim=2), t.log_softmax(dim=2), torch.ones_like(s), distance)
        return masked_mean(rows.flatten(), student.mask)
    samples, places = student.weights()
    weights = places[:, None]
    log_weights = weights.masked_fill(weights == 0, 1).log().masked_fill(weights == 0, -torch.inf)
    log_s, log_t = (x.mT - (x.mT + log_weights).logsumexp(dim=2, keepdim=True) for x in (s, t))
    there = weights != 0
    channels = _distances(log_s.where(there, 0.0), log_t.where(there, 0.0), weights, distance)
    return masked_mean(channels.mean(dim=1), samples)


def _distances(log_s: Tensor, log_t: Tensor, weights: Tensor, distance: Distance) -> Tensor:
    """Sums over the last dimension, of weights."""
    each = (log_s.exp() - log_t.exp()).square() if distance == "mse" else log_t.exp() * (log_t - log_s)
    return (weights * each).sum(dim=-1)


@hyperparameters
class CWDLoss(Loss):
    r"""Channel-wise distillation: the softmax of a channel over the positions says where it looks.

    With :math:`\phi(x_c)_i = \exp(x_{ci}/T) / \sum_j \exp(x_{cj}/T)` over the positions of channel c:

    .. math:: L = \frac{T^2}{N C} \sum_n \sum_c \sum_i \phi(t_{nc})_i \log \frac{\phi(t_{nc})_i}{\phi(s_{nc})_i}

    A mean over samples and channels, a sum over positions and layers. Positions that do not count have no share, a
    sample without any does not count. ``over="channels"`` is the usual divergence of each position, a mean over them.

    Signals: maps (B, C, H, W) or (B, C, T, H, W), or tokens (B, N, C), of one shape on both sides, one a network or a
    list: logits of a segmentation network, features of a pyramid. Channels that differ need a 1x1 convolution in the
    student.

    Paper: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256: weight 3
    for logits, 50 for features, T = 4. mmrazor weighs logits 5 and the levels of a pyramid 10 at T = 1. The authors'
    ``spatial`` is ``over="channels"``, their ``mse`` has no temperature.

    Use when: the student predicts densely, as in segmentation and detection: a channel's size does not matter, only
    where it is large.

    Args:
        temperature: T, above 0.
        over: ``positions`` of a channel, or ``channels`` of a position.
        distance: ``kl``, or ``mse``, the squared difference of the probabilities.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, or a softmax of one value.

    Example:
        >>> CWDLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
        tensor(0.)
    """

    temperature: Positive = 4.0
    over: Over = "positions"
    distance: Distance = "kl"

    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return cwd_loss(student, teacher, mask=mask, **self.hyperparameters)
