"""What the response losses share about logits: where the classes stand, what a label is, the classes but one."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses._numerics import can_look, require_classes, require_same_shape
from lit_distill.losses.base import class_indices


def class_rows(name: str, student: Tensor, teacher: Tensor, class_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Both signals as rows of classes (N, C): a clip's time steps or a map's pixels count as samples.

    Args:
        name: the function that asks, for messages.
        student: logits (B, C), (B, T, C), or of any shape with a ``class_dim``.
        teacher: logits of the same shape.
        class_dim: where the classes stand. None means the last dimension for two and three dimensions; with more,
            (B, C, H, W) and (B, T, S, C) look alike, so it must be given.

    Raises:
        ValueError: the shapes differ, hold no element or a single class, or leave the class dimension open.
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
    require_classes(name, student, class_dim)
    if student.ndim == 2:
        return student, teacher
    return tuple(x.movedim(class_dim, -1).flatten(0, -2) for x in (student, teacher))  # type: ignore[return-value]


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


def check_indices(name: str, student: Tensor, target: Tensor) -> Tensor:
    """As :func:`check_labels`, with probabilities reduced to their dominant class: int64 (N,)."""
    return class_indices(check_labels(name, student, target))


def label_cross_entropy(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """-Σ_c y_c log q_c of each row, for indices (N,) or probabilities (N, C)."""
    if target.ndim == 1:
        return -log_probabilities.gather(1, target[:, None]).squeeze(1)
    return -(target * log_probabilities).sum(dim=1)


def soft_cross_entropy(log_target: Tensor, log_input: Tensor) -> Tensor:
    """-Σ_c p_c log q_c of each row, from the logarithms of both."""
    return -(log_target.exp() * log_input).sum(dim=-1)


def without_class(logits: Tensor, index: Tensor) -> Tensor:
    """Logits (N, C) without each row's class ``index`` (N,): (N, C - 1), in their order.

    A gather, so that no masked class is left behind with a -inf or a large negative logit.
    """
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= index[:, None]))
