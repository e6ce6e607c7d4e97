"""Torch schedulers from a factory move with the steps or epochs that they are made for, or it is asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm

EPOCHS, BATCHES = 3, 4
STEPS = EPOCHS * BATCHES
LOADER = DataLoader(
    TensorDataset(torch.randn(2 * BATCHES, 4), torch.zeros(2 * BATCHES, dtype=torch.long)), batch_size=2
)
one_cycle = partial(lr_scheduler.OneCycleLR, max_lr=0.1)


def linear(epochs_or_steps: int) -> Callable[..., float]:
    """As transformers' ``get_linear_schedule_with_warmup`` has it."""

    def factor(step: int, *, num_training_steps: int) -> float:
        return max(0.0, 1 - step / num_training_steps)

    return partial(factor, num_training_steps=epochs_or_steps)


class Halving(lr_scheduler.LRScheduler):
    """Of steps or epochs, which nobody can see."""

    def get_lr(self) -> list[float | torch.Tensor]:
        return [rate * 0.5**self.last_epoch for rate in self.base_lrs]


def fit(factory: Any, **more: Any) -> tuple[list[float], str]:
    """The learning rates of each step, and the interval that was chosen."""
    module = DistillModule(
        {"Student": nn.Linear(4, 3)},
        {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        scheduler=factory,
    )
    rates: list[float] = []

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_epochs": EPOCHS, **more},
    )  # fmt: skip
    step = module.training_step

    def noted(batch: Any, batch_idx: int) -> Any:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        return step(batch, batch_idx)

    module.training_step = noted  # type: ignore[method-assign]
    trainer.fit(module, LOADER)
    return rates, trainer.lr_scheduler_configs[0].interval


def quiet(factory: Any, **more: Any) -> tuple[list[float], str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*(moves with every|has a length)")
        return fit(factory, **more)


@pytest.mark.parametrize(
    "factory",
    [
        partial(one_cycle, total_steps=STEPS),
        partial(one_cycle, epochs=EPOCHS, steps_per_epoch=BATCHES),
        lambda optimizer: one_cycle(optimizer, total_steps=STEPS),
        lambda optimizer: {"scheduler": one_cycle(optimizer, total_steps=STEPS)},
        instantiate(
            {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": 0.1, "total_steps": STEPS}
        ),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer, 0.5, 4), one_cycle(optimizer, total_steps=STEPS - 4)],
            milestones=[4],
        ),
        lambda optimizer: lr_scheduler.ChainedScheduler(
            [one_cycle(optimizer, total_steps=STEPS), lr_scheduler.ConstantLR(optimizer, 1.0, 1)]
        ),
        lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=2),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, linear(STEPS)),
    ],
)
def test_what_counts_steps_moves_with_steps(factory: Any) -> None:
    rates, interval = quiet(factory)
    assert interval == "step"
    assert len(set(rates[-BATCHES:])) > 1  # it moves within an epoch


def test_one_cycle_ends_where_it_is_to_end() -> None:
    rates, _ = quiet(partial(one_cycle, total_steps=STEPS))
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[-1] < 0.004


@pytest.mark.parametrize(
    "factory",
    [
        partial(one_cycle, total_steps=EPOCHS),
        partial(lr_scheduler.StepLR, step_size=1),
        partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS),
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=EPOCHS),
        partial(lr_scheduler.ExponentialLR, gamma=0.9),
        lambda optimizer: {"scheduler": lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n), "interval": "epoch"},
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, linear(EPOCHS)),
        lambda optimizer: {"scheduler": Halving(optimizer), "interval": "epoch"},
        lambda optimizer: {"scheduler": lr_scheduler.LinearLR(optimizer), "interval": "epoch"},
    ],
)
def test_what_counts_epochs_moves_with_epochs(factory: Any) -> None:
    rates, interval = quiet(factory)
    assert interval == "epoch"
    assert len(set(rates)) == EPOCHS


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (
            partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
            r"CosineAnnealingLR has a length of 12, but training has",
        ),
        (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=6), "CosineAnnealingWarmRestarts has a length of 6"),
        (partial(lr_scheduler.MultiStepLR, milestones=[5, 9]), "MultiStepLR has a length of 9"),
        (
            partial(lr_scheduler.LambdaLR, lr_lambda=lambda n: 0.9**n),
            "LambdaLR as a scheduler factory moves with every",
        ),
        (lambda optimizer: Halving(optimizer), "Halving as a scheduler factory moves with every epoch"),
        (lr_scheduler.LinearLR, "LinearLR has a length of 5, .* so that it does not reach its end"),
        (partial(one_cycle, total_steps=2 * STEPS), r"OneCycleLR has 24 steps, but .* 12 optimizer steps in 3 epochs"),
        (lambda optimizer: lr_scheduler.LambdaLR(optimizer, linear(2 * STEPS)), "LambdaLR has 24 steps"),
    ],
)
def test_what_may_count_either_is_asked(factory: Any, text: str) -> None:
    with pytest.warns(UserWarning, match=text):
        fit(factory)


def test_a_cycle_that_ends_before_the_training_is_refused_at_its_start() -> None:
    with pytest.raises(
        ValueError, match=r"OneCycleLR has 7 steps, .*would fail after its last one: give total_steps=12"
    ):
        fit(partial(one_cycle, total_steps=7))
    with pytest.raises(ValueError, match=r"the factory's dict has \['sched'\], expected"):
        fit(lambda optimizer: {"sched": None})


def test_accumulation_and_max_steps_count() -> None:
    assert quiet(partial(one_cycle, total_steps=6), accumulate_grad_batches=2)[1] == "step"
    assert quiet(partial(one_cycle, total_steps=5), max_steps=5, max_epochs=-1)[1] == "step"
    assert quiet(partial(one_cycle, total_steps=5), max_steps=5)[1] == "step"
