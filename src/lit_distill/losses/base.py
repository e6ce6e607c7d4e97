"""What every loss shares: the signal types, and how a loss with parameters is sized from one example batch."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, dataclass_transform

import torch
import torch.nn.functional as F
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
    """The class index of each sample: indices (B,) or (B, 1) as (B,), else the argmax over (B, C)."""
    if torch.is_floating_point(target):
        return target.argmax(dim=-1)
    if target.ndim == 2 and target.shape[1] == 1:
        return target[:, 0]
    return target if target.ndim == 1 else target.argmax(dim=-1)


_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.KLDivLoss)
_CLASS_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.kl_div)
_SIGNS = (nn.SoftMarginLoss, nn.HingeEmbeddingLoss, nn.CosineEmbeddingLoss)
_SIGN_FUNCTIONS = (F.soft_margin_loss, F.hinge_embedding_loss, F.cosine_embedding_loss)
_VALUES = (
    nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss, nn.MultiLabelMarginLoss,
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss,
)  # fmt: skip
_VALUE_FUNCTIONS = (
    F.binary_cross_entropy_with_logits, F.binary_cross_entropy, F.multilabel_soft_margin_loss,
    F.multilabel_margin_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss,
)  # fmt: skip


@dataclass(frozen=True)
class LabelRule:
    """Which samples of a target have a label, as one loss reads it.

    Attributes:
        kind: ``"classes"`` for losses over one distribution of classes, which a row of zeros is not; ``"values"`` for
            those that take each number by itself, as multi-label losses do; ``"signs"`` where -1 is a label.
        ignored: a class index that the loss leaves out.
    """

    kind: Literal["classes", "values", "signs", "unknown"] = "unknown"
    ignored: int | None = None

    @classmethod
    def of(cls, loss: Callable[..., Any]) -> LabelRule:
        """The rule of a loss, by what it is made of.

        Example:
            >>> LabelRule.of(nn.CrossEntropyLoss(ignore_index=255))
            LabelRule(kind='classes', ignored=255)
        """
        given: dict[str, Any] = {}
        while isinstance(loss, functools.partial):
            given = {**loss.keywords, **given}
            loss = loss.func
        parts = list(loss.modules()) if isinstance(loss, nn.Module) else []
        ignored = [given["ignore_index"]] if "ignore_index" in given else []
        ignored += [index for part in parts if isinstance(index := getattr(part, "ignore_index", None), int)]
        kinds = {
            "values": (_VALUES, _VALUE_FUNCTIONS), "signs": (_SIGNS, _SIGN_FUNCTIONS),
            "classes": (_CLASSES, _CLASS_FUNCTIONS),
        }  # fmt: skip
        found = {
            kind
            for kind, (modules, functions) in kinds.items()
            if loss in functions or any(isinstance(part, modules) for part in parts)
        }
        if not found and any(type(part).__module__.startswith("lit_distill.losses.") for part in parts):
            found = {"classes"}
        kind: Any = found.pop() if len(found) == 1 else "unknown"
        return cls(kind, ignored[0] if ignored else None)

    def known(self, target: Tensor) -> Tensor:
        """Which samples have a label, (B,) of booleans, without waiting for the device."""
        rows = target.reshape(len(target), -1)
        if target.dtype == torch.bool:
            return torch.ones(len(target), dtype=torch.bool, device=target.device)
        if not target.is_floating_point():
            valid = rows >= 0
            return (valid if self.ignored is None else valid & (rows != self.ignored)).any(dim=1)
        missing = rows.isnan() if self.kind == "signs" else rows.isnan() | (rows == -1)
        known = ~missing.all(dim=1)
        if self.kind in ("values", "signs") or target.ndim == 1 or target.shape[1] == 1:
            return known
        zero = (rows == 0).all(dim=1)
        if self.kind == "unknown":  # mixed and smoothed probabilities are neither 0 nor 1, as multi-hot labels are
            sharp = ((rows == 0) | (rows == 1)).all()
            zero &= ~sharp & (zero | ((rows.sum(dim=1) - 1).abs() < 1e-3)).all()
        return known & ~zero


def labelled_rows(target: Tensor, rule: LabelRule | Callable[[Tensor], Tensor] | None = None) -> Tensor | None:
    """Which samples have a label: their positions, or None where all have.

    Args:
        target: (B, ...). Of whole numbers, such as class indices (B,), (B, 1) or masks (B, H, W): a sample has none
            where all of its numbers are below 0 or those that the loss ignores. Of floating point: where all are -1 or
            NaN; class probabilities (B, C) also where all are 0.
        rule: how a loss reads the target, or a function that gives (B,) booleans; without one, a row of zeros is taken
            for a missing label unless the target looks multi-hot.

    Example:
        >>> labelled_rows(torch.tensor([2, -1, 0])), labelled_rows(torch.tensor([2, 0]))
        (tensor([0, 2]), None)
        >>> labelled_rows(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), LabelRule("classes"))
        tensor([0])
    """
    rule = LabelRule() if rule is None else rule
    known = rule.known(target) if isinstance(rule, LabelRule) else rule(target)
    if known.shape != target.shape[:1] or known.dtype != torch.bool:
        raise ValueError(
            f"unlabelled: the function must give one boolean for each of the {len(target)} samples, got {known.dtype} "
            f"{tuple(known.shape)}"
        )
    rows = known.nonzero().flatten()
    return None if len(rows) == len(target) else rows


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule of that name; a number below zero counts the children of a sequence from its end."""
    for name in path.split("."):
        if name[0] == "-" and name[1:].isdecimal() and isinstance(module, (nn.Sequential, nn.ModuleList)):
            count = len(module)
            if not 0 < int(name[1:]) <= count:
                raise AttributeError(f"{name} of {count}")
            name = list(module._modules)[int(name)]
        module = module.get_submodule(name)
    return module
