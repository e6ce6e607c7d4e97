"""What a network says of each place: its classifier on every position of its last feature map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._numerics import first_of
from lit_distill.losses.base import Example, SizedLoss


class ClassMapsLoss(SizedLoss):
    """A loss of class maps (N, C, H, W), which it makes of feature maps by the networks' own classifiers.

    A subclass has the fields ``student_classifier`` and ``teacher_classifier``. They name modules, one or several that
    follow each other, as references (``Student.fc``); None says that the signal holds class maps already.
    """

    student_classifier: str | Sequence[str] | None
    teacher_classifier: str | Sequence[str] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        # In a tuple: they are parts of the networks, and no parameters of this loss.
        self._classifiers: tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]] = ((), ())
        self._built = self.student_classifier is None and self.teacher_classifier is None

    @property
    def is_built(self) -> bool:
        """Whether the classifiers are found."""
        return self._built

    def build(self, example: Example) -> None:
        """Find the classifiers among the models of ``example``.

        Raises:
            ValueError: a reference names no module.
        """
        name = type(self).__name__
        self._classifiers = (
            modules_named(name, "student_classifier", self.student_classifier, example.models),
            modules_named(name, "teacher_classifier", self.teacher_classifier, example.models),
        )
        self._built = True

    def class_maps(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both signals as class maps (N, C, H, W)."""
        self.require_built()
        ours, theirs = self._classifiers
        return classified(student, ours), classified(teacher, theirs)


def modules_named(
    owner: str, argument: str, references: str | Sequence[str] | None, models: Mapping[str, nn.Module]
) -> tuple[nn.Module, ...]:
    """The modules of references such as ``Teacher.fc``.

    Raises:
        ValueError: a reference names no module; names the argument and the models.
    """
    found = []
    for reference in [references] if isinstance(references, str) else references or ():
        model, _, path = reference.partition(".")
        try:
            found.append(models[model].get_submodule(path))
        except (KeyError, AttributeError):
            raise ValueError(
                f"{owner}: {argument}={reference!r} names no module; write the name of a model and the path of a "
                f"module in it, as Student.fc; the models are {', '.join(sorted(models))}"
            ) from None
    return tuple(found)


def classified(maps: Tensor, classifier: Sequence[nn.Module]) -> Tensor:
    """Feature maps (N, D, H, W) through a classifier at each position: (N, C, H, W).

    A linear layer works as a 1x1 convolution; every other module takes the map as it is.
    """
    for module in classifier:
        if isinstance(module, nn.Linear):
            maps = F.conv2d(maps.to(module.weight.dtype), module.weight[:, :, None, None], module.bias)
        else:
            maps = module(_in_its_precision(module, maps))
    return maps


def _in_its_precision(module: nn.Module, maps: Tensor) -> Tensor:
    parameter = first_of(module.parameters())
    return maps if parameter is None else maps.to(parameter.dtype)
