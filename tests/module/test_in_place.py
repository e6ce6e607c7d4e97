"""A model that changes the batch in place is refused: the models after it would see another batch."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lit_distill import DistillModule, LossComposer, LossTerm
from lit_distill.data import ViewsBatch


class Normalizing(nn.Module):
    """Normalizes its input in place, in the named mode alone."""

    def __init__(self, when: str = "always", how: str = "version") -> None:
        super().__init__()
        self.when, self.how = when, how
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Any) -> Tensor:
        clip: Tensor = x["clips"][0] if isinstance(x, dict) else x
        if self.when in ("always", "training" if self.training else "evaluation"):
            (clip.data if self.how == "data" else clip).sub_(2.0).div_(3.0)
        return self.fc(clip)  # type: ignore[no-any-return]


class Nested(NamedTuple):
    """A batch of nested inputs."""

    inputs: dict[str, list[Tensor]]
    target: Tensor


def nested(samples: list[Any]) -> Nested:
    x, y = default_collate(samples)
    return Nested({"clips": [x]}, y)


def pairs(collate: Any = default_collate) -> DataLoader[Any]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(dim=1)), batch_size=4, collate_fn=collate)


def module(models: dict[str, nn.Module], **kwargs: Any) -> DistillModule:
    return DistillModule(
        models=models,
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher")),
        },
        optimizer=partial(torch.optim.SGD, lr=0.1),
        **kwargs,
    )


def trainer(**kwargs: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(max_epochs=1, accelerator="cpu", **{**quiet, **kwargs})


CLEAN = nn.Linear


@pytest.mark.parametrize("preflight", [True, False])
@pytest.mark.parametrize("collate", [default_collate, nested])
def test_a_student_that_changes_the_batch_is_refused(preflight: bool, collate: Any) -> None:
    tried = module({"Student": Normalizing(), "Teacher": Normalizing("never")}, preflight=preflight)
    with pytest.raises(ValueError, match=r"^Student changes its input \(\d, 4\) in place .*give Student a clone\(\)"):
        trainer(num_sanity_val_steps=0).fit(tried, pairs(collate))


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_a_teacher_that_changes_the_batch_in_one_mode_is_refused(when: str) -> None:
    models = {"Teacher": Normalizing("evaluation"), "Student": CLEAN(4, 3)}
    if when == "training":
        models = {"Student": Normalizing("training"), "Teacher": CLEAN(4, 3)}
    with pytest.raises(ValueError, match=rf"^{next(iter(models))} changes its input"):
        trainer(num_sanity_val_steps=0).fit(module(models), pairs())


@pytest.mark.parametrize("collate", [default_collate, nested])
@pytest.mark.parametrize("stage", ["validate", "test", "fit"])
def test_it_is_refused_in_evaluation_too(stage: str, collate: Any) -> None:
    tried = module({"Student": Normalizing("evaluation"), "Teacher": Normalizing("never")}, preflight=False)
    loaders = [pairs(collate)] if stage != "fit" else [pairs(collate), pairs(collate)]  # for fit, in its sanity check
    with pytest.raises(ValueError, match=r"^Student changes its input \(4, 4\) in place"):
        getattr(trainer(), stage)(tried, *loaders)


def test_it_is_refused_where_views_are_averaged() -> None:
    def views(samples: list[Any]) -> ViewsBatch:
        x, y = default_collate(samples)
        return ViewsBatch(x[:, None].repeat(1, 2, 1), y)

    tried = module({"Student": Normalizing(), "Teacher": Normalizing("never")}, preflight=False)
    with pytest.raises(ValueError, match=r"^Student changes its input \(4, 2, 4\) in place"):
        trainer().validate(tried, pairs(views), verbose=False)


def test_changes_past_pytorchs_count_are_found_before_training() -> None:
    tried = module({"Student": Normalizing(how="data"), "Teacher": CLEAN(4, 3)})
    with pytest.raises(ValueError, match=r"^Student changes its input \(2, 4\) in place"):
        trainer().fit(tried, pairs())


def test_a_loss_that_changes_a_signal_is_refused_by_its_term() -> None:
    def scaled(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher.div_(2.0)).square().mean()

    composer = LossComposer({"scaled": LossTerm(scaled, pair=("Student", "Teacher"))})
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    with composer.capture({"Student": student, "Teacher": teacher}) as signals:
        student(torch.zeros(2, 4)), teacher(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"^term 'scaled' .*: the loss changes its input \(2, 3\) in place"):
        composer(signals)


def test_a_model_that_changes_a_copy_trains_as_before() -> None:
    class Copying(Normalizing):
        def forward(self, x: Any) -> Tensor:
            return super().forward(x.clone())

    trainer().fit(module({"Student": Copying(), "Teacher": CLEAN(4, 3)}), pairs(), pairs())
