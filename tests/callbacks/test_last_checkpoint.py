"""When last.ckpt is saved, and that a step's draws follow from its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from faults.tiny import loader, module, trainer
from lit_distill.callbacks import LastCheckpoint, StepSeed


class Counted(LastCheckpoint):
    """Notes the step of each save."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.steps: list[int] = []

    def save(self, trainer: Any) -> Path:
        self.steps.append(trainer.global_step)
        return super().save(trainer)


@pytest.mark.parametrize(
    ("every", "accumulate", "steps"),
    [(None, 1, [4, 8, 12]), (3, 1, [3, 4, 6, 8, 9, 12]), (1, 2, [1, 2, 3, 4, 5, 6]), (100, 1, [4, 8, 12])],
)
def test_saves_between_steps(tmp_path: Path, every: int | None, accumulate: int, steps: list[int]) -> None:
    last = Counted(tmp_path, every_n_steps=every)
    fit = trainer(
        tmp_path, callbacks=[last], enable_checkpointing=True, max_epochs=3, accumulate_grad_batches=accumulate
    )
    fit.fit(module(), loader())
    assert last.steps == steps
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


@pytest.mark.parametrize("every", [0, -1, True])
def test_the_number_of_steps_is_checked(every: int) -> None:
    with pytest.raises(ValueError, match="every_n_steps is a number"):
        LastCheckpoint(every_n_steps=every)


def test_draws_depend_on_seed_epoch_batch_and_rank_alone() -> None:
    class Fake:
        current_epoch, global_rank = 1, 0

    def draw(seed: int = 0, batch: int = 0, **place: int) -> float:
        fake: Any = Fake()
        for name, value in place.items():
            setattr(fake, name, value)
        StepSeed(seed=seed).on_train_batch_start(fake, fake, None, batch)
        return float(torch.rand(()))

    with torch.random.fork_rng():
        first = draw()
        torch.rand(7)
        assert draw() == first
        others = [draw(seed=1), draw(batch=1), draw(current_epoch=2), draw(global_rank=1)]
    assert len({first, *others}) == 5
