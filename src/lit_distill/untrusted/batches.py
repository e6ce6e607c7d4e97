"""What the data of an untrusted config may ask for: batches, workers and limits that a machine can hold."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeGuard

MOST: Final[Mapping[str, int]] = {
    "num_classes": 1_000_000, "num_frames": 1_024, "size": 2_048, "scale": 4_096, "batch_size": 1_024,
    "eval_batch_size": 1_024, "num_workers": 64, "prefetch": 64, "shuffle_window": 1_000_000,
}  # fmt: skip
"""Of arguments of data modules."""
BATCH_BYTES: Final = 8 << 30
"""Of the floats of a batch: 512 clips of 16 frames of 224 x 224 have 4.9 GB."""
VIEWS: Final = 30
"""Of a sample in dense evaluation."""
ROOTS: Final = 1_000
"""Folders that lists may name files in."""
LIMITS: Final[Mapping[str, float]] = {"frames": 1_000_000, "pixels": 7_680 * 4_320, "seconds": 60.0}
"""On one video, which a config may lower: those of :class:`lit_distill.data.Limits`."""
CACHE_GB: Final = 4.0
"""Of decoded frames in memory or on disk, which a config may lower."""


def held_data(node: Mapping[str, Any], *, given: Collection[str] = ()) -> dict[str, Any]:
    """The data of an untrusted config, where what it asks for is within limits; what is only a limit is lowered.

    Args:
        node: the arguments of a data module.
        given: those that the caller gives instead.

    Warns:
        UserWarning: a limit is lowered.

    Raises:
        ValueError: an argument, or a batch, is too large; says what to set.

    Example:
        >>> held_data({"num_workers": 8, "limits": {"seconds": 5}})
        {'num_workers': 8, 'limits': {'frames': 1000000, 'pixels': 33177600, 'seconds': 5}}
        >>> held_data({"num_workers": 10_000})
        Traceback (most recent call last):
        ...
        ValueError: data.num_workers: expected at most 64 in an untrusted run, got 10000: set data.num_workers=<number>
    """
    held = {name: value for name, value in node.items() if name not in given}
    for name, most in MOST.items():
        value = held.get(name)
        if _is_number(value) and not abs(value) <= most:
            raise ValueError(
                f"data.{name}: expected at most {most} in an untrusted run, got {value!r:.80}: set data.{name}=<number>"
            )
    if isinstance(roots := held.get("roots"), list) and len(roots) > ROOTS:
        raise ValueError(f"data.roots: expected at most {ROOTS:,} in an untrusted run, got {len(roots):,}")
    sizes = [held.get("num_frames", 1), held.get("size", 224), _largest_batch(held)]
    if all(_is_number(size) for size in sizes):
        frames, size, batch = sizes
        if (total := 12 * frames * size * size * batch) > BATCH_BYTES:
            raise ValueError(
                f"data: its batches of {batch} x {frames} x {size} x {size} pixels have {int(total):,} bytes, the "
                f"limit is {BATCH_BYTES:,}: set data.batch_size=<number> and data.eval_batch_size=<number>"
            )
    if "limits" in held:
        held["limits"] = _lowered(held["limits"])
    if _is_number(held.get("cache_gb")):
        held["cache_gb"] = _at_most(CACHE_GB, held["cache_gb"], "cache_gb")
    return {**node, **held}


def _largest_batch(node: Mapping[str, Any]) -> float:
    """Samples, or views of samples, of a batch in training or evaluation."""
    sizes = {name: node.get(name) for name in ("batch_size", "eval_batch_size")}
    training, evaluation = (value if _is_number(value) else 1 for value in sizes.values())
    return max(training, evaluation * (VIEWS if node.get("views") == "dense" else 1))


def _lowered(limits: Any) -> Any:
    if not isinstance(limits, Mapping):
        return limits  # the data module says what is wrong with it
    lower = {
        name: _at_most(LIMITS.get(name, value), value, f"limits.{name}")
        for name, value in limits.items()
        if _is_number(value)
    }
    return {**LIMITS, **{name: value for name, value in limits.items() if name not in lower}, **lower}


def _at_most(most: float, value: float, name: str) -> float:
    if value > most:
        warnings.warn(
            f"data.{name}={value:g} of an untrusted run is lowered to {most:g}, the limit: set data.{name}=<number> to "
            "allow more",
            stacklevel=4,
        )
    return min(value, most)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
