"""What a frozen model is asked before anything is kept: whether its signals are functions of each sample alone."""

from __future__ import annotations

import hashlib
import pickle
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_distill.data.digests import memory_order, row_digests

Run = Callable[[Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Probe:
    """What a probe told.

    Attributes:
        shapes: of one sample's part of each signal, by its reference.
        dtypes: of the signals.
        orders: of their dimensions in memory.
        fingerprint: of every bit that the model gave; another network, code, kernel or precision gives another.
        row_wise: whether a sample's part is the same to the bit at any place of the batch, beside any other samples;
            else what the model gives is a function of the batch as a whole.
        seconds: that one run on such a batch takes.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    orders: Mapping[str, tuple[int, ...]]
    fingerprint: str
    row_wise: bool
    seconds: float


def probe(name: str, inputs: Tensor, run: Run) -> Probe:
    """Run a model on a batch of fixed noise, and again with some of it moved to other places, beside other noise.

    Args:
        name: of the model, for messages.
        inputs: the batch whose shape, type and device count.
        run: gives the signals of a model by their references.

    Raises:
        ValueError: the model draws random numbers or gives other values when asked again; or a signal does not have
            rows for each sample.

    Example:
        >>> told = probe("Teacher", torch.zeros(4, 3), lambda x: {"Teacher": x.sum(1, keepdim=True)})
        >>> told.shapes, told.row_wise
        ({'Teacher': (1, 1)}, True)
        >>> probe("Teacher", torch.zeros(4, 3), lambda x: {"Teacher": x - x.mean(0)}).row_wise
        False
    """
    batch = len(inputs)
    moved_by = max(1, batch // 2 - (batch // 2 + 1) % 2)  # odd: other places in a kernel's tiles too
    with isolate_rng():
        noise = _noise((batch + moved_by, *inputs.shape[1:]), inputs)
        drawn = _random_state(inputs.device)
        first = run(noise[moved_by:])
        if _random_state(inputs.device) != drawn:
            raise ValueError(
                f"{name} draws random numbers in eval mode, so what it gives is no function of its input: "
                "set teacher_cache=off"
            )
        _wait(inputs.device)
        started = time.perf_counter()
        second = run(noise[:batch])
        _wait(inputs.device)
        seconds = time.perf_counter() - started
        parts = {text: _parts(text, signal, batch) for text, signal in first.items()}
        moved = {text: _parts(text, second[text], batch) for text in first}
        digests = {text: row_digests(part) for text, part in parts.items()}
        row_wise = batch == 1 or all(
            torch.equal(digests[text][: batch - moved_by], row_digests(moved[text])[moved_by:])
            and not (parts[text].shape[1] > 1 and torch.equal(digests[text][0], digests[text][1]))  # which is whose?
            for text in first
        )
        if not row_wise:
            again = run(noise[moved_by:])
            for text, digest in digests.items():
                if not torch.equal(digest, row_digests(_parts(text, again[text], batch))):
                    raise ValueError(
                        f"{text!r} of {name} is another one when the same batch is given again: set "
                        "trainer.deterministic=true (+trainer.deterministic=true), or teacher_cache=off"
                    )
    whole = hashlib.sha256()
    for text, part in parts.items():
        whole.update(f"{text} {tuple(part.shape)} {part.dtype}".encode() + digests[text].numpy().tobytes())
    return Probe(
        {text: tuple(part.shape[1:]) for text, part in parts.items()},
        {text: signal.dtype for text, signal in first.items()},
        {text: memory_order(signal) for text, signal in first.items()},
        whole.hexdigest(),
        row_wise,
        seconds,
    )


def _noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Fixed noise in the form of a batch, in its order in memory.

    Whole numbers are zeros and ones, which may be places in a table.
    """
    generator = torch.Generator().manual_seed(0)
    if like.is_floating_point():
        noise = torch.randn(shape, generator=generator).to(like.device, like.dtype)
    else:
        noise = torch.randint(0, 2, shape, generator=generator).to(like.device, like.dtype)
    order = memory_order(like)
    back = sorted(range(like.ndim), key=order.__getitem__)
    return noise.permute(order).contiguous().permute(back)


def _parts(text: str, signal: Tensor, batch: int) -> Tensor:
    """(B, rows, ...) of (B * rows, ...)."""
    if signal.ndim == 0 or not len(signal) or len(signal) % batch:
        raise ValueError(
            f"{text!r} is {tuple(signal.shape)} for a batch of {batch}: only signals with rows for each sample can be "
            "kept; set teacher_cache=off"
        )
    return signal.detach().reshape(batch, len(signal) // batch, *signal.shape[1:])


def _random_state(device: torch.device) -> tuple[object, ...]:
    cuda = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    numpy = pickle.dumps(np.random.get_state())  # noqa: NPY002 - the generator that users' code draws from
    return torch.get_rng_state().tolist(), cuda, numpy, random.getstate()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
