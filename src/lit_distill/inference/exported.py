"""An exported file beside the network that it came from: fused, loaded, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_distill.untrusted.showing import printable


@dataclass(frozen=True, kw_only=True)
class Check:
    """How many samples an exported file and its network were given, and how far they differ.

    The difference is the largest of their logits, in units of the largest logit; the agreement is the share of samples
    for which both name the same class.
    """

    samples: int
    difference: float
    agreement: float


def fused(network: nn.Module) -> nn.Module:
    """The network in eval mode, its parallel branches fused where it has a ``reparameterize`` method; in place."""
    network.eval()
    fuse: Callable[[], object] | None = getattr(network, "reparameterize", None)
    if fuse is not None:
        fuse()
    return network


@torch.inference_mode()
def compare(
    reference: Callable[[Tensor], Tensor], exported: Callable[[Tensor], Tensor], batches: Iterator[Tensor]
) -> Check:
    """Give both the same batches and compare their logits.

    Raises:
        ValueError: there is no sample, or the reference gives numbers that are not finite.
    """
    pairs = [(reference(batch), exported(batch)) for batch in batches]
    if not pairs:
        raise ValueError("an export needs real samples to be checked on, got none")
    wanted, got = (torch.cat(list(side)).double() for side in zip(*pairs, strict=True))
    if not bool(wanted.isfinite().all()):
        raise ValueError("the network gives logits that are not finite on real samples: it can't be exported")
    if got.shape != wanted.shape:
        raise ValueError(f"the exported file gives {tuple(got.shape)}, the network {tuple(wanted.shape)}")
    difference = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    agreement = float((got.argmax(1) == wanted.argmax(1)).double().mean())
    # a comparison with NaN is False wherever it is asked, so it is turned into what fails every tolerance
    return Check(samples=len(wanted), difference=difference if got.isfinite().all() else float("inf"),
                 agreement=agreement)  # fmt: skip


@torch.inference_mode()
def top1(network: Callable[[Tensor], Tensor], batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    """Share of the labelled samples that a network names right, and their number."""
    right = total = 0
    for inputs, target in batches:
        right += int((network(inputs).argmax(1) == target).sum())
        total += len(target)
    if not total:
        raise ValueError("accuracy needs labelled samples, got none")
    return right / total, total


def load_program(file: Path) -> Callable[[Tensor], Tensor]:
    """A ``.pt2`` file as a callable. Loading it can run code that is hidden in it: only those that are trusted.

    Raises:
        ValueError: it is no program that this PyTorch can load.
    """
    try:
        loaded = torch.export.load(file).module()
    except Exception as error:  # of no common class
        reason = printable((str(error) or type(error).__name__).splitlines()[0])[:500]
        raise ValueError(f"{file} is no torch.export program that can be loaded here: {reason}") from error

    def program(batch: Tensor) -> Tensor:
        logits: Tensor = loaded(batch)
        return logits

    return program  # no module: it has its mode for good, and says so when it is asked for another
