"""What the response losses share about logits: rows of classes, which of them count, what a label is.

The maths of a loss is written for rows (N, C) by :func:`logit_rows`, and ends in :meth:`LogitRows.mean`: so it takes
clips, tokens and maps, and masks.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._masks import mask_of_rows, masked_mean, without_masked
from lit_distill.losses._normalized import standardized
from lit_distill.losses._numerics import can_look, kl_from_log_probabilities, require_classes, require_same_shape
from lit_distill.losses.base import class_indices

Divergence: TypeAlias = Literal["kl", "reverse_kl", "js", "mean_kl"]


class LogitRows(NamedTuple):
    """Logits of student and teacher as rows of classes; rows that do not count are zeros."""

    student: Tensor
    """(N, C)."""
    teacher: Tensor
    """(N, C)."""
    mask: Tensor | None
    """The weight of each row (N,), or None where all count alike."""
    shape: tuple[int, ...] = ()
    """The dimensions that the rows had."""

    def gathered(self) -> LogitRows:
        """The rows of all processes, with gradients."""
        weights = None if self.mask is None else gather_with_gradients(self.weights)
        return LogitRows(gather_with_gradients(self.student), gather_with_gradients(self.teacher), weights)

    @property
    def weights(self) -> Tensor:
        """The weight of each row (N,), 1 where all count alike."""
        ones = self.student.new_ones(len(self.student))
        return ones if self.mask is None else self.mask.to(self.student.dtype)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of one value a row (N,) over the rows that count."""
        return masked_mean(values, self.mask)


def logit_rows(
    name: str,
    student: Tensor,
    teacher: Tensor,
    class_dim: int | None = None,
    mask: Tensor | None = None,
    *,
    one_class: bool = False,
) -> LogitRows:
    """Both signals as rows of classes: a clip's time steps, tokens or a map's pixels count as samples.

    Args:
        name: the function that asks, for messages.
        student: logits (B, C), (B, T, C), or of any shape with a ``class_dim``.
        teacher: logits of the same shape.
        class_dim: where the classes stand. None means the last dimension for two and three dimensions; with more,
            (B, C, H, W) and (B, T, S, C) look alike, so it must be given.
        mask: which rows count: of the signals' shape without the classes, or of its first dimensions.
        one_class: whether a single class will do, as where each is a yes or no by itself.

    Raises:
        ValueError: the shapes differ, hold no element or a single class, leave the class dimension open, or do not fit
            the mask.
    """
    require_same_shape(name, student, teacher)
    shapes = f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
    if student.ndim < 2 or student.numel() == 0:
        raise ValueError(f"{name} expects logits (B, C) with at least one sample and one class, {shapes}")
    if class_dim is None:
        if student.ndim > 3:
            raise ValueError(
                f"{name} does not know which dimension holds the classes, {shapes}: "
                "give class_dim=1 for maps (B, C, H, W), or class_dim=-1 when the classes come last"
            )
        class_dim = -1
    if not -student.ndim < class_dim < student.ndim or class_dim == 0:
        raise ValueError(f"{name}: class_dim={class_dim} names no class dimension, {shapes}")
    if not one_class:
        require_classes(name, student, class_dim)
    if student.ndim > 2:
        student, teacher = student.movedim(class_dim, -1), teacher.movedim(class_dim, -1)
    shape = tuple(student.shape[:-1])
    weights = None if mask is None else mask_of_rows(name, mask, shape)
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    return LogitRows(without_masked(student, weights), without_masked(teacher, weights), weights, shape)


def standardized_rows(name: str, rows: LogitRows, *, eps: float) -> LogitRows:
    """The rows with the z-score of each network's logits in place of them.

    Raises:
        ValueError: there are fewer than three classes.
    """
    if (classes := rows.student.shape[1]) < 3:
        raise ValueError(
            f"{name} standardizes logits of at least three classes, got {classes}: the z-scores of two logits are "
            "+0.707 and -0.707 whatever the logits are, so that nothing is learned; use the loss without "
            "standardization"
        )
    return rows._replace(student=standardized(rows.student, eps=eps), teacher=standardized(rows.teacher, eps=eps))


def label_rows(name: str, rows: LogitRows, target: Tensor, class_dim: int | None = None) -> Tensor:
    """The target of :func:`logit_rows`: class indices int64 (N,), or class probabilities (N, C).

    Args:
        name: the function that asks, for messages.
        rows: the logits.
        target: indices of the logits' shape without the classes, (B,), (B, T) or (B, H, W); or probabilities of the
            logits' shape. What a masked row holds, such as an index to be ignored, does not matter.
        class_dim: where the classes of the logits, and so of the probabilities, stand.

    Raises:
        ValueError: another shape, or an index that is no class.
    """
    floating = target.is_floating_point()
    if floating and target.ndim > 2:
        target = target.movedim(-1 if class_dim is None else class_dim, -1).flatten(0, -2)
    elif not floating and tuple(target.shape) == rows.shape:
        target = target.flatten()
    if rows.mask is not None and len(target) == len(rows.mask):
        target = without_masked(target, rows.mask)
    return check_labels(name, rows.student, target)


def check_labels(name: str, student: Tensor, target: Tensor) -> Tensor:
    """The target as it may be used with logits (N, C): indices int64 (N,), or class probabilities (N, C).

    Raises:
        ValueError: another shape, or an index that is no class.
    """
    rows, classes = student.shape
    if tuple(target.shape) not in {(rows,), (rows, classes)} or (target.ndim == 1 and target.is_floating_point()):
        raise ValueError(
            f"{name} expects class indices int64 ({rows},) or class probabilities ({rows}, {classes}) "
            f"for logits {tuple(student.shape)}, got a target {tuple(target.shape)} of {target.dtype}"
        )
    require_classes(name, student, 1)
    if target.ndim == 2:
        return target.to(student.dtype)
    if can_look(target):
        low, high = (int(x) for x in target.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"{name} expects class indices from 0 to {classes - 1}, got {low} to {high}")
    return target.long()


def index_rows(name: str, rows: LogitRows, target: Tensor, class_dim: int | None = None) -> Tensor:
    """As :func:`label_rows`, with probabilities reduced to their dominant class: int64 (N,)."""
    return class_indices(label_rows(name, rows, target, class_dim))


def label_cross_entropy(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """-Σ_c y_c log q_c of each row, for indices (N,) or probabilities (N, C)."""
    if target.ndim == 1:
        return -log_probabilities.gather(1, target[:, None]).squeeze(1)
    return -(target * log_probabilities).sum(dim=1)


def soft_cross_entropy(log_target: Tensor, log_input: Tensor) -> Tensor:
    """-Σ_c p_c log q_c of each row, from the logarithms of both."""
    return -(log_target.exp() * log_input).sum(dim=-1)


def divergence(log_target: Tensor, log_input: Tensor, kind: Divergence = "kl") -> Tensor:
    """A divergence of each row of probabilities, from the logarithms of both.

    Args:
        log_target: log p, of the teacher.
        log_input: log q, of the student.
        kind: ``kl`` is KL(p ‖ q); ``reverse_kl`` KL(q ‖ p); ``js`` the Jensen-Shannon divergence, the mean of both KL
            from their mixture (p + q)/2; ``mean_kl`` the mean of KL(p ‖ q) and KL(q ‖ p).
    """
    if kind == "kl":
        return kl_from_log_probabilities(log_target, log_input)
    if kind == "reverse_kl":
        return kl_from_log_probabilities(log_input, log_target)
    if kind == "js":
        log_mixture = torch.logaddexp(log_target, log_input) - math.log(2)
        both = (log_target, log_mixture), (log_input, log_mixture)
    else:
        both = (log_target, log_input), (log_input, log_target)
    first, second = (kl_from_log_probabilities(*pair) for pair in both)
    return (first + second) / 2


def without_class(logits: Tensor, index: Tensor) -> Tensor:
    """Logits (N, C) without each row's class ``index`` (N,): (N, C - 1), in their order.

    A gather, so that no masked class is left behind with a -inf or a large negative logit.
    """
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= index[:, None]))
