"""Image classifiers of torchvision and timm by name, with weights from files."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from lit_distill.models.weights import load_weights

# In training these two give tuples, with the logits of classifiers half way up.
_WITH_AUXILIARY = ("googlenet", "inception_v3")


def torchvision_model(
    name: str,
    *,
    num_classes: int,
    pretrained: str | Path | None = None,
    reset_head: bool = False,
    **arguments: Any,
) -> nn.Module:
    """A classifier of :mod:`torchvision.models`: images (B, 3, H, W), normalised RGB, to logits (B, num_classes).

    Nothing is downloaded. ``googlenet`` and ``inception_v3`` come without their auxiliary classifiers, which would make
    their output in training a tuple. A frozen one may have them: torchvision's own weights files for the two fit with
    ``aux_logits=True`` and want ``transform_input=True``.

    Args:
        name: as torchvision knows it, such as ``"resnet18"`` or ``"vit_b_16"``.
        num_classes: C, at least 1.
        pretrained: weights to start from, read by :func:`lit_distill.models.load_weights`; its report is kept in
            ``load_report``.
        reset_head: start with a fresh classifier where the one in ``pretrained`` has another class count, which is
            otherwise an error.
        **arguments: of that network's own constructor, such as ``image_size`` of a ViT.

    Raises:
        ValueError: torchvision has no such classifier, ``num_classes`` is below 1, or ``pretrained`` does not fit.

    Example:
        >>> torchvision_model("resnet18", num_classes=10).fc
        Linear(in_features=512, out_features=10, bias=True)
    """
    from torchvision import models  # here, so that the losses load torch alone

    _check(name, models.list_models(module=models), "torchvision.models", num_classes)
    if name in _WITH_AUXILIARY:
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    return _started(network, pretrained, reset_head)


def timm_model(
    name: str,
    *,
    num_classes: int,
    pretrained: str | Path | None = None,
    reset_head: bool = False,
    **arguments: Any,
) -> nn.Module:
    """A classifier of timm: images (B, 3, H, W), normalised RGB, to logits (B, num_classes).

    Nothing is downloaded: a tag such as that of ``"resnet50.a1_in1k"`` chooses the settings that timm keeps with it,
    the weights are those of ``pretrained``. Which mean and deviation they want, ``model.pretrained_cfg`` tells.

    Args:
        name: as timm knows it, with or without a tag.
        num_classes: C, at least 1.
        pretrained: weights to start from, read by :func:`lit_distill.models.load_weights`; its report is kept in
            ``load_report``.
        reset_head: start with a fresh classifier where the one in ``pretrained`` has another class count, which is
            otherwise an error.
        **arguments: further ones of ``timm.create_model``, such as ``drop_path_rate`` or ``img_size``.

    Raises:
        ModuleNotFoundError: timm is not installed.
        ValueError: timm has no such network, ``num_classes`` is below 1, or ``pretrained`` does not fit.

    Example:
        >>> timm_model("resnet18", num_classes=10).fc
        Linear(in_features=512, out_features=10, bias=True)
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the model {name} needs timm, and {error.name} is missing: pip install 'lit-distill[timm]'"
        ) from error
    _check(name, [name] if timm.is_model(name) else timm.list_models(), "timm", num_classes)
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)
    return _started(network, pretrained, reset_head)


def _check(name: str, known: Sequence[str], library: str, num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"{name} needs num_classes of at least 1, got {num_classes}")
    if name not in known:
        closest = get_close_matches(name, known, n=5, cutoff=0.5)
        said = f"the closest are {closest}" if closest else f"it has {len(known)} others, such as {list(known[:5])}"
        raise ValueError(f"{library} has no classifier of the name {name!r}: {said}")


def _started(network: nn.Module, pretrained: str | Path | None, reset_head: bool) -> nn.Module:
    if pretrained is not None:
        network.load_report = load_weights(network, pretrained, reset_head=reset_head)  # type: ignore[assignment]
    return network
