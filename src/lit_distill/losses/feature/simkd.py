"""SimKD: the student learns the teacher's last features through a projector, and reuses the teacher's classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters
from lit_distill.losses.feature._maps import averaged_alike

__all__ = ["SimKD", "simkd_loss"]


@runtime_checkable
class _ReusesClassifier(Protocol):
    """A student such as :class:`lit_distill.models.SimKDStudent`."""

    @property
    def projector(self) -> nn.Module: ...

    @property
    def is_sized(self) -> bool: ...

    def reuse(self, classifier: nn.Module, *, in_channels: int) -> None: ...


@full_precision
def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between projected student features and teacher features.

    Where the maps differ in size, the higher one is averaged to the other's. The mean runs over all elements.

    Args:
        student: the student's projected features, (N, C, H, W), or (N, C) after pooling.
        teacher: the teacher's features, the same but for H and W.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: batch or channels differ, or the result is not finite.

    Example:
        >>> import torch
        >>> simkd_loss(torch.zeros(2, 8, 7, 7), torch.ones(2, 8, 14, 14))
        tensor(1.)
    """
    if student.shape[:2] == teacher.shape[:2] and student.ndim == teacher.ndim == 4:
        student, teacher = averaged_alike(student, teacher)
    require_same_shape("simkd_loss", student, teacher)
    return F.mse_loss(student, teacher)


@hyperparameters
class SimKD(SizedLoss):
    """SimKD: make the student's last features the teacher's, and classify them by the teacher's own classifier.

    Shapes: the projected student map and the teacher's last map, (N, C, H, W); sizes may differ, the higher map is
    averaged to the other's. Mean over all elements, no other scaling.

    The student must be a :class:`lit_distill.models.SimKDStudent`, the first reference its projector. On the example
    batch this loss gives the projector its size and hands over the teacher's classifier; from then on the student's
    output, its validation metrics and its weights file are those of backbone + projector + teacher's classifier. A
    student that brings its own projector (any tap with the teacher's channels) is taken as it is.

    Formula:
        L = mean (P(s) - t)²,   P: conv1x1, conv3x3, conv1x1 with BatchNorm and ReLU, in the student
        student's logits = W_t pool(P(s)) + b_t with the teacher's classifier W_t, b_t

    Paper: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv:2203.14001.
        Projector and error are those of the authors' code, which averages a larger student map before the projector;
        here that happens after it, so that the student needs no teacher to know a size.

    Use when: the teacher is trained and good: the student inherits its decision, and needs no labels and no other term.
        The projector stays in the student: 12.6 million weights between 1024 and 2048 channels at factor 2, 1.4 million
        at factor 8. With a peer instead of a trained teacher the student follows a classifier that is still learning.

    Args:
        classifier: reference of the teacher's linear classifier.

    Raises:
        ValueError: the maps cannot be matched, or there is no such classifier.

    Example:
        >>> import torch
        >>> SimKD()(torch.zeros(2, 8, 7, 7), torch.ones(2, 8, 7, 7))
        tensor(1.)
    """

    classifier: str = "Teacher.fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.classifier.partition(".")):
            raise ValueError(f"SimKD: classifier must be a reference such as 'Teacher.fc', got {self.classifier!r}")
        self._built = False

    @property
    def is_built(self) -> bool:
        """Whether the student has its projector and classifier."""
        return self._built

    def build(self, example: Example) -> None:
        """Give the tapped :class:`~lit_distill.models.SimKDStudent` its projector and the teacher's classifier.

        Raises:
            ValueError: the first reference is no such student's projector and has other channels than the teacher.
        """
        if not isinstance(example.student, Tensor) or not isinstance(example.teacher, Tensor):
            raise ValueError("SimKD compares one layer with one layer: give one reference each")
        ours, theirs = example.student.shape, example.teacher.shape
        student = _owner(example)
        if student is None:
            if ours[1] != theirs[1]:
                raise ValueError(
                    "SimKD expects the projector of a SimKDStudent first (such as Student.network.pool.projector), or "
                    f"a map with the teacher's channels; got student {tuple(ours)} and teacher {tuple(theirs)}"
                )
        elif not student.is_sized or not self._built:
            classifier = _linear(example.models, self.classifier)
            if classifier.in_features != theirs[1]:
                raise ValueError(
                    f"SimKD: {self.classifier} takes {classifier.in_features} features, but the teacher's map "
                    f"{tuple(theirs)} has {theirs[1]} channels: name the teacher's last feature map"
                )
            student.reuse(classifier, in_channels=ours[1])
        self._built = True

    @full_precision
    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            raise ValueError("SimKD compares one layer with one layer: give one reference each")
        return simkd_loss(student, teacher)


def _owner(example: Example) -> _ReusesClassifier | None:
    """The student whose projector was tapped."""
    students = (model for model in example.models.values() if isinstance(model, _ReusesClassifier))
    return next((s for s in students if any(module is s.projector for module in example.student_modules)), None)


def _linear(models: Mapping[str, nn.Module], reference: str) -> nn.Linear:
    name, _, path = reference.partition(".")
    try:
        module = models[name].get_submodule(path)
    except (KeyError, AttributeError):
        raise ValueError(f"SimKD: classifier={reference!r} names no module of {sorted(models)}") from None
    if not isinstance(module, nn.Linear):
        raise ValueError(f"SimKD: classifier={reference!r} must be an nn.Linear, it is {type(module).__name__}")
    return module
