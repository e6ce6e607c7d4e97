"""What every loss shares: the signal types, and how a loss with parameters is sized from one example batch."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, dataclass_transform

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import check, rules_of

__all__ = ["Example", "Signal", "SizedLoss"]

Signal: TypeAlias = Tensor | Sequence[Tensor]
"""What a reference resolves to: one tensor, or one tensor a reference for a list of references."""


@dataclass(frozen=True)
class Example:
    """One example batch's signals, from which a :class:`SizedLoss` takes its shapes.

    Attributes:
        student: the first signal, exactly what ``forward`` will get.
        teacher: the second signal.
        target: the third signal, where the term names one.
        student_modules: the modules tapped for the first signal, in the order of its references.
        teacher_modules: the modules tapped for the second signal.
        models: all named models, for losses that reuse a part of one (a classifier, a BatchNorm).
        dataset_size: number of training samples, where it is known; memory banks need it.
    """

    student: Signal
    teacher: Signal
    target: Signal | None = None
    student_modules: tuple[nn.Module, ...] = ()
    teacher_modules: tuple[nn.Module, ...] = ()
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    dataset_size: int | None = None


_Class = TypeVar("_Class", bound=type)


@dataclass_transform(kw_only_default=True, eq_default=False)
def hyperparameters(cls: _Class) -> _Class:
    """Give a loss the constructor of its annotated fields, all by keyword, as of a dataclass.

    It is no dataclass afterwards: OmegaConf takes the instances of one for configs, so that a loss in a mapping that
    Hydra builds would be replaced by its fields.
    """
    made: Any = cls
    assert not made._fields, f"{cls.__name__} inherits a constructor: give it an __init__"
    dataclass(eq=False, repr=False, kw_only=True)(cls)
    made._fields = tuple(made.__dataclass_fields__)
    del made.__dataclass_fields__
    for name in made._fields:
        if vars(cls).get(name, name) is None:
            delattr(cls, name)  # a default at the class would hide a module that is given as this field
    return cls


class Loss(nn.Module):
    """A module whose hyperparameters are annotated fields, each checked against its annotation.

    A subclass is decorated with :func:`hyperparameters`, which makes its constructor. What else a subclass needs is
    made in its ``__post_init__``, after that of this class. A field may be a module.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[frozenset[str]] = frozenset()
    """The names of what ``forward`` takes."""

    def __init_subclass__(cls) -> None:
        """Read the signature once, as torch.compile could not."""
        super().__init_subclass__()
        cls.arguments = frozenset(inspect.signature(cls.forward).parameters)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A module that is ready to take its fields, modules among them."""
        made = super().__new__(cls)
        nn.Module.__init__(made)
        return made

    def __post_init__(self) -> None:
        check(type(self).__name__, rules_of(type(self).__init__), self.hyperparameters)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self._fields}

    def extra_repr(self) -> str:
        """The hyperparameters, for ``repr``, which shows modules below."""
        plain = {name: value for name, value in self.hyperparameters.items() if not isinstance(value, nn.Module)}
        return ", ".join(f"{name}={value!r}" for name, value in plain.items())


class SizedLoss(Loss, ABC):
    """A loss with parameters or buffers whose shapes come from one example batch.

    :class:`lit_distill.DistillModule` and :meth:`lit_distill.LossComposer.build` call :meth:`build` once, before the
    optimizer is made and before a checkpoint is read. A second call with the same shapes changes nothing.
    """

    @abstractmethod
    def build(self, example: Example) -> None:
        """Create the parameters for the shapes of ``example``.

        Raises:
            ValueError: the two signals cannot be matched by this method.
        """

    @property
    @abstractmethod
    def is_built(self) -> bool:
        """Whether :meth:`build` has been called."""

    def require_built(self) -> None:
        """Raise unless :meth:`build` has been called."""
        if not self.is_built:
            raise RuntimeError(
                f"{type(self).__name__} has no parameters yet: they are sized from an example batch. "
                "DistillModule does that before training; in your own loop call composer.build(models, batch) first."
            )


def takes(loss: Callable[..., Tensor], name: str) -> bool:
    """Whether a loss, a module or a function, has an argument of this name: ``target``, or ``mask``."""
    if isinstance(loss, Loss):
        return name in loss.arguments
    return name in inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters


def tensors_of(signal: Signal) -> list[Tensor]:
    """The tensors of a signal, one or several."""
    return [signal] if isinstance(signal, Tensor) else list(signal)


def class_indices(target: Tensor) -> Tensor:
    """The class index of each sample: ``target`` itself when it holds indices (B,), else its argmax over (B, C)."""
    return target if target.ndim == 1 and not torch.is_floating_point(target) else target.argmax(dim=-1)


def labelled_rows(target: Tensor) -> Tensor | None:
    """Which samples have a label: their positions, or None where all have.

    Args:
        target: class indices (B,), -1 for none; or class probabilities (B, C), a row of zeros for none.

    Example:
        >>> labelled_rows(torch.tensor([2, -1, 0])), labelled_rows(torch.tensor([2, 0]))
        (tensor([0, 2]), None)
    """
    known = target >= 0 if target.ndim == 1 else target.flatten(1).sum(dim=1) > 0
    rows = known.nonzero().flatten()
    return None if len(rows) == len(target) else rows
