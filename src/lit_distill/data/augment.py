"""Automatic augmentation of images and clips by torchvision's transforms v2, its draws a function of their key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms import v2

from lit_distill.data.samplers import seeded

Augment: TypeAlias = Literal["autoaugment", "randaugment", "trivialaugment"]

_AUGMENTS = {
    "autoaugment": v2.AutoAugment,
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}


def augmentation(augment: Augment, *, interpolation: str = "bilinear") -> v2.Transform:
    """One automatic augmentation, with the operations and magnitudes that torchvision sets.

    A transform draws once a call. So a clip (T, 3, H, W) gets the same operations, of the same magnitude and direction,
    on all of its frames; what an operation takes from the pixels (autocontrast, equalize) it takes from each frame.
    No operation mirrors. Rotations are of up to 30 degrees in ``"autoaugment"``, 9 in ``"randaugment"`` and 135 in
    ``"trivialaugment"``, which so turns a movement to the left into one to the right.

    Args:
        augment: ``"autoaugment"`` (Cubuk et al., CVPR 2019, its ImageNet policy), ``"randaugment"`` (Cubuk et al.,
            NeurIPS 2020: 2 operations of magnitude 9) or ``"trivialaugment"`` (Müller and Hutter, ICCV 2021, wide).
        interpolation: such as ``"bilinear"`` or ``"bicubic"``, of its geometric operations.

    Raises:
        ValueError: another name.

    Example:
        >>> clip = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8).repeat(4, 1, 1, 1)
        >>> view = augmentation("trivialaugment")(clip)
        >>> view.shape, view.dtype, all(torch.equal(frame, view[0]) for frame in view)
        (torch.Size([4, 3, 24, 24]), torch.uint8, True)
    """
    if augment not in _AUGMENTS:
        raise ValueError(f"data.augment is one of {list(_AUGMENTS)}, or null for none, got {augment!r}")
    transform: v2.Transform = _AUGMENTS[augment](interpolation=interpolation_mode(interpolation))
    return transform


def interpolation_mode(name: str) -> v2.InterpolationMode:
    """torchvision's mode of a name.

    Raises:
        ValueError: there is no such mode.
    """
    names = [mode.value for mode in v2.InterpolationMode]
    if name not in names:
        raise ValueError(f"data.interpolation is one of {names}, got {name!r}")
    return v2.InterpolationMode(name)


@contextmanager
def torch_seeded(*parts: object) -> Iterator[None]:
    """Seed torch's CPU generator by what ``parts`` name, and give it back as it was.

    torchvision's transforms draw from the global generator and take no other. Inside, they give the same for the same
    parts, in any process, after any history; outside, nothing notices.

    Example:
        >>> with torch_seeded("view", 0, 3, 17):
        ...     one = torch.rand(2)
        >>> with torch_seeded("view", 0, 3, 17):
        ...     other = torch.rand(2)
        >>> torch.equal(one, other)
        True
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would seed the GPU's generators too
        torch.default_generator.manual_seed(seeded(*parts).getrandbits(63))
        yield


def augmented(clip: Tensor, transform: Callable[[Tensor], Tensor] | None, *parts: object) -> Tensor:
    """A clip (T, 3, H, W) uint8 after a transform, if any, whose draws are a function of ``parts``."""
    if transform is None:
        return clip
    with torch_seeded(*parts):
        return transform(clip)
