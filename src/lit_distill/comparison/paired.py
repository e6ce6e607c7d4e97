"""Paired statistics of few runs: intervals and p-values of mean gains, corrected for the number of comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["better", "worse", "not shown"]

LEVEL = 0.05


@dataclass(frozen=True)
class PairedGain:
    """The mean of paired differences, and what is known of it.

    Attributes:
        gains: the differences, a seed each.
        mean: of them.
        interval: 95 % confidence interval of the mean; None where there is none.
        p: two-sided p-value of no gain; None where there is none.
    """

    gains: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float | None


def paired_gain(gains: Sequence[float], *, level: float = LEVEL) -> PairedGain:
    r"""The paired t-test and its interval.

    With :math:`n` gains of mean :math:`m` and standard deviation :math:`s` (over :math:`n - 1`), the interval is
    :math:`m ± t_{1 - level/2, n-1} s / \sqrt{n}`, and p the two-sided tail of :math:`m \sqrt{n} / s`. It takes the
    gains as normal, which so few cannot show; with five seeds an exact test of signs could not reach 5 % at all.
    Where all gains are equal there is no :math:`s` to go by: p then is the exact sign-flip test's, :math:`2 / 2^n`
    (1 for gains of zero), and there is no interval. A single gain has neither.

    Args:
        gains: in any unit, at least one.
        level: of significance, in (0, 1).

    Raises:
        ValueError: there are no gains, one is not finite, or the level is out of range.

    Example:
        >>> found = paired_gain([1.0, 2.0, 3.0])
        >>> round(found.mean, 3), [round(end, 3) for end in found.interval], round(found.p, 4)
        (2.0, [-0.484, 4.484], 0.0742)
    """
    if not gains or not all(math.isfinite(gain) for gain in gains):
        raise ValueError(f"paired gains are finite numbers, at least one, got {list(gains)}")
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, got {level}")
    values, n = tuple(float(gain) for gain in gains), len(gains)
    mean = statistics.fmean(values)
    if n == 1:
        return PairedGain(values, mean, None, None)
    error = statistics.stdev(values) / math.sqrt(n)
    if error <= 1e-12 * max(abs(value) for value in values):  # equal but for rounding, or all zero
        return PairedGain(values, mean, None, 2 / 2**n if any(values) else 1.0)
    half = t_quantile(1 - level / 2, n - 1) * error
    return PairedGain(values, mean, (mean - half, mean + half), 2 * t_tail(abs(mean) / error, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: each p-value as it counts when so many are looked at together.

    The k-th smallest of m is multiplied by m - k + 1, held to rise and to be at most 1. Any of them at or below 5 %
    then is a mistake with a probability of at most 5 % over all (Holm, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted


def verdict(mean: float, p: float | None, *, level: float = LEVEL) -> Verdict:
    """What may be said of a gain: its sign where the (adjusted) p-value is below the level, else that none is shown.

    Example:
        >>> verdict(1.5, 0.01), verdict(-1.5, 0.01), verdict(9.0, 0.2), verdict(9.0, None)
        ('better', 'worse', 'not shown', 'not shown')
    """
    if p is None or p >= level or mean == 0:
        return "not shown"
    return "better" if mean > 0 else "worse"


def t_tail(t: float, freedom: int) -> float:
    r"""The upper tail of Student's t, :math:`P(T > t)`, for t of at least 0, to some 1e-15.

    By its finite sums for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4).

    Example:
        >>> round(t_tail(2.776445, 4), 6)
        0.025
    """
    is_odd, length = freedom % 2, math.hypot(t, math.sqrt(freedom))
    sine, cosine = t / length, math.sqrt(freedom) / length
    total = term = float(freedom > 1) * (cosine if is_odd else 1.0)
    for place in range(2 + is_odd, freedom, 2):
        term *= cosine * cosine * (place - 1) / place
        total += term
    inside = 2 / math.pi * (math.atan2(sine, cosine) + sine * total) if is_odd else sine * total
    return max(0.0, (1.0 - inside) / 2)


@lru_cache(maxsize=64)
def t_quantile(probability: float, freedom: int) -> float:
    """The t below which Student's t lies with a probability of at least 0.5, by bisection of :func:`t_tail`.

    Example:
        >>> round(t_quantile(0.975, 4), 4), round(t_quantile(0.975, 1), 4)
        (2.7764, 12.7062)
    """
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - probability:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - probability else (low, middle)
    return high
