from __future__ import annotations

import math
import pickle

import pytest

from lit_distill.schedules import Constant, Cosine, Linear, Schedule, Step, WarmupCosine

ALL = [
    Constant(0.3),
    Linear(start=1.0, end=0.2, epochs=4),
    Cosine(start=1.0, end=0.2, epochs=4),
    Step(milestones=(2, 4), factor=0.5),
    WarmupCosine(epochs=8, warmup_epochs=2, warmup_start=0.1),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert [copy(epoch / 4) for epoch in range(80)] == [schedule(epoch / 4) for epoch in range(80)]
    assert all(math.isfinite(schedule(epoch / 4)) for epoch in range(80))


def test_decays_reach_their_end_and_stay() -> None:
    for schedule in (ALL[1], ALL[2]):
        assert [schedule(epoch) for epoch in (0, 4, 9)] == pytest.approx([1.0, 0.2, 0.2])
        values = [schedule(epoch / 10) for epoch in range(41)]
        assert values == sorted(values, reverse=True)


def test_steps_at_the_milestone_itself() -> None:
    assert [ALL[3](epoch) for epoch in (0, 1.99, 2, 3.99, 4, 100)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_warm_up_meets_the_unshifted_cosine() -> None:
    schedule = ALL[4]
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(2) == pytest.approx((1 + math.cos(math.pi * 2 / 8)) / 2)
    assert schedule(2 - 1e-9) == pytest.approx(schedule(2), abs=1e-8)
    assert schedule(1) == pytest.approx((schedule(0) + schedule(2)) / 2)
    assert schedule(8) == schedule(11) == 0.0


def test_without_warm_up_it_is_the_cosine() -> None:
    plain, cosine = WarmupCosine(epochs=6, warmup_epochs=0), Cosine(start=1.0, end=0.0, epochs=6)
    assert [plain(epoch) for epoch in range(7)] == pytest.approx([cosine(epoch) for epoch in range(7)])


def test_a_warm_up_longer_than_training_is_cut() -> None:
    schedule = WarmupCosine(epochs=1, warmup_epochs=10, warmup_start=0.5)
    assert [schedule(epoch) for epoch in (0, 0.5, 1)] == pytest.approx([0.5, 0.25, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(start=0, end=1, epochs=0), "Linear expects epochs above 0, came 0"),
        (lambda: Cosine(start=0, end=1, epochs=-1), "Cosine expects epochs above 0"),
        (lambda: WarmupCosine(epochs=float("nan"), warmup_epochs=0), "epochs above 0"),
        (lambda: WarmupCosine(epochs=3, warmup_epochs=-1), "warmup_epochs of at least 0, came -1"),
        (lambda: WarmupCosine(epochs=3, warmup_epochs=1, warmup_start=-0.1), "warmup_start of at least 0"),
        (lambda: Step(milestones=(4, 2), factor=0.1), r"ascending milestones, came \[4, 2\]"),
        (lambda: Step(milestones=(2, 2), factor=0.1), "ascending milestones"),
    ],
)
def test_values_out_of_range(make: type[Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
