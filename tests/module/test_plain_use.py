"""What users of Lightning try first: predict on labelled loaders, metrics by class, schedulers, batches of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lit_distill import DistillMixin, DistillModule, LossComposer, LossTerm
from lit_distill._module.evaluated import by_class
from lit_distill.losses import KDLoss

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


def module(*, student: nn.Module | None = None, teacher: nn.Module | None = None, **given: Any) -> DistillModule:
    kd = LossTerm(KDLoss(temperature=4.0), pair=given.pop("pair", ("Student", "Teacher")))
    return DistillModule(
        {"Student": student or nn.Linear(4, 3), "Teacher": teacher or nn.Linear(4, 3), **given.pop("more", {})},
        {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")), "kd": kd},
        frozen=["Teacher", *given.pop("also_frozen", ())],
        optimizer=partial(SGD, lr=0.1),
        **given,
    )


def quiet(**given: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2, num_sanity_val_steps=0, **given,
    )  # fmt: skip


def loader(batch_size: int = 5) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size)


class Dicts(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": X[index], "y": Y[index]}


class OfDicts(DistillModule):
    def unpack(self, batch: Any) -> tuple[Any, Tensor | None, Tensor | None]:
        return batch["x"], batch["y"], None


class OfOneInput(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["x"]


@pytest.mark.parametrize("data", [TensorDataset(X, Y), TensorDataset(X, Y, torch.arange(10)), TensorDataset(X), X])
def test_predict_takes_batches_with_and_without_labels(data: Any) -> None:
    made = module()
    predicted = quiet().predict(made, DataLoader(data, batch_size=4))
    torch.testing.assert_close(torch.cat(predicted), made(X))  # type: ignore[arg-type]


def test_predict_takes_dicts() -> None:
    made = OfDicts(
        {"Student": nn.Linear(4, 3)}, {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    )
    predicted = quiet().predict(made, DataLoader(Dicts(), batch_size=4))
    torch.testing.assert_close(torch.cat(predicted), made(X))  # type: ignore[arg-type]
    as_they_are = quiet().predict(module(student=OfOneInput()), DataLoader(Dicts(), batch_size=4))
    torch.testing.assert_close(torch.cat(as_they_are), X)  # type: ignore[arg-type]


def test_predict_sees_what_the_student_sees() -> None:
    clips = torch.randn(4, 8, 3, 16, 16)
    student = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4 * 4, 3))
    made = module(
        student=student, teacher=nn.Sequential(nn.Flatten(), nn.Linear(clips[0].numel(), 3)),
        inputs={"Student": {"num_frames": 2, "size": 4}},
    )  # fmt: skip
    predicted = quiet().predict(made, DataLoader(TensorDataset(clips, Y[:4]), batch_size=2))
    torch.testing.assert_close(torch.cat(predicted), made(clips))  # type: ignore[arg-type]


# ---------------------------------------------------------------- metrics


class Named(LightningDataModule):
    class_names = ("cat", "dog", "emu")

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return loader()


def collection() -> MetricCollection:
    return MetricCollection(
        {"mean": MulticlassAccuracy(3), "each": MulticlassAccuracy(3, average=None)}, compute_groups=False
    )


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        (partial(MulticlassAccuracy, 3, average=None), ["MulticlassAccuracy/cat", "MulticlassAccuracy/emu"]),
        (collection, ["mean", "each/cat", "each/dog", "each/emu"]),
        (partial(MulticlassAccuracy, 3), ["MulticlassAccuracy"]),
    ],
)
def test_a_metric_of_each_class_is_logged_by_its_name(metrics: Callable[[], Any], wanted: list[str]) -> None:
    trainer = quiet()
    trainer.fit(module(metrics=metrics), datamodule=Named())
    assert {f"val/Student/{name}" for name in wanted} <= set(trainer.callback_metrics)


def test_without_names_classes_go_by_their_index() -> None:
    trainer = quiet()
    trainer.fit(module(metrics=partial(MulticlassAccuracy, 3, average=None)), loader(), loader())
    assert {f"val/Student/MulticlassAccuracy/{number}" for number in range(3)} <= set(trainer.callback_metrics)


def test_a_matrix_is_left_out_with_a_warning_and_nothing_stops() -> None:
    trainer = quiet()
    with pytest.warns(UserWarning, match=r"Student/MulticlassConfusionMatrix is not logged: .* a tensor \(3, 3\)"):
        trainer.fit(module(metrics=partial(MulticlassConfusionMatrix, 3)), loader(), loader())
    assert trainer.current_epoch == 2


def test_dicts_tuples_and_nested_values() -> None:
    computed = {"a": torch.tensor([0.5, 1.0]), "b": (torch.tensor(1.0), torch.tensor([2.0])), "c": 3}
    assert by_class("val/S", "M", computed) == {
        "val/S/a/0": 0.5, "val/S/a/1": 1.0, "val/S/b/0": 1.0, "val/S/b/1": 2.0, "val/S/c": 3.0,
    }  # fmt: skip


def test_a_curve_is_left_out_and_not_logged_point_by_point() -> None:
    with pytest.warns(UserWarning, match=r"val/S/ROC/0 is not logged: .* a tensor \(65,\)"):
        assert not by_class("val/S", "ROC", ([torch.zeros(65)],)[0], classes=4)
    assert len(by_class("val/S", "Recall", torch.zeros(400), classes=400)) == 400


# ---------------------------------------------------------------- schedulers


def test_reduce_on_plateau_watches_the_validation_loss() -> None:
    made = module(scheduler=partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9))
    trainer = quiet()
    trainer.fit(made, loader(), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)
    trainer = quiet()
    trainer.fit(module(scheduler=partial(ReduceLROnPlateau, mode="max")), loader(), loader())
    assert trainer.lr_scheduler_configs[0].monitor == "val/Student/top1"


def test_a_factory_may_make_lightnings_dict() -> None:
    def factory(optimizer: Optimizer) -> dict[str, Any]:
        return {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}

    trainer = quiet()
    trainer.fit(module(scheduler=factory), loader(), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"scheduler": 1}, "scheduler: the factory takes the optimizer and makes a torch scheduler, .*a dict with int"),
        ({"schedular": 1}, "scheduler: the factory's dict has .*did you mean 'scheduler'"),
        (3, "got int"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_scheduler_is_said(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet().fit(module(scheduler=lambda optimizer: made), loader())


# ---------------------------------------------------------------- what a term and a model cannot take


def test_a_list_of_teachers_to_a_loss_of_one_names_the_term() -> None:
    made = module(pair=("Student", ["Teacher", "Other"]), more={"Other": nn.Linear(4, 3)}, also_frozen=["Other"])
    with pytest.raises(ValueError, match=r"term 'kd' \(KDLoss\) .*takes one tensor for each reference, and got a list"):
        quiet().fit(made, loader())


def test_a_typo_in_a_term_names_it_and_the_near_key() -> None:
    with pytest.raises(ValueError, match=r"term 'kd': unknown keys \['wieght'\] \(did you mean 'weight'\?\)"):
        DistillModule(
            {"Student": nn.Linear(4, 3)},
            {"kd": {"loss": nn.CrossEntropyLoss(), "pair": ("Student", "GroundTruth"), "wieght": 2}},
        )


def test_a_trained_teacher_of_other_classes_is_not_to_be_rebuilt() -> None:
    with pytest.raises(
        ValueError, match="Teacher gives 7 classes but the data has 3: a trained teacher keeps"
    ) as raised:
        quiet().fit(module(teacher=nn.Linear(4, 7)), datamodule=WithClasses())
    assert "num_classes=" not in str(raised.value)
    with pytest.raises(ValueError, match="build Student with num_classes=3"):
        quiet().fit(module(student=nn.Linear(4, 7)), datamodule=WithClasses())


def test_classes_are_named_where_nobody_says_how_many_the_data_has() -> None:
    other = nn.Linear(4, 7)
    with pytest.raises(ValueError, match=r"same shape.*classes={'Teacher': \[<index>, …\]}"):
        module(teacher=other).build((X, Y))
    with pytest.raises(ValueError, match=r"same shape.*classes={'Teacher'"):
        LossComposer({"kd": LossTerm(KDLoss(), pair=("Student", "Teacher"))}).build(
            {"Student": nn.Linear(4, 3), "Teacher": other}, X
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheduler": 5}, "scheduler is a function that makes one, such as .*, got int"),
        ({"optimizer": SGD(nn.Linear(1, 1).parameters(), 0.1)}, "optimizer is a function that makes one.*, got SGD"),
    ],
)
def test_what_makes_nothing_is_refused_where_it_is_given(given: dict[str, Any], said: str) -> None:
    ce = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    with pytest.raises(ValueError, match=said):
        DistillModule({"Student": nn.Linear(4, 3)}, ce, **given)


def test_a_factory_that_lacks_an_argument_says_so() -> None:
    with pytest.raises(ValueError, match=r"scheduler: the factory is called with the optimizer alone: .*'step_size'"):
        quiet().fit(module(scheduler=StepLR), loader())


class WithClasses(Named):
    num_classes = 3


def test_a_last_batch_of_one_under_batch_norm_names_drop_last() -> None:
    student = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="drop_last=True"):
        quiet().fit(module(student=student), loader(batch_size=9))


def test_so_does_one_under_the_batch_norm_of_a_loss_or_of_the_own_step() -> None:
    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return (self.norm(student) - teacher).square().mean()  # type: ignore[no-any-return]

    class Yours(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), 0.1)

    class Distilled(DistillMixin, Yours):
        pass

    kd = {"kd": LossTerm(KDLoss(), pair=("Student", "Teacher"))}
    made = Distilled().distill(nn.Linear(4, 3), student="net", losses=kd)
    with pytest.raises(ValueError, match="drop_last=True"):
        quiet().fit(made, loader(batch_size=9))
    own = {"own": LossTerm(Normalized(), pair=("Student", "Teacher"))}
    networks = {"Student": nn.Linear(4, 3), "Teacher": nn.Linear(4, 3)}
    with pytest.raises(ValueError, match=r"drop_last=True.*term 'own'"):
        quiet().fit(DistillModule(networks, own, frozen=["Teacher"], optimizer=partial(SGD, lr=0.1)), loader(9))
