"""The deployed student of SimKD: a network, a projector before its pooling, and its teacher's classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lit_distill.optim import ParameterGroup, groups_of


class SimKDStudent(nn.Module):
    r"""A network that classifies by its teacher's classifier, on features that a projector makes like the teacher's.

    .. math:: logits = W_{teacher}\, pool(projector(features)) + b_{teacher}

    Inputs and logits are those of the wrapped network. The projector stands between the network's last feature map and
    its pooling: 1x1, 3x3 and 1x1 convolution, each with BatchNorm and ReLU, with 1/``factor`` of the teacher's channels
    in between. Until :meth:`reuse` is called, by :class:`lit_distill.losses.SimKD` on an example batch, the projector
    is the identity and this is the plain network. Then the layers of ``without`` are gone and the parameters of the
    classifier *are* the teacher's: with a frozen teacher they stay as they are, with a peer they follow it every step.

    The state dict holds all of it, so the student is deployed without its teacher. Loading it into a fresh
    ``SimKDStudent`` of the same network restores projector and classifier in their sizes.

    Args:
        network: the student's own network.
        pool: name of the network's module that pools the last feature map.
        classifier: name of the network's linear classifier.
        without: names of the network's modules between pooling and classifier that the teacher's classifier does not
            need. The default is for PPTSMv2; a torchvision ResNet has none, ``()``.
        factor: how many times narrower than the teacher's map the inner layers of the projector are.

    Raises:
        ValueError: the network has no such module, or ``factor`` is below 1.

    Example:
        >>> from torchvision.models import resnet18
        >>> student = SimKDStudent(resnet18(num_classes=10), pool="avgpool", without=())
        >>> student.reuse(nn.Linear(2048, 10), in_channels=512)
        >>> student.projector[0], student.classifier  # doctest: +NORMALIZE_WHITESPACE
        (Conv2d(512, 1024, kernel_size=(1, 1), stride=(1, 1), bias=False),
         Linear(in_features=2048, out_features=10, bias=True))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        pool: str = "pool",
        classifier: str = "fc",
        without: Sequence[str] = ("last_conv", "dropout"),
        factor: int = 2,
    ) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"SimKDStudent expects factor of at least 1, got {factor}")
        names = [name for name, _ in network.named_children()]
        missing = [name for name in (pool, classifier, *without) if name not in names]
        if missing:
            raise ValueError(
                f"SimKDStudent: {type(network).__name__} has no module {missing}; it has {names}: "
                "name its pooling by pool=…, its linear layer by classifier=…, what lies between them by without=[…]"
            )
        self.network = network
        self.pool_name, self.classifier_name, self.without = pool, classifier, tuple(without)
        self.factor = factor
        parts = OrderedDict(projector=nn.Sequential(), pool=network.get_submodule(pool))
        setattr(network, pool, nn.Sequential(parts))

    @property
    def projector(self) -> nn.Sequential:
        """From the network's last feature map to the teacher's; empty, the identity, before :meth:`reuse`."""
        projector = self.network.get_submodule(f"{self.pool_name}.projector")
        assert isinstance(projector, nn.Sequential)
        return projector

    @property
    def classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.network.get_submodule(self.classifier_name)

    @property
    def is_sized(self) -> bool:
        """Whether projector and classifier are in place."""
        return len(self.projector) > 0

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits of the wrapped network."""
        logits: Tensor = self.network(inputs)
        return logits

    def reuse(self, classifier: nn.Module, *, in_channels: int) -> None:
        """Put the projector in place, and classify by the parameters of ``classifier`` from now on.

        Args:
            classifier: the teacher's linear layer; its parameters are shared, not copied.
            in_channels: channels of this network's last feature map.

        Raises:
            ValueError: ``classifier`` is not a linear layer, or has another number of classes than the network's.
        """
        own = self.classifier
        if not isinstance(classifier, nn.Linear) or not isinstance(own, nn.Linear):
            raise ValueError(
                "SimKD reuses a linear classifier: expected nn.Linear in the teacher and in the student, got "
                f"{type(classifier).__name__} and {type(own).__name__}"
            )
        if classifier.out_features != own.out_features:
            raise ValueError(
                f"SimKD: the teacher's classifier has {classifier.out_features} classes, the student's "
                f"{own.out_features}: both networks must be built for the same data"
            )
        shared = nn.Linear(classifier.in_features, classifier.out_features, device="meta")
        shared.weight, shared.bias = classifier.weight, classifier.bias
        for name in self.without:
            setattr(self.network, name, nn.Identity())
        setattr(self.network, self.classifier_name, shared)
        if not self.is_sized:
            like = next(self.network.parameters())
            layers = _projection(in_channels, classifier.in_features, self.factor)
            self.projector.extend(layers.to(device=like.device, dtype=like.dtype))

    def parameter_groups(self) -> list[ParameterGroup]:
        """The network's own groups with the projector among its weights, without what belongs to the teacher."""
        reused = {id(p) for p in self.classifier.parameters()} if self.is_sized else set()
        return [
            replace(group, params=tuple(p for p in group.params if id(p) not in reused))
            for group in groups_of(self.network)
        ]

    def size_like(self, state: Mapping[str, Tensor], prefix: str | None = None) -> None:
        """Take the sizes of a stored student's projector and classifier, so that its weights find their places.

        ``load_state_dict`` and :func:`lit_distill.models.load_weights` do so. Nothing happens where the projector is in
        place already, or ``state`` holds none.

        Args:
            state: tensors by name.
            prefix: of this student's names in it; None for whichever the one student in it has.
        """
        name = f"network.{self.pool_name}.projector.0.weight"
        keys = [key for key in state if key == f"{prefix}{name}" or (prefix is None and key.endswith(name))]
        stored = state.get(f"{keys[0].removesuffix(name)}network.{self.classifier_name}.weight") if keys else None
        if stored is not None and not self.is_sized:
            like = next(self.network.parameters())
            classes, width = stored.shape
            classifier = nn.Linear(width, classes, device=like.device, dtype=like.dtype)
            self.reuse(classifier, in_channels=state[keys[0]].shape[1])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.size_like(state_dict, prefix)  # called before the parts load
        super()._load_from_state_dict(state_dict, prefix, *args)


def _projection(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    middle = max(1, out_channels // factor)
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((in_channels, middle, 1), (middle, middle, 3), (middle, out_channels, 1)):
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=False)]
    return nn.Sequential(*layers)
