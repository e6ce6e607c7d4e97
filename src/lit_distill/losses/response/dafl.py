"""Data-free learning of student networks (Chen et al., ICCV 2019): what a generator's images do to the teacher."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import NonNegative
from lit_distill.losses._masks import without_masked
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import label_cross_entropy, logit_rows

__all__ = ["DAFLLoss", "dafl_loss"]

Activation: TypeAlias = Literal["abs", "norm"]


@full_precision
def dafl_loss(
    logits: Tensor,
    feature: Tensor,
    *,
    mask: Tensor | None = None,
    one_hot: NonNegative = 0.05,
    entropy: NonNegative = 5.0,
    activation: NonNegative = 0.01,
    activation_form: Activation = "abs",
    gather: bool = False,
) -> Tensor:
    """How confident, how balanced and how strong a network's answers to a batch are; see :class:`DAFLLoss`.

    Args:
        logits: (B, C), of the fixed teacher.
        feature: of the same samples, (B, ...).
        mask: which samples count, (B,).
        one_hot: weight of confidence.
        entropy: weight of balance.
        activation: weight of strength.
        activation_form: the mean absolute value, or the norm of the whole batch.
        gather: balance the classes of all processes together.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes of other samples, or a result that is not finite.

    Example:
        >>> logits = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
        >>> round(dafl_loss(logits, torch.ones(2, 3), activation=0.0).item(), 4)
        -1.5051
    """
    rows = logit_rows("dafl_loss", logits, logits, None, mask)
    if len(feature) != len(logits) or feature.ndim < 2 or logits.ndim != 2:
        raise ValueError(
            "dafl_loss expects logits and a feature of the same samples, "
            f"got {tuple(logits.shape)} and {tuple(feature.shape)}"
        )
    log_p = rows.student.log_softmax(dim=1)
    confidence = rows.mean(label_cross_entropy(log_p, log_p.detach().argmax(dim=1)))

    every, weights = log_p, rows.weights
    if gather:
        every, weights = gather_with_gradients(every), gather_with_gradients(weights)
    counts = weights > 0
    log_weights = weights.masked_fill(~counts, 1).log()[:, None]
    log_q = (every + log_weights).masked_fill(~counts[:, None], -math.inf).logsumexp(dim=0)
    log_q = log_q - weights.sum().clamp_min(torch.finfo(every.dtype).tiny).log()
    balance = (log_q.exp() * log_q.clamp_min(-1e30)).sum() / math.log(10)

    values = without_masked(feature.flatten(1), rows.mask)
    if activation_form == "abs":
        strength = rows.mean(values.abs().mean(dim=1))
    else:
        total = (values.square().sum(dim=1) * rows.weights).sum()
        strength = total.masked_fill(total == 0, 1).sqrt() * (total != 0)
    return one_hot * confidence + entropy * balance - activation * strength


@hyperparameters
class DAFLLoss(Loss):
    r"""Images without data: the teacher is sure of each, all classes come up alike, and its features respond.

    With p the probabilities of the N samples of a batch, q their mean and f a feature with D values a sample:

    .. math:: L = -\frac{a}{N} \sum_i \max_c \log p_{ic} + b \sum_c q_c \log_{10} q_c - \frac{c}{N D} \sum_i \|f_i\|_1

    a, b, c are ``one_hot``, ``entropy`` and ``activation``. The loss teaches a generator through a fixed teacher, whose
    outputs therefore keep their gradient. The mean q depends on the batch: under DDP ``gather`` makes it that of the
    global batch.

    Signals: logits (B, C), and a feature (B, ...) of the same network. A mask has (B,).

    Paper: Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv:1904.01186; the default weights are
    the authors' for CIFAR, as in mmrazor, with its decimal logarithm. ``activation_form="norm"`` is mmrazor's other
    form, the norm of the whole batch.

    Use when: the teacher's data are not available and a generator stands in for them; batches must hold more samples
    than there are classes.

    Args:
        one_hot: a, the weight of confidence.
        entropy: b, the weight of balance.
        activation: c, the weight of strength.
        activation_form: ``abs`` or ``norm``.
        gather: take the probabilities of all processes, with gradients.

    Raises:
        ValueError: a bad hyperparameter, signals of other samples, NaN or infinite values.

    Example:
        >>> DAFLLoss()(torch.randn(8, 3), torch.randn(8, 16)).shape
        torch.Size([])
    """

    teaches_both = True

    one_hot: NonNegative = 0.05
    entropy: NonNegative = 5.0
    activation: NonNegative = 0.01
    activation_form: Activation = "abs"
    gather: bool = False

    def forward(self, logits: Tensor, feature: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of logits and a feature of one network: a scalar."""
        return dafl_loss(logits, feature, mask=mask, **self.hyperparameters)
