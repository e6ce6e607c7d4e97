"""What a frozen model is asked before anything is kept: whether its signals are functions of each sample alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_distill.data.digests import row_digests

_CLOSE = 0.02
"""Of the largest magnitude: what may lie between a sample's signals at two places of a batch, in half precision too."""

Run = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Probe:
    """What a probe told.

    Attributes:
        shapes: of one sample's part of each signal, by its reference.
        dtypes: of the signals.
        fingerprint: of every bit that the model gave; another network, code, kernel or precision gives another.
        position_free: whether a sample's signals are the same to the bit at any place of the batch.
        seconds: that one run on such a batch takes.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    fingerprint: str
    position_free: bool
    seconds: float


def probe(name: str, inputs: Tensor, run: Run) -> Probe:
    """Run a model twice on random inputs of the shape of a batch, the second time with the samples moved on by one.

    Args:
        name: of the model, for messages.
        inputs: the batch whose shape, type and device count.
        run: gives the signals of a model by their references.

    Raises:
        ValueError: the model draws random numbers; or a signal is not the samples' parts one after the other, or a
            sample's part depends on the others of its batch.
    """
    with isolate_rng():
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(inputs.device, inputs.dtype)
        drawn = _random_state(inputs.device)
        first = run(noise)
        if _random_state(inputs.device) != drawn:
            raise ValueError(
                f"{name} draws random numbers in eval mode, so what it gives is no function of its input: "
                "set teacher_cache=off"
            )
        _wait(inputs.device)
        started = time.perf_counter()
        second = run(noise.roll(1, 0))
        _wait(inputs.device)
        seconds = time.perf_counter() - started
    batch = len(inputs)
    digest = hashlib.sha256()
    shapes: dict[str, tuple[int, ...]] = {}
    position_free = True
    for text, signal in first.items():
        parts = _parts(text, signal, batch)
        moved = _parts(text, second[text], batch).roll(-1, 0)
        digest.update(f"{text} {parts.shape} {parts.dtype}".encode() + row_digests(parts).numpy().tobytes())
        shapes[text] = tuple(parts.shape[1:])
        if torch.equal(row_digests(parts), row_digests(moved)):
            if batch > 1 and parts.shape[1] > 1 and bool((parts[0] == parts[1]).all()):
                raise ValueError(
                    f"{text!r} of {name} is {tuple(signal.shape)} for a batch of {batch} and the same for any noise: "
                    "which of it belongs to which sample cannot be told; set teacher_cache=off"
                )
        elif not _is_close(parts, moved):
            raise ValueError(
                f"{text!r} of {name} is {tuple(signal.shape)} for a batch of {batch}, and what should be a sample's "
                "part of it changes with the sample's place in the batch: only signals that are the samples' parts, "
                "one after the other, can be kept; set teacher_cache=off"
            )
        else:
            position_free = False
    dtypes = {text: signal.dtype for text, signal in first.items()}
    return Probe(shapes, dtypes, digest.hexdigest(), position_free, seconds)


def _parts(text: str, signal: Tensor, batch: int) -> Tensor:
    """(B, rows, ...) of (B * rows, ...)."""
    if batch == 1 and signal.ndim == 0:
        return signal.detach().reshape(1, 1)
    if signal.ndim == 0 or not len(signal) or len(signal) % batch:
        raise ValueError(
            f"{text!r} is {tuple(signal.shape)} for a batch of {batch}: only signals with rows for each sample can be "
            "kept; set teacher_cache=off"
        )
    return signal.detach().reshape(batch, len(signal) // batch, *signal.shape[1:])


def _is_close(one: Tensor, other: Tensor) -> bool:
    one, other = one.double(), other.double()
    scale = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return bool(torch.allclose(one, other, rtol=0.0, atol=_CLOSE * scale, equal_nan=True))


def _random_state(device: torch.device) -> list[int]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [value for state in states for value in state.tolist()]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
