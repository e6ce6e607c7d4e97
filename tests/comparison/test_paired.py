"""Paired statistics: values of tables and by hand, and what they must obey whatever the gains are."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distill.comparison.paired import holm, paired_gain, t_quantile, t_tail, verdict

# Of printed tables of Student's t: probability, degrees of freedom, quantile.
TABLE = [
    (0.95, 1, 6.314), (0.975, 1, 12.706), (0.995, 1, 63.657), (0.975, 2, 4.303), (0.975, 4, 2.776),
    (0.995, 4, 4.604), (0.95, 9, 1.833), (0.975, 29, 2.045), (0.9995, 10, 4.587), (0.975, 1000, 1.962),
]  # fmt: skip
GAINS = st.lists(st.floats(-50, 50), min_size=2, max_size=8)


@pytest.mark.parametrize(("probability", "freedom", "quantile"), TABLE)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, quantile: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(quantile, abs=6e-4)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 12.0, 400.0])
def test_tails_are_the_closed_forms_of_one_two_and_four_degrees(t: float) -> None:
    assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9)
    assert t_tail(t, 2) == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), rel=1e-6, abs=1e-12)
    share = t / math.sqrt(4 + t * t)
    assert t_tail(t, 4) == pytest.approx(0.5 - share * (3 - share * share) / 4, rel=1e-6, abs=1e-11)


def test_a_paired_test_by_hand() -> None:
    # sleep data of Student (1908), the second drug less the first: mean 1.58, s 1.23, t 4.0621, p 0.002833
    gains = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = paired_gain(gains)
    assert found.mean == pytest.approx(1.58)
    assert found.interval is not None
    assert list(found.interval) == pytest.approx([0.7001142, 2.4598858], abs=1e-6)
    assert found.p == pytest.approx(0.002832890, abs=1e-8)
    assert found.gains == tuple(gains)


def test_one_seed_shows_nothing() -> None:
    found = paired_gain([12.0])
    assert (found.mean, found.interval, found.p) == (12.0, None, None)
    assert verdict(found.mean, found.p) == "not shown"


def test_ties_show_nothing() -> None:
    found = paired_gain([0.0] * 5)
    assert (found.mean, found.interval, found.p) == (0.0, None, 1.0)
    assert verdict(found.mean, found.p) == "not shown"


@pytest.mark.parametrize(("seeds", "said"), [(2, "not shown"), (5, "not shown"), (6, "better")])
def test_equal_gains_are_judged_by_their_signs_alone(seeds: int, said: str) -> None:
    found = paired_gain([0.1 + 0.2] * seeds)
    assert found.interval is None
    assert found.p == 2 / 2**seeds
    assert verdict(found.mean, found.p) == said


@settings(deadline=None)
@given(GAINS, st.floats(0.1, 10))
def test_the_interval_and_p_agree_and_follow_the_unit(gains: list[float], unit: float) -> None:
    found = paired_gain(gains)
    turned = paired_gain([-unit * gain for gain in gains])
    assert turned.mean == pytest.approx(-unit * found.mean, abs=1e-6)
    if found.interval is None or turned.interval is None:
        return
    assert found.p is not None
    low, high = found.interval
    assert low < found.mean < high
    assert abs((found.p < 0.05) - (low > 0 or high < 0)) == 0 or found.p == pytest.approx(0.05, abs=1e-6)
    assert turned.p == pytest.approx(found.p, rel=1e-5, abs=1e-12)
    assert list(turned.interval) == pytest.approx([-unit * high, -unit * low], abs=1e-6)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """All samples of three of a normal distribution's quantiles: 95 of 100 intervals hold its mean."""
    points = [statistics.NormalDist().inv_cdf((k + 0.5) / 16) for k in range(16)]
    samples = list(itertools.product(points, repeat=3))
    intervals = [paired_gain(sample).interval for sample in samples]
    covered = sum(ends is not None and ends[0] <= 0 <= ends[1] for ends in intervals)
    assert covered / len(samples) == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(one <= other <= min(1.0, len(p) * one) for one, other in zip(p, adjusted, strict=True))
    assert sorted(adjusted) == [adjusted[i] for i in sorted(range(len(p)), key=lambda i: (p[i], adjusted[i]))]


@pytest.mark.parametrize("gains", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_gain_is_refused(gains: list[float]) -> None:
    with pytest.raises(ValueError, match="paired gains are finite numbers, at least one"):
        paired_gain(gains)


def test_a_level_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="level is between 0 and 1"):
        paired_gain([1.0, 2.0], level=0.0)
