"""DistillModule under a plain Trainer: what trains, what is frozen, what is logged, what a checkpoint holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import lit_distill
from lit_distill import DistillModule, LossTerm
from lit_distill.data import ViewsBatch
from lit_distill.inference.evaluation import Evaluation
from lit_distill.losses.base import Example, SizedLoss
from lit_distill.schedules import Linear, WarmupCosine

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
CE = nn.CrossEntropyLoss


class Hint(SizedLoss):
    def __init__(self) -> None:
        super().__init__()
        self.map: nn.Linear | None = None

    @property
    def is_built(self) -> bool:
        return self.map is not None

    def build(self, example: Example) -> None:
        assert isinstance(example.student, Tensor)
        assert isinstance(example.teacher, Tensor)
        self.map = self.map or nn.Linear(example.student.shape[1], example.teacher.shape[1])

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.require_built()
        assert self.map is not None
        return nn.functional.mse_loss(self.map(student), teacher)


def net(width: int = 8, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, classes))


def loader(samples: int = 32, classes: int = 3, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :classes].argmax(dim=1)), batch_size=batch_size)


def trainer(**kwargs: Any) -> Trainer:
    defaults = {
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(**{**defaults, **kwargs})


def module(**kwargs: Any) -> DistillModule:
    torch.manual_seed(1)
    defaults: dict[str, Any] = {
        "models": {"Student": net(), "Teacher": net(16)},
        "frozen": ["Teacher"],
        "losses": {
            "ce": LossTerm(CE(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.5),
        },
        "optimizer": SGD,
    }
    return DistillModule(**{**defaults, **kwargs})


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


class Spy(Callback):
    """Keeps what was logged at every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.rows.append(dict(pl_module.last_terms))


def test_the_student_learns_and_the_frozen_teacher_stays_as_it_was() -> None:
    distill = module()
    student, teacher = copy_of(distill.models["Student"].state_dict()), copy_of(distill.models["Teacher"].state_dict())
    fit = trainer(max_epochs=8)
    fit.fit(distill, loader(), loader())
    assert not torch.equal(student["0.weight"], distill.models["Student"].state_dict()["0.weight"])
    for name, value in distill.models["Teacher"].state_dict().items():
        assert torch.equal(value, teacher[name]), f"Teacher.{name} changed"
    assert all(p.grad is None and not p.requires_grad for p in distill.models["Teacher"].parameters())
    optimised = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in distill.models["Student"].parameters()}
    assert fit.callback_metrics["val/Student/top1"] > 0.6


def test_frozen_stays_in_eval_mode_whoever_calls_train() -> None:
    distill = module()
    distill.train()
    assert distill.models["Student"].training
    assert not any(part.training for part in distill.models["Teacher"].modules())
    distill.models["Teacher"].train()
    before = copy_of(distill.models["Teacher"].state_dict())
    trainer(max_epochs=1).fit(distill, loader())
    for name, value in distill.models["Teacher"].state_dict().items():
        assert torch.equal(value, before[name])


def test_an_unfrozen_teacher_is_a_peer_and_learns() -> None:
    distill = module(
        frozen=[],
        losses={
            "ce": LossTerm(CE(), pair=("Student", "GroundTruth")),
            "ce_teacher": LossTerm(CE(), pair=("Teacher", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), detach=False),
        },
    )
    before = copy_of(distill.models["Teacher"].state_dict())
    trainer(max_epochs=1).fit(distill, loader())
    assert not torch.equal(before["0.weight"], distill.models["Teacher"].state_dict()["0.weight"])


def test_every_term_is_logged_with_the_mean_since_the_last_log() -> None:
    spy = Spy()
    distill = module(
        losses={
            "ce": LossTerm(CE(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=Linear(start=0.0, end=1.0, epochs=2)),
        }
    )
    fit = trainer(callbacks=[spy], max_epochs=1)
    fit.fit(distill, loader(), loader())
    # A callback sees a batch's end before the module does, so the first two steps' means show after the third.
    assert [bool(row) for row in spy.rows] == [False, False, True, True]
    last = distill.last_terms
    assert set(last) == {"train/loss", "train/ce", "train/mse", "train/mse_weighted", "train/mse_weight"}
    assert last["train/mse_weight"] == pytest.approx((0.25 + 0.375) / 2)
    assert last["train/ce"] + last["train/mse_weighted"] == pytest.approx(last["train/loss"])
    assert 0.25 * last["train/mse"] < last["train/mse_weighted"] < 0.375 * last["train/mse"]  # steps 3 and 4
    logged = fit.callback_metrics
    assert {"val/loss", "val/ce", "val/mse", "val/Student/top1", "val/Teacher/top5"} <= set(logged)


def test_validation_terms_may_differ_and_equal_a_hand_computation() -> None:
    distill = module(val_losses={"ce": LossTerm(CE(), pair=("Student", "GroundTruth"))})
    fit = trainer(max_epochs=1)
    fit.fit(distill, loader(), loader(samples=20))  # batches of 8, 8 and 4
    data = loader(samples=20, batch_size=20)
    x, y = next(iter(data))
    distill.eval()
    with torch.no_grad():
        logits = distill(x)
    assert fit.callback_metrics["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert fit.callback_metrics["val/Student/top1"] == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert "val/mse" not in fit.callback_metrics


def test_gradient_accumulation_logs_optimizer_steps_and_steps_the_schedule() -> None:
    spy = Spy()
    distill = module(scheduler=WarmupCosine(warmup_epochs=1, epochs=4, warmup_start=0.1))
    fit = trainer(accumulate_grad_batches=2, max_epochs=2, callbacks=[spy], log_every_n_steps=1)
    fit.fit(distill, loader())
    assert fit.global_step == 4
    assert [bool(row) for row in spy.rows[:4]] == [False, False, True, True]
    expected = 0.1 * WarmupCosine(warmup_epochs=1, epochs=4, warmup_start=0.1)(2.0)
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


def test_checkpoint_holds_no_frozen_tensor_and_resumes_strictly(tmp_path: Path) -> None:
    terms = {
        "ce": LossTerm(CE(), pair=("Student", "GroundTruth")),
        "hint": LossTerm(Hint(), pair=("Student.3:input", "Teacher.3:input")),
    }
    distill = module(losses=terms)
    fit = trainer(max_epochs=1)
    fit.fit(distill, loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not [key for key in stored["state_dict"] if "Teacher" in key]
    assert "composer.losses.hint.map.weight" in stored["state_dict"]
    assert stored["lit_distill"]["frozen"] == ["Teacher"]

    torch.manual_seed(5)
    again = module(losses={**terms, "hint": LossTerm(Hint(), pair=("Student.3:input", "Teacher.3:input"))})
    longer = trainer(max_epochs=2)
    longer.fit(again, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert longer.global_step == 8

    straight = module(losses={**terms, "hint": LossTerm(Hint(), pair=("Student.3:input", "Teacher.3:input"))})
    trainer(max_epochs=2).fit(straight, loader())
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_a_missing_trainable_key_is_an_error(tmp_path: Path) -> None:
    fit = trainer(max_epochs=1)
    fit.fit(module(), loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del stored["state_dict"]["models.Student.0.weight"]
    torch.save(stored, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"missing 1: models\.Student\.0\.weight"):
        trainer(max_epochs=2).fit(module(), loader(), ckpt_path=tmp_path / "b.ckpt", weights_only=True)


def test_losses_with_parameters_are_sized_before_the_optimizer_and_trained() -> None:
    hint = Hint()
    distill = module(losses={"hint": LossTerm(hint, pair=("Student.1", "Teacher.1"))})
    fit = trainer(max_epochs=1)
    fit.fit(distill, loader())
    assert hint.map is not None
    optimised = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in hint.map.parameters()} <= optimised
    assert all(p.grad is not None for p in hint.map.parameters())


def test_an_example_batch_runs_every_model_once_for_the_terms_of_training_and_validation() -> None:
    runs: list[str] = []
    hint = {"hint": LossTerm(Hint(), pair=("Student.0", "Teacher.0"))}
    tried = module(losses=hint, val_losses={"ce": LossTerm(CE(), pair=("Student.3", "GroundTruth")), **hint})
    for name, model in tried.models.items():
        model.register_forward_hook(lambda *_, name=name: runs.append(name))
    tried.build(next(iter(loader())))
    assert sorted(runs) == ["Student", "Teacher"]


def test_models_are_run_in_one_place_alone() -> None:
    package = Path(lit_distill.__file__).parent
    callers = {f.relative_to(package).as_posix() for f in package.rglob("*.py") if ".run_model(" in f.read_text()}
    assert callers == {"_module/named.py"}, "call run_models(), which knows of views, frozen models and the cache"


def test_bf16_mixed_precision_trains_with_float32_terms() -> None:
    fit = trainer(max_epochs=1, precision="bf16-mixed")
    fit.fit(module(), loader(), loader())
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    assert fit.callback_metrics["train/loss"].dtype == torch.float32


def test_soft_targets_after_mixing_work_for_loss_and_metrics() -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(8 * x[:, :3], dim=1)
    fit = trainer(max_epochs=1)
    data = DataLoader(TensorDataset(x, soft), batch_size=8)
    fit.fit(module(), data, data)
    assert 0 <= fit.callback_metrics["val/Student/top1"] <= 1


def test_sample_index_is_the_third_of_a_batch() -> None:
    seen: list[list[int]] = []

    def spy(student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        seen.append(index.tolist())
        return student.sum() * 0

    x = torch.randn(8, 4)
    data = DataLoader(TensorDataset(x, torch.zeros(8, dtype=torch.long), torch.arange(8)), batch_size=4)
    term = LossTerm(spy, pair=("Student", "Teacher"), target="SampleIndex")
    trainer(max_epochs=1).fit(module(losses={"spy": term}), data)
    assert seen[-2:] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_other_tasks_need_no_accuracy() -> None:
    models = {"Student": nn.Conv2d(3, 5, 1), "Teacher": nn.Conv2d(3, 5, 1)}
    distill = module(models=models, losses={"mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))})
    x, masks = torch.randn(8, 3, 6, 6), torch.zeros(8, 6, 6, dtype=torch.long)
    data = DataLoader(TensorDataset(x, masks), batch_size=4)
    fit = trainer(max_epochs=1)
    with pytest.warns(UserWarning, match="top1 and top5 of (Student|Teacher) are left out"):
        fit.fit(distill, data, data)
    assert "val/loss" in fit.callback_metrics
    assert not [name for name in fit.callback_metrics if "top1" in name]


# ---------------------------------------------------------------------------- errors before training


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"Stu.dent": nn.Linear(1, 1)}}, "cannot name a model"),
        ({"models": {"GroundTruth": nn.Linear(1, 1)}}, "cannot name a model"),
        ({"models": {"Student": "resnet18"}}, "must be a torch.nn.Module"),
        ({"frozen": ["Techer"]}, "frozen names"),
        ({"frozen": "Teacher"}, "must be a list of names"),
        ({"frozen": ["Student", "Teacher"]}, "nothing would be trained"),
        ({"student": "Pupil"}, "names no model"),
        ({"losses": {"ce": LossTerm(CE(), pair=("Student", "GroundTruth"))}, "frozen": []}, r"names \['Teacher'\]"),
        (
            {"losses": {"ce": LossTerm(CE(), pair=("Student.9", "GroundTruth"))}},
            r"term 'ce': 'Student\.9' names no sub",
        ),
        ({"val_losses": {"ce": LossTerm(CE(), pair=("Pupil", "GroundTruth"))}}, r"'Pupil' names no model"),
    ],
)
def test_mistakes_show_at_construction(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**kwargs)


def test_no_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="needs optimizer="):
        trainer().fit(module(optimizer=None), loader())


def test_too_few_classes_show_before_training() -> None:
    models = {"Student": net(classes=2), "Teacher": net(classes=2)}
    with pytest.raises(ValueError, match=r"Student gives 2 classes but the data has 3.*num_classes=3"):
        trainer().fit(module(models=models), loader())


def test_the_datamodules_class_count_is_compared() -> None:
    class Data(LightningDataModule):
        num_classes = 3

        def train_dataloader(self) -> DataLoader[Any]:
            return loader()

    models = {"Student": net(classes=5), "Teacher": net(classes=5)}
    with pytest.raises(ValueError, match=r"Student gives 5 classes but the data has 3"):
        trainer().fit(module(models=models), datamodule=Data())


def test_a_shape_mismatch_shows_before_training_by_name() -> None:
    models = {"Student": net(), "Teacher": net(16)}
    losses = {"mse": LossTerm(nn.KLDivLoss(reduction="batchmean"), pair=("Student.0", "Teacher.0"))}
    with pytest.raises(ValueError, match=r"term 'mse' .*Student\.0 \(2, 8\), Teacher\.0 \(2, 16\)"):
        trainer().fit(module(models=models, losses=losses), loader())


def test_a_batch_of_another_form_says_what_to_override() -> None:
    data = TensorDataset(*torch.randn(5, 8, 4))
    with pytest.raises(ValueError, match=r"a batch is \(inputs, target\).*got 5 items; override unpack"):
        trainer().fit(module(), DataLoader(data, batch_size=4))


def test_a_batch_without_the_labels_that_a_term_wants_says_so() -> None:
    with pytest.raises(ValueError, match=r"term 'ce': 'GroundTruth' is not in this batch"):
        trainer().fit(module(), DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4))


def views_batch(samples: list[tuple[Tensor, Tensor]]) -> ViewsBatch:
    inputs, target = default_collate(samples)
    return ViewsBatch(inputs, target)


def test_views_of_a_video_are_averaged_as_probabilities() -> None:
    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, clips: Tensor) -> Tensor:
            assert clips.ndim == 5
            logits: Tensor = self.fc(clips.mean(dim=(1, 3, 4)))
            return logits

    torch.manual_seed(0)
    views, target = torch.randn(4, 6, 2, 2, 3, 3), torch.tensor([0, 1, 2, 0])
    train = DataLoader(TensorDataset(views[:, 0], target), batch_size=2)
    student = Clips()
    losses = {"ce": LossTerm(CE(), pair=("Student", "GroundTruth"))}
    distill = module(models={"Student": student}, frozen=[], losses=losses, optimizer=partial(torch.optim.SGD, lr=0.0))
    fit = trainer(max_epochs=1)
    fit.fit(distill, train, DataLoader(TensorDataset(views, target), batch_size=2, collate_fn=views_batch))
    student.eval()
    with torch.no_grad():
        probabilities = torch.stack([student(views[:, v]).softmax(dim=1) for v in range(6)]).mean(dim=0)
    expected = -probabilities.log()[torch.arange(4), target].mean()
    assert fit.callback_metrics["val/loss"] == pytest.approx(float(expected), rel=1e-5)
    top1 = (probabilities.argmax(dim=1) == target).float().mean()
    assert fit.callback_metrics["val/Student/top1"] == pytest.approx(float(top1))


def test_inputs_of_six_dimensions_that_are_no_views_reach_the_model_as_they_are() -> None:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, segments: Tensor) -> Tensor:
            assert segments.shape[1:] == (6, 2, 2, 3, 3)  # (B, S, T, C, H, W)
            logits: Tensor = self.fc(segments.mean(dim=(2, 3, 4, 5)))
            return logits

    torch.manual_seed(0)
    inputs, target = torch.randn(4, 6, 2, 2, 3, 3), torch.tensor([0, 1, 2, 0])
    student, batches = Segments(), DataLoader(TensorDataset(inputs, target), batch_size=2)
    losses = {"ce": LossTerm(CE(), pair=("Student", "GroundTruth"))}
    distill = module(models={"Student": student}, frozen=[], losses=losses, optimizer=partial(torch.optim.SGD, lr=0.0))
    fit = trainer(max_epochs=1)
    fit.fit(distill, batches, batches)
    with torch.no_grad():
        expected = CE()(student(inputs), target)
    assert fit.callback_metrics["val/loss"] == pytest.approx(float(expected), rel=1e-5)
    evaluation = Evaluation(student, num_classes=3)
    trainer().test(evaluation, batches, verbose=False)
    assert evaluation.figures["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_it_can_be_validated_alone_in_inference_mode() -> None:
    fit, distill = trainer(), module()
    fit.fit(distill, loader(), loader())
    within = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("val/")}
    assert trainer(inference_mode=True).validate(distill, loader(), verbose=False) == [pytest.approx(within)]


def test_evaluation_and_training_may_follow_each_other_in_any_order() -> None:
    distill, plain = module(), module()
    first = trainer(max_epochs=1)
    first.validate(distill, loader(), verbose=False)
    first.fit(distill, loader(), loader())
    first.test(distill, loader(), verbose=False)
    again = trainer(max_epochs=1, num_sanity_val_steps=2)
    again.fit(distill, loader(), loader())
    trained = again.callback_metrics["val/Student/top1"].item()
    (after,) = again.validate(distill, loader(), verbose=False)
    assert after["val/Student/top1"] == trained
    for _ in range(2):
        trainer(max_epochs=1).fit(plain, loader(), loader())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, distill.state_dict()[name]), name


def test_figures_of_an_evaluation_that_broke_off_are_forgotten() -> None:
    class Stop(Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            raise RuntimeError("stop")

    distill = module()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(callbacks=[Stop()]).validate(distill, loader(), verbose=False)
    (found,) = trainer().validate(distill, loader(), verbose=False)
    (wanted,) = trainer().validate(module(), loader(), verbose=False)
    assert found == wanted
