"""What losses between feature maps share: pairs of layers, equal sizes, unit vectors, layers sized by channels."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._numerics import first_of, upcast
from lit_distill.losses.base import Example, Signal, SizedLoss, tensors_of


def shapes_of(*signals: Signal) -> str:
    """Shapes of student and teacher, for messages."""
    student, teacher = ([tuple(t.shape) for t in tensors_of(s)] for s in signals)
    return f"got student {_one_or_list(student)} and teacher {_one_or_list(teacher)}"


def layer_pairs(name: str, student: Signal, teacher: Signal, *, places: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Student and teacher maps, layer by layer, of maps, frames, tokens or vectors; see :func:`as_maps`.

    Raises:
        ValueError: the numbers of layers or the batch sizes differ, or a signal is none of them.
    """
    ours, theirs = tensors_of(student), tensors_of(teacher)
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"{name} expects as many student layers as teacher layers, got {len(ours)} and {len(theirs)}: "
            f"{shapes_of(student, teacher)}"
        )
    return list(zip(*as_maps(name, student, teacher, places=places), strict=True))


def as_maps(name: str, student: Signal, teacher: Signal, *, places: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    """All layers of both sides as maps (N, C, H, W).

    Maps (B, C, T, H, W) of 3D networks are B * T maps, one a frame; tokens (B, N, C) a column of N places, in which a
    convolution of 3 x 3 sees the tokens before and after (``LossTerm(tokens="grid")`` makes a square of them); vectors
    (B, C) maps of one place.

    Args:
        name: the function that asks, for messages.
        student: one layer, or a list.
        teacher: the same, of as many or other layers.
        places: whether places are compared, of which vectors have one.

    Raises:
        ValueError: other dimensions, batch sizes that differ, a layer that is empty, or a vector where it must not.
    """
    lengths = {t.shape[1] for signal in (student, teacher) for t in tensors_of(signal) if t.ndim == 3}
    if len(lengths) > 1:
        raise ValueError(
            f"{name} expects as many tokens in all layers: {shapes_of(student, teacher)}; where they are of a grid, "
            "LossTerm(tokens='grid') leaves class tokens out and brings grids of two sizes together"
        )
    ours, theirs = ([_as_map(t) for t in tensors_of(signal)] for signal in (student, teacher))
    layers = [*ours, *theirs]
    if any(t.ndim != 4 or t.numel() == 0 for t in layers) or len({len(t) for t in layers}) > 1:
        raise ValueError(
            f"{name} expects feature maps (N, C, H, W) or (N, C, T, H, W), tokens (N, L, C) or vectors (N, C) of one "
            f"batch size and as many frames, none empty: {shapes_of(student, teacher)}"
        )
    if places and any(t.ndim == 2 for signal in (student, teacher) for t in tensors_of(signal)):
        raise ValueError(
            f"{name} compares the places of maps, and vectors have one: {shapes_of(student, teacher)}; take "
            "RegressionLoss, or a layer before the pooling"
        )
    return ours, theirs


def _as_map(signal: Tensor) -> Tensor:
    if signal.ndim == 2:
        return signal[:, :, None, None]
    if signal.ndim == 3:
        return signal.mT[..., None]
    return signal.transpose(1, 2).flatten(0, 1) if signal.ndim == 5 else signal


def require_maps(name: str, student: Signal, teacher: Signal) -> None:
    """Raise unless all layers are feature maps (N, C, H, W) with one N.

    Raises:
        ValueError: names the shapes.
    """
    layers = [*tensors_of(student), *tensors_of(teacher)]
    if any(t.ndim != 4 or t.numel() == 0 for t in layers) or len({len(t) for t in layers}) > 1:
        raise ValueError(
            f"{name} expects feature maps (N, C, H, W) of one batch size, none empty: {shapes_of(student, teacher)}"
        )


class PairedMapsLoss(SizedLoss):
    """A loss that compares maps layer by layer, with its own layers for the channels of each pair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._channels: list[tuple[int, int]] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the layers exist."""
        return self._channels is not None

    def build(self, example: Example) -> None:
        """Create the layers for the channels of ``example``.

        Raises:
            ValueError: the maps cannot be matched, or the loss was built for other channels.
        """
        pairs = self._pairs(example.student, example.teacher)
        if self._channels is None:
            self._make_layers(pairs, example)
            self._channels = _channels_of(pairs)
            self.to(pairs[0][0].device)

    @abstractmethod
    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        """Create the layers for the pairs of ``example``."""

    def _pairs(self, student: Signal, teacher: Signal) -> list[tuple[Tensor, Tensor]]:
        """Student and teacher maps, of the channels that the loss was built for."""
        pairs = layer_pairs(type(self).__name__, student, teacher)
        channels = _channels_of(pairs)
        if self._channels not in (None, channels):
            raise ValueError(
                f"{type(self).__name__} was built for (student, teacher) channels {self._channels}, got {channels}"
            )
        return pairs


class ConnectedMapsLoss(PairedMapsLoss):
    """A loss after a connector, which brings a student's map to its teacher's channels."""

    connect: bool = True
    """Whether there are connectors: a field of each subclass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.connectors = nn.ModuleList()

    @property
    def is_built(self) -> bool:
        """Whether the connectors exist; nothing is missing without them."""
        return self._channels is not None or not self.connect

    def build(self, example: Example) -> None:
        """Create a connector a layer.

        Raises:
            ValueError: the maps cannot be matched, or the loss was built for other channels.
        """
        if self.connect:
            super().build(example)

    def _make_layers(self, pairs: list[tuple[Tensor, Tensor]], example: Example) -> None:
        self.connectors.extend(self._connector(s.shape[1], t.shape[1]) for s, t in pairs)

    @abstractmethod
    def _connector(self, ours: int, theirs: int) -> nn.Module:
        """A connector between channels."""

    def _connected(self, student: Signal, teacher: Signal) -> tuple[Signal, Signal]:
        """Both signals, the student's after its connectors."""
        self.require_built()
        if not self.connect:
            return student, teacher
        pairs = self._pairs(student, teacher)
        connected = [apply_layer(layer, s) for layer, (s, _) in zip(self.connectors, pairs, strict=True)]
        return connected, [t for _, t in pairs]


def averaged_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The higher map (the wider one of equal heights) at the other's size, by adaptive average pooling."""
    size = min(size_of(student), size_of(teacher))
    return averaged(student, size), averaged(teacher, size)


def size_of(features: Tensor) -> tuple[int, int]:
    """Height and width of a map."""
    return features.shape[2], features.shape[3]


def averaged(features: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another size by adaptive average pooling; itself where the size is its own."""
    return features if size_of(features) == size else F.adaptive_avg_pool2d(features, size)


def apply_layer(layer: nn.Module, features: Tensor) -> Tensor:
    """``layer`` on ``features`` in the precision of its parameters, if any; a half-precision result as float32."""
    parameter = first_of(layer.parameters())
    output: Tensor = layer(features if parameter is None else features.to(parameter.dtype))
    return upcast(output)


def aligner(ours: int, theirs: int) -> nn.Module:
    """A connector where channels differ: a 1x1 convolution, else nothing."""
    return nn.Identity() if ours == theirs else nn.Conv2d(ours, theirs, 1)


def conv_bn(ours: int, theirs: int, kernel: int = 1, *, relu: bool = False) -> nn.Sequential:
    """A connector: a convolution without bias that keeps the size, and BatchNorm, and a ReLU on request."""
    layers: list[nn.Module] = [nn.Conv2d(ours, theirs, kernel, padding=kernel // 2, bias=False)]
    layers.append(nn.BatchNorm2d(theirs))
    return nn.Sequential(*layers, *[nn.ReLU()] * relu)


def _channels_of(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[int, int]]:
    return [(student.shape[1], teacher.shape[1]) for student, teacher in pairs]


def _one_or_list(shapes: list[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)
