"""Training does not drift unnoticed: five loss curves are what they were when they were committed."""

from __future__ import annotations

import pytest

from curves import make

# Relative, after the first step; about four times what weights moved by 1e-7 change within 100 steps. With a teacher
# that learns along it is amplified from the second step on: BatchNorm over 8 clips.
AFTERWARDS = {"baseline": 1e-2, "kd": 1e-2, "dml": 0.15, "crd": 0.1, "rkd": 0.8}
FIRST = 1e-4  # the first forward pass: measured 2e-6


# Quick: a frozen teacher and one that learns along, whose step has all that a plain one has. RKD's and CRD's losses are
# compared with published values in tests/parity, and the first steps below repeat those of the whole curves.
QUICK = [("kd", 12), ("dml", 12)]
SLOW = [(name, steps) for steps in (12, make.STEPS) for name in make.EXPERIMENTS if (name, steps) not in QUICK]


@pytest.mark.parametrize(("name", "steps"), [*QUICK, *(pytest.param(*curve, marks=pytest.mark.slow) for curve in SLOW)])
def test_the_curve_is_the_committed_one(name: str, steps: int) -> None:
    committed, now = make.read(name), make.curve(name, steps=steps)
    assert len(committed) == make.STEPS
    assert len(now) == steps
    for step, (was, value) in enumerate(zip(committed, now, strict=False), 1):
        allowed = FIRST if step == 1 else AFTERWARDS[name]
        assert abs(value - was) <= allowed * abs(was), (
            f"{name}: the loss of step {step} is {value:.8g}, it was {was:.8g} (allowed: {allowed:g} of it). If "
            "training figures are meant to change: run `python tests/curves/make.py` and tell it in CHANGELOG.md"
        )
