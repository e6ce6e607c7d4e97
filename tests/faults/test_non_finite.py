"""NaN and infinity in batches, terms, gradients and teachers, on one rank or two: nothing of it reaches the weights."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

import processes
from faults import poison
from faults.poison import BAD, At, Overflows, Points, States, fit, module
from faults.report import report
from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import EMATeacher, NonFinite, NonFiniteError, RankGuard, non_finite
from lit_distill.losses import hard_label_loss
from lit_distill.losses._numerics import values_unchecked
from lit_distill.losses.feature.overhaul import partial_l2

STEP = BAD // poison.BATCH  # the batch, from 0, that holds the poisoned sample
PROMISE = "a step that is not finite does not reach the weights"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def is_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


CASES: dict[str, Any] = {
    "NaN in a batch": lambda value: (module(), Points(value)),
    "a term": lambda value: (module(At(STEP, value)), Points()),
    "a term of little weight": lambda value: (module(At(STEP, value), weight=1e-9), Points()),
    "a gradient": lambda value: (module(At(STEP, value, in_gradient=True)), Points()),
    "a frozen teacher": lambda value: (module(teacher=Overflows()), Points()),
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("case", CASES)
def test_raise_leaves_everything_as_the_step_before(case: str, value: float) -> None:
    model, data = CASES[case](value)
    states = States()
    with pytest.raises(NonFiniteError) as caught:
        fit(model, data, NonFinite(), states)
    assert len(states.states) == STEP
    trained = {name: tensor for name, tensor in states.states[-1].items() if not name.startswith("momentum")}
    survived = same(trained, dict(model.state_dict()))
    assert survived
    assert is_finite(trained)
    text = str(caught.value)
    assert f"step {STEP + 1} (epoch 0, batch {STEP}) is not finite" in text
    assert "rank 0" in text or case == "a gradient"
    report(PROMISE, tried=1, survived=int(survived))


@pytest.mark.parametrize("case", CASES)
def test_skip_trains_as_if_the_batch_had_not_been(case: str) -> None:
    model, data = CASES[case](math.nan)
    states, guard = States(), NonFinite(policy="skip")
    with pytest.warns(UserWarning, match="skipped, 1 of at most 10"):
        trainer = fit(model, data, guard, states)
    assert guard.skips == 1
    assert same(states.states[STEP], states.states[STEP - 1])
    assert not same(states.states[STEP + 1], states.states[STEP])
    assert all(map(is_finite, states.states))
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 1
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert all(map(math.isfinite, states.losses)), "a step that was skipped is in no figure of the log"
    report(PROMISE, tried=1, survived=1)


@pytest.fixture
def decides_on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[DistillModule], DistillModule]:
    """The device is the CPU here, whose fused optimizers leave a step out as those of CUDA do."""
    monkeypatch.setattr(non_finite, "_can_decide_on_device", lambda *_: True)

    def fused(model: DistillModule) -> DistillModule:
        model._optimizer_factory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
        return model

    return fused


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_device_leaves_out_what_the_cpu_would(
    case: str,
    accumulate: int,
    decides_on_device: Callable[[DistillModule], DistillModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_device, of_cpu = States(), States()
    for states, now in ((of_device, False), (of_cpu, True)):
        torch.manual_seed(0)
        model, data = CASES[case](math.nan)
        guard = NonFinite(policy="skip")
        if now:
            monkeypatch.setattr(non_finite, "_can_decide_on_device", lambda *_: False)
        with pytest.warns(UserWarning, match="skipped, 1 of at most 10") as told:
            trainer = fit(decides_on_device(model), data, guard, states, accumulate_grad_batches=accumulate)
        assert guard.skips == 1
        assert "found_inf" not in vars(trainer.optimizers[0])
        assert f"step {STEP // accumulate + 1} (epoch 0, batch" in str(told[-1].message)
    ends = slice(accumulate - 1, None, accumulate)
    assert all(map(same, of_device.states[ends], of_cpu.states[ends]))
    assert of_device.losses == of_cpu.losses
    report(PROMISE, tried=1, survived=1)


@pytest.mark.parametrize("batches", [STEP + 1, STEP + 3])
def test_a_step_that_the_device_left_out_is_refused_a_step_later(
    batches: int, decides_on_device: Callable[[DistillModule], DistillModule]
) -> None:
    model, states = decides_on_device(module()), States()
    with pytest.raises(NonFiniteError, match=r"step 5 \(epoch 0, batch 4\) is not finite") as caught:
        fit(model, Points(math.nan), NonFinite(), states, limit_train_batches=batches)
    assert same(states.states[STEP], states.states[STEP - 1])
    assert len(states.states) == STEP + 1
    assert is_finite(model.state_dict())
    for part in ("term 'kd' (KDLoss: Student <- Teacher, weight 1.0) is nan", "17 (videos/17.mp4)"):
        assert part in str(caught.value)


def test_the_count_in_a_checkpoint_has_the_last_step(
    decides_on_device: Callable[[DistillModule], DistillModule],
) -> None:
    kept: list[int] = []

    class Saves(States):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            kept.append(guard.state_dict()["skips"])

    guard = NonFinite(policy="skip")
    with pytest.warns(UserWarning, match="skipped, 1"):
        fit(decides_on_device(module()), Points(math.nan), guard, Saves())
    assert kept == [0] * STEP + [1] * (len(kept) - STEP)


def test_a_dropped_step_is_no_unused_parameter(tmp_path: Path) -> None:
    class Plain(LightningModule):
        """It knows nothing of dropped steps."""

    wrapped_module = Plain()
    wrapped_module.one, wrapped_module.other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(wrapped_module.parameters())
    guard = NonFinite(policy="skip")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(wrapped_module)
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=wrapped), callbacks=[guard])
        guard._drop(wrapped_module, optimizer)
        RankGuard().on_before_optimizer_step(trainer, wrapped_module, optimizer)
        guard.on_train_batch_start(trainer, wrapped_module, None, 1)
        for parameter in wrapped_module.one.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with pytest.raises(ValueError, match=r"no gradient reached other.weight, other.bias"):
            RankGuard().on_before_optimizer_step(trainer, wrapped_module, optimizer)
    finally:
        guard.on_train_end()
        torch.distributed.destroy_process_group()


def test_the_message_names_term_pair_samples_and_files() -> None:
    with pytest.raises(NonFiniteError) as caught:
        fit(module(), Points(math.nan), NonFinite())
    for part in (
        "the batch's inputs holds 1 NaN and 0 infinite of (4, 4), sample 17 (videos/17.mp4)",
        "term 'kd' (KDLoss: Student <- Teacher, weight 1.0) is nan",
        "samples of the batch: 16 (videos/16.mp4), 17 (videos/17.mp4)",
        "NonFinite(policy='skip')",
    ):
        assert part in str(caught.value)


def test_a_frozen_teacher_is_named_with_what_to_try() -> None:
    with pytest.raises(NonFiniteError) as caught:
        fit(module(teacher=Overflows()), Points(), NonFinite())
    text = str(caught.value)
    assert "frozen model 'Teacher' gave 0 NaN and 3 infinite of (4, 3) in 'Teacher', sample 17" in text
    assert "precision" in text
    assert "signal 'Student'" not in text


def test_a_gradient_names_its_parameters() -> None:
    with pytest.raises(
        NonFiniteError, match=r"losses are finite, but the gradient is not in \d+ of 6 .*models.Student"
    ):
        fit(module(At(STEP, 0.0, in_gradient=True)), Points(), NonFinite())


def test_a_term_without_a_valid_element_says_so() -> None:
    with pytest.raises(NonFiniteError, match="no valid element"):
        fit(module(At(STEP, math.nan)), Points(), NonFinite())


def test_the_budget_is_kept_over_checkpoints(tmp_path: Path) -> None:
    first = NonFinite(policy="skip", max_skips=1)
    keep = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="skipped"):
        fit_kept(module(), first, keep)
    second = NonFinite(policy="skip", max_skips=1)
    with pytest.raises(NonFiniteError, match="one more than max_skips=1"):
        fit_kept(module(), second, ckpt_path=str(tmp_path / "end.ckpt"))
    assert second.skips == 2


def fit_kept(model: LightningModule, *callbacks: Any, ckpt_path: str | None = None) -> None:
    trainer = Trainer(
        max_epochs=2 if ckpt_path else 1, accelerator="cpu", callbacks=list(callbacks), logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=len(callbacks) > 1,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Points(math.nan), batch_size=4), ckpt_path=ckpt_path)


@pytest.mark.parametrize("where", [3, 4, 5])
def test_accumulation_drops_the_whole_window(where: int) -> None:
    states, guard = States(), NonFinite(policy="skip")
    with pytest.warns(UserWarning, match=r"batches 3 to 5.*\n.*batch %d" % where):  # noqa: UP031
        trainer = fit(module(At(where, math.nan)), Points(), guard, states, accumulate_grad_batches=3)
    assert guard.skips == 1
    before, after = states.states[2], states.states[5]
    assert same(before, after)
    assert all(is_finite(s) for s in states.states[5:])
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    report(PROMISE, tried=1, survived=1)


def test_a_finite_run_is_not_changed() -> None:
    runs = []
    for callbacks in ((), (NonFinite(),)):
        states = States()
        fit(module(), Points(), *callbacks, states)
        runs.append(states.states)
    assert all(same(one, other) for one, other in zip(*runs, strict=True))


def test_huge_but_finite_gradients_pass() -> None:
    model = module()
    model.composer.terms["ce"].weight = 1e25  # the norm's squares overflow float32, the gradients do not
    states = States()
    fit(model, Points(), NonFinite(), states, limit_train_batches=1)
    assert len(states.states) == 1


# ---------------------------------------------------------------- fp16's scaler


def scaled(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_the_scalers_own_skips_are_not_failures() -> None:
    plugin, states, guard = scaled(2.0**40), States(), NonFinite()
    fit(module(), Points(), guard, states, plugins=[plugin])
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() < 2.0**40  # it did skip
    assert guard.skips == 0
    assert all(map(is_finite, states.states))


def test_a_loss_that_is_not_finite_is_a_failure_under_the_scaler() -> None:
    with pytest.raises(NonFiniteError, match="term 'odd'"):
        fit(module(At(STEP, math.nan)), Points(), NonFinite(), plugins=[scaled(8.0)])


def test_a_collapsed_scale_is_a_failure() -> None:
    model = module(At(0, 0.0, in_gradient=True))
    with pytest.raises(NonFiniteError, match="gradients overflow at any scale"):
        fit(model, Points(), NonFinite(min_scale=16.0), plugins=[scaled(8.0)])


# ---------------------------------------------------------------- other users


class Plain(LightningModule):
    """A LightningModule that knows nothing of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.net = poison.net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def test_any_lightning_module_is_protected() -> None:
    model = Plain()
    with pytest.raises(NonFiniteError, match="rank 0: the loss of batch 4 is nan"):
        fit(model, Points(math.nan), NonFinite())  # type: ignore[arg-type]
    assert is_finite(model.state_dict())


def test_validation_warns() -> None:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[NonFinite()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    bad = DataLoader(Points(math.nan), batch_size=4)
    with pytest.warns(UserWarning, match=r"not finite: val/ce, val/kd, val/loss"):
        trainer.fit(module(), DataLoader(Points(), batch_size=4), bad)


def test_an_averaged_teacher_waits_as_well() -> None:
    torch.manual_seed(1)
    losses = {
        "mse": LossTerm(At(STEP, math.nan), pair=("Student", "Teacher")),
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
    }
    model = DistillModule(
        {"Student": poison.net(), "Teacher": poison.net()}, losses, frozen=["Teacher"], preflight=False,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    )  # fmt: skip
    states = States()
    with pytest.warns(UserWarning, match="skipped"):
        fit(model, Points(), NonFinite(policy="skip"), EMATeacher(), states)
    assert same(states.states[STEP], states.states[STEP - 1])
    assert not same(states.states[STEP + 1], states.states[STEP])


def test_no_loss_hides_what_is_not_finite() -> None:
    student, bad = torch.randn(4, 3), torch.randn(4, 3)
    bad[1, 2] = -math.inf
    with values_unchecked():
        assert hard_label_loss(student, bad).isnan()
        assert partial_l2(student, bad, torch.tensor(0.0)).isnan()
        assert partial_l2(bad, student, torch.tensor(0.0)).isnan()
    with pytest.raises(ValueError, match="NaN"):
        hard_label_loss(student, bad)


def test_arguments_are_checked() -> None:
    for arguments in ({"policy": "ignore"}, {"max_skips": -1}, {"min_scale": 0.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            NonFinite(**arguments)


# ---------------------------------------------------------------- two ranks


@pytest.mark.parametrize(
    ("kind", "policy", "strategy"),
    [
        ("loss", "raise", "ddp"),
        ("gradient", "skip", "ddp"),
        ("input", "skip", "ddp"),
        ("loss", "skip", "ddp_find_unused_parameters_true"),
    ],
)
def test_ranks_agree_on_what_only_one_of_them_met(kind: str, policy: str, strategy: str, tmp_path: Path) -> None:
    given = ["-m", "faults.poison", str(tmp_path), kind, policy, strategy]
    processes.run_ranks(2, given, cwd=Path(__file__).parents[1], timeout=90)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    survived = 0
    for rank in ranks:
        steps = rank["states"]
        assert all(map(is_finite, steps))
        if policy == "raise":
            assert "rank 1: term 'odd' (At: Student <- Teacher, weight 1e-09) is nan" in rank["told"]
            assert len(steps) == 2
            trained = {name: value for name, value in steps[-1].items() if not name.startswith("momentum")}
            assert same(trained, rank["last"])
        else:
            assert rank["skips"] == 1
            assert sum(same(a, b) for a, b in itertools.pairwise(steps)) == 1
        survived += 1
    weights = [{n: v for n, v in rank["last"].items() if "Student" in n and "running" not in n} for rank in ranks]
    assert same(*weights)
    report(PROMISE, tried=1, survived=int(survived == 2))


def test_no_warning_without_cause() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not finite.*")
        fit(module(), Points(), NonFinite(policy="skip"))
