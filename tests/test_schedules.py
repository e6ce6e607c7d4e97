from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

from lit_distill import LossComposer, LossTerm
from lit_distill.schedules import Constant, Cosine, Linear, RampUp, Relative, Schedule, Step, WarmupCosine

ALL = [
    Constant(0.3),
    Linear(start=1.0, end=0.2, epochs=4),
    Cosine(start=1.0, end=0.2, epochs=4),
    Step(milestones=(2, 4), factor=0.5),
    WarmupCosine(epochs=8, warmup_epochs=2, warmup_start=0.1),
    RampUp(epochs=4, end=2.0, delay=1.5),
    Relative(schedule=Linear(start=0.0, end=1.0, epochs=0.25), total=8),
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


def test_a_ramp_is_silent_before_it_and_full_after_it() -> None:
    ramp = ALL[5]
    assert [ramp(epoch) for epoch in (0, 1, 1.499)] == [0.0, 0.0, 0.0]
    assert ramp(1.5) == pytest.approx(2 * math.exp(-5))
    assert ramp(3.5) == pytest.approx(2 * math.exp(-5 / 4))
    assert ramp(5.5) == ramp(50) == 2.0
    values = [ramp(epoch / 10) for epoch in range(70)]
    assert values == sorted(values)


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_delay_moves_the_way_and_keeps_its_shape(kind: type[Linear | Cosine]) -> None:
    prompt, late = kind(start=0.25, end=1.0, epochs=3), kind(start=0.25, end=1.0, epochs=3, delay=2)
    assert late(0) == late(1.9) == 0.25
    assert [late(2 + epoch / 4) for epoch in range(20)] == [prompt(epoch / 4) for epoch in range(20)]


def test_relative_epochs_are_shares_of_the_training() -> None:
    quarter = ALL[6]
    assert [quarter(epoch) for epoch in (0, 1, 2, 8)] == [0.0, 0.5, 1.0, 1.0]
    stairs = Relative(schedule=Step(milestones=(0.5, 0.75), factor=0.1), total=120)
    assert [round(stairs(epoch), 12) for epoch in (59.9, 60, 89.9, 90)] == [1.0, 0.1, 0.1, 0.01]


def test_a_weight_that_is_no_number_is_told_with_its_term_and_epoch() -> None:
    composer = LossComposer({"hint": LossTerm(nn.MSELoss(), pair=("Student", "GroundTruth"), weight=math.log1p)})
    student = nn.Linear(2, 2)
    with composer.capture({"Student": student}) as signals:
        student(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"term 'hint': its schedule gives the weight inf at epoch inf"):
        composer(signals, torch.zeros(3, 2), epoch=math.inf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(start=0, end=1, epochs=0), "Linear expects epochs above 0, got 0"),
        (lambda: Cosine(start=0, end=1, epochs=-1), "Cosine expects epochs above 0"),
        (lambda: WarmupCosine(epochs=float("nan"), warmup_epochs=0), "epochs above 0"),
        (lambda: WarmupCosine(epochs=3, warmup_epochs=-1), "warmup_epochs of at least 0, got -1"),
        (lambda: WarmupCosine(epochs=3, warmup_epochs=1, warmup_start=-0.1), "warmup_start of at least 0"),
        (lambda: RampUp(epochs=0), "RampUp expects epochs above 0"),
        (lambda: RampUp(epochs=1, delay=-1), "RampUp expects a delay of at least 0, got -1"),
        (
            lambda: Linear(start=0, end=1, epochs=1, delay=float("nan")),
            "a delay of at least 0, got nan",
        ),
        (lambda: Relative(schedule=Constant(1.0), total=None), "total above 0, .* got None: set trainer.max_epochs"),  # type: ignore[arg-type]
        (lambda: Relative(schedule=Constant(1.0), total=-1), "total above 0"),
        (lambda: Step(milestones=(4, 2), factor=0.1), r"ascending milestones, got \[4, 2\]"),
        (lambda: Step(milestones=(2, 2), factor=0.1), "ascending milestones"),
    ],
)
def test_values_out_of_range(make: type[Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
