"""What losses between features share whose student is projected to the teacher's width first."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from lit_distill.losses.base import Example, Signal, SizedLoss, tensors_of
from lit_distill.losses.feature._maps import apply_layer, shapes_of
from lit_distill.losses.feature._tokens import Tokens, as_tokens, pooled_tokens
from lit_distill.losses.feature.regression import Projector, make_projector


class ProjectedLoss(SizedLoss):
    """A loss between one feature and one, whose student goes through a projector of its own.

    A subclass has the field ``projector`` and calls :meth:`_features`.
    """

    pools: ClassVar[bool] = True
    """Whether tokens and maps are averaged over their places, to one vector a sample."""

    initial_std: ClassVar[float | None] = None
    """Standard deviation of a linear projector's weights at the start; None for torch's default."""

    projector: Projector | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projection: nn.Module | None = None
        self._widths: tuple[int, int] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the projector exists; nothing is missing without one."""
        return self._widths is not None or self.projector is None

    def build(self, example: Example) -> None:
        """Create the projector for the widths of ``example``.

        Raises:
            ValueError: the features cannot be paired, or the loss was built for other widths.
        """
        ours, theirs = self._features(example.student, example.teacher)
        widths = ours.values.shape[2], theirs.values.shape[2]
        name = type(self).__name__
        if self._widths not in (None, widths):
            raise ValueError(f"{name} was built for (student, teacher) widths {self._widths}, got {widths}")
        if self.projector is None and widths[0] != widths[1]:
            raise ValueError(f"{name} without a projector needs equal widths, got {widths}")
        if self._widths is None:
            if self.projector is not None:
                self.projection = self._make_projector(self.projector, *widths)
            self._widths = widths
            self.to(ours.values.device)

    def _make_projector(self, kind: Projector, ours: int, theirs: int) -> nn.Module:
        layer = make_projector(kind, ours, theirs)
        if kind == "linear" and self.initial_std is not None:
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=self.initial_std)
        return layer

    def _features(self, student: Signal, teacher: Signal, mask: Tensor | None = None) -> tuple[Tokens, Tokens]:
        """Both features, before the projector."""
        name = type(self).__name__
        signals = [*tensors_of(student), *tensors_of(teacher)]
        if len(signals) != 2 or len(signals[0]) != len(signals[1]):
            raise ValueError(
                f"{name} compares one feature of the student with one of the teacher, of the same samples: "
                f"{shapes_of(student, teacher)}"
            )
        ours, theirs = (as_tokens(name, signal, mask) for signal in signals)
        return (pooled_tokens(ours), pooled_tokens(theirs)) if self.pools else (ours, theirs)

    def _projected(self, tokens: Tokens) -> Tensor:
        """The student's features (B, N, C) at the teacher's width."""
        self.require_built()
        if self.projection is None:
            return tokens.values
        if self._widths is not None and tokens.values.shape[2] != self._widths[0]:
            raise ValueError(
                f"{type(self).__name__} was built for a student of width {self._widths[0]}, "
                f"got {tokens.values.shape[2]}"
            )
        return apply_layer(self.projection, tokens.values)
