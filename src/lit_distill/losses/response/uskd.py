"""Universal self-knowledge distillation (Yang et al., ICCV 2023): soft labels from the student's own answers."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import NonNegative
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision, nan_unless_finite, upcast
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters, tensors_of
from lit_distill.losses.response._logits import label_cross_entropy, label_rows, logit_rows

__all__ = ["USKDLoss", "uskd_loss"]

Ranking: TypeAlias = Literal["probabilities", "log_probabilities"]

_EPS = 1e-6  # published, added where the ranking divides by 1 - p
_SMOOTHING = 0.1  # published, of the weak head's labels


@full_precision
def uskd_loss(
    student: Tensor,
    weak: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 0.1,
    mu: NonNegative = 0.005,
    ranking: Ranking = "probabilities",
    gather: bool = False,
) -> Tensor:
    """A network's answers against soft labels of its own; see :class:`USKDLoss`.

    Args:
        student: logits (N, C), or (N, T, C).
        weak: the weak head's logits, of the same shape.
        target: class indices, or class probabilities after mixing, of which the two largest count.
        mask: which rows count.
        alpha: weight of the target class.
        beta: weight of the other classes.
        mu: weight of the weak head.
        ranking: what the classes are ranked by.
        gather: compare confidences with those of all processes.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, labels that are no classes, or a result that is not finite.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(uskd_loss(logits, logits, torch.tensor([0]), alpha=1.0, beta=0.0, mu=0.0).item(), 4)
        0.0509
    """
    rows = logit_rows("uskd_loss", student, weak, None, mask)
    labels = label_rows("uskd_loss", rows, target)
    log_s, log_w = rows.student.log_softmax(dim=1), rows.teacher.log_softmax(dim=1)
    classes = log_s.shape[1]
    if labels.ndim == 1:
        index, value = labels[:, None], torch.ones_like(log_s[:, :1])
        smooth = torch.zeros_like(log_s).scatter(1, index, 1.0)
    else:
        value, index = labels.topk(min(2, classes), dim=1)
        smooth = labels
    log_target = log_s.gather(1, index)
    squares = log_target.detach().exp().square()
    of_all, of_mask = squares, rows.mask
    if gather:
        of_all = gather_with_gradients(squares)
        of_mask = None if rows.mask is None else gather_with_gradients(rows.weights)
    average = torch.stack([masked_mean(column, of_mask) for column in of_all.unbind(dim=1)])
    soft = ((squares + value - average) * (value != 0)).to(log_s.dtype)
    loss = alpha * -(soft * log_target).sum(dim=1)
    loss = loss + mu * label_cross_entropy(log_w, (1 - _SMOOTHING) * smooth + _SMOOTHING / classes)
    if classes > index.shape[1]:
        loss = loss + beta * _rest(rows.student, log_s, log_w, index, ranking)
    return rows.mean(loss) + nan_unless_finite(rows.student, rows.teacher)  # a ranking hides NaN


def _rest(logits: Tensor, log_s: Tensor, log_w: Tensor, index: Tensor, ranking: Ranking) -> Tensor:
    """Cross-entropy of the other classes with Zipf's law by their rank, one value a row."""
    rank = _share(log_w.detach().exp(), index)
    rank = rank + _share(log_s.detach() if ranking == "log_probabilities" else log_s.detach().exp(), index)
    position = rank.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    zipf = (position + 1).to(logits.dtype).reciprocal().scatter(1, index, 0.0)
    zipf = zipf / zipf.sum(dim=1, keepdim=True)
    own = torch.zeros_like(logits, dtype=torch.bool).scatter(1, index, True)
    # Minus infinity has no part in the softmax, and none in its gradient once its own logarithm is replaced by 0.
    log_rest = F.log_softmax(logits.masked_fill(own, -torch.inf), dim=1).masked_fill(own, 0.0)
    return -(zipf * log_rest).sum(dim=1)


def _share(p: Tensor, index: Tensor) -> Tensor:
    return p / (1 - p.gather(1, index).sum(dim=1, keepdim=True) + _EPS)


@hyperparameters
class USKDLoss(SizedLoss):
    r"""Self-distillation without a teacher: the student's confidences and ranks make the soft labels.

    With p the student's probabilities, w those of a weak head on a feature of the student's middle, y the label, and
    rank k_c of class c by :math:`\frac{w_c}{1 - w_y} + \frac{p_c}{1 - p_y}`, largest first:

    .. math::
        \begin{aligned}
        L &= \frac{1}{N} \sum_i -α \, \left(p_{iy}^2 + 1 - \tfrac{1}{N} \textstyle\sum_j p_{jy}^2\right) \log p_{iy}
            - β \sum_{c \ne y} z_{ic} \log \hat p_{ic} - μ \sum_c u_{ic} \log w_{ic} \\
        z_{ic} &= \frac{1/k_{ic}}{\sum_{d \ne y} 1/k_{id}}
        \end{aligned}

    p̂ is the softmax over the classes other than y, u the label smoothed by 0.1 over all classes. Averaged over samples;
    soft labels get no gradient. The weight of a target compares its confidence with the batch's: under DDP, ``gather``
    takes that of the global batch. It stands beside the cross-entropy with the labels at weight 1.

    Signals: a list of the student's logits (N, C) and a feature of its middle, (N, D) or (N, D, H, W), averaged over
    positions (and over the frames of a clip); and GroundTruth: class indices (N,), or class probabilities after
    mixing, of which the two largest count. The weak head is a linear layer sized from an example batch, trained and
    saved with the run.

    Paper: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", ICCV 2023. Its authors' program (cls_KD) reuses a variable, so that its ranking
    takes the logarithms of p, in the denominator too: ``ranking="log_probabilities"``.

    Use when: there is no teacher and no time to train one: it costs one linear layer.

    Args:
        alpha: α, the weight of the target class.
        beta: β, the weight of the other classes.
        mu: μ, the weight of the weak head.
        ranking: rank by ``probabilities``, or by the student's ``log_probabilities`` as the authors' program.
        gather: compare a confidence with those of all processes.

    Raises:
        ValueError: a bad hyperparameter, signals that do not fit, bad labels, NaN or infinite values.

    Example:
        >>> logits, feature = torch.zeros(2, 5), torch.randn(2, 8, 4, 4)
        >>> loss = USKDLoss()
        >>> loss.build(Example([logits, feature], torch.tensor([0, 3])))
        >>> loss([logits, feature], torch.tensor([0, 3])).shape
        torch.Size([])
    """

    alpha: NonNegative = 1.0
    beta: NonNegative = 0.1
    mu: NonNegative = 0.005
    ranking: Ranking = "probabilities"
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head: nn.Linear | None = None

    @property
    def is_built(self) -> bool:
        """Whether the weak head exists."""
        return self.head is not None

    def build(self, example: Example) -> None:
        """Create the weak head.

        Raises:
            ValueError: the first signal is no pair of logits and a feature, or the head was built for other sizes.
        """
        logits, feature = _logits_and_feature(example.student)
        sizes = feature.shape[1], logits.shape[1]
        if self.head is None:
            self.head = nn.Linear(*sizes).to(logits.device)
        elif (self.head.in_features, self.head.out_features) != sizes:
            raise ValueError(
                f"USKDLoss was built for (channels, classes) {(self.head.in_features, self.head.out_features)}, "
                f"got {sizes}"
            )

    @full_precision
    def forward(self, student: Signal, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        assert self.head is not None
        logits, feature = _logits_and_feature(student)
        pooled = feature.flatten(2).mean(dim=2) if feature.ndim > 2 else feature
        pooled = pooled.unflatten(0, (len(logits), -1)).mean(dim=1)  # type: ignore[no-untyped-call]
        weak = upcast(self.head(pooled.to(self.head.weight.dtype)))
        return uskd_loss(logits, weak.to(logits.dtype), target, mask=mask, **self.hyperparameters)


def _logits_and_feature(signal: Signal) -> tuple[Tensor, Tensor]:
    parts = tensors_of(signal)
    if len(parts) == 2:
        logits, feature = parts
        if logits.ndim == 2 and feature.ndim > 1 and len(logits) and len(feature) % len(logits) == 0:
            return logits, feature
    raise ValueError(
        "USKDLoss expects the student's logits (N, C) and a feature of its middle, (N, D) or (N, D, H, W), got "
        f"{[tuple(part.shape) for part in parts]}: pair: [[Student, Student.<stage>], GroundTruth]"
    )
