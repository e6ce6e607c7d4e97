"""A generator and a student take turns: whose parameters move when, what passes the teacher, and exact resume."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DataFreeModule, LossTerm, SafeCheckpointIO
from lit_distill.callbacks import ExactResume, LastCheckpoint, NonFinite, StepSeed, TeacherCache
from lit_distill.data import NoiseData
from lit_distill.diagnosis.diagnose import diagnose
from lit_distill.losses import DAFLLoss, KDLoss
from lit_distill.reporting.training_cost import training_cost
from lit_distill.runs.opened import load_run
from lit_distill.training.fit import build_data, build_module, with_noise
from lit_distill.training.train import run
from run_folders import composed

PHASES = {"Generator": 1, "Student": 2}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "Generator": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)),
        "Student": nn.Linear(8, 3),
        "Teacher": nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
    }


def adversarial(weight: float = -1.0) -> LossTerm:
    return LossTerm(KDLoss(temperature=1.0), pair=("Student", "Teacher"), weight=weight, detach=False)


def module_of(models: dict[str, nn.Module] | None = None, **changed: Any) -> DataFreeModule:
    given: dict[str, Any] = {
        "frozen": ["Teacher"],
        "phases": PHASES,
        "losses": {"kd": LossTerm(KDLoss(temperature=1.0), pair=("Student", "Teacher"))},
        "generator_losses": {
            "dafl": LossTerm(DAFLLoss(), pair=("Teacher", "Teacher.0")),
            "adversarial": adversarial(),
        },
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    }
    return DataFreeModule(models or networks(), **{**given, **changed})


def real(rows: int = 6) -> LightningDataModule:
    data = TensorDataset(torch.randn(rows, 8), torch.arange(rows) % 3)
    return LightningDataModule.from_datasets(val_dataset=data, batch_size=4)


def trainer(**arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{**quiet, "enable_progress_bar": False, "num_sanity_val_steps": 0, **arguments})


class Moved(DataFreeModule):
    """Notes after each optimizer step which models it moved."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.moves: list[set[str]] = []
        self.before = copy.deepcopy(dict(self.named_parameters()))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        now = dict(self.named_parameters())
        self.moves.append({name.split(".")[1] for name, p in now.items() if not torch.equal(p, self.before[name])})
        self.before = copy.deepcopy(now)


def moves(*, accumulate: int = 1, batches: int = 7) -> list[set[str]]:
    models = networks()
    made = module_of(models)
    module = Moved(
        models, made.composer.terms, generator_losses=made.generator_composer.terms, phases=PHASES, frozen=["Teacher"],
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    )  # fmt: skip
    given = trainer(max_epochs=1, accumulate_grad_batches=accumulate)
    given.fit(module, NoiseData(real(), size=4, batches=batches, batch_size=4))
    return module.moves


def test_in_a_phase_one_side_moves_and_momentum_and_decay_leave_the_other_alone() -> None:
    assert moves() == [{"Generator"}, {"Student"}, {"Student"}, {"Generator"}, {"Student"}, {"Student"}, {"Generator"}]


def test_phases_are_counted_in_optimizer_steps() -> None:
    assert moves(accumulate=2, batches=5) == [set(), {"Generator"}, set(), {"Student"}, {"Student"}]


def test_it_is_the_loop_that_one_writes_by_hand() -> None:
    models = networks()
    by_hand = copy.deepcopy(models)
    data = NoiseData(real(), size=4, batches=5, batch_size=4)
    noise = [batch["noise"] for batch in data.train_dataloader()]
    trainer(max_epochs=1).fit(module_of(models), data)

    generator, student, teacher = by_hand.values()
    assert isinstance(teacher, nn.Sequential)
    teacher.eval().requires_grad_(False)
    optimizers = {
        name: torch.optim.SGD(by_hand[name].parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for name in ("Generator", "Student")
    }
    kd, dafl = KDLoss(temperature=1.0), DAFLLoss()
    for step, z in enumerate(noise):
        if step % 3 == 0:
            images = generator(z)
            feature = teacher[0](images)
            logits = teacher[2](feature.relu())
            loss = dafl(logits, feature) - kd(student(images), logits)
        else:
            images = generator(z).detach()
            loss = kd(student(images), teacher(images))
        optimizer = optimizers["Student" if step % 3 else "Generator"]
        optimizers["Student"].zero_grad()
        optimizers["Generator"].zero_grad()
        loss.backward()
        optimizer.step()
    for name, model in models.items():
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, by_hand[name].state_dict()[key], rtol=1e-6, atol=1e-6)


class Killed(Callback):
    """Ends a run after some optimizer steps, without anything of an orderly end."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.after:
            raise RuntimeError("killed")


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Killed in the middle of an epoch, of the student's phase, and of what is logged together."""
    ended = []
    for kills in ([99], [5, 99]):
        folder = tmp_path / str(len(kills))
        for number, after in enumerate(kills):
            module = module_of()
            watch = [ExactResume(), StepSeed(seed=3), LastCheckpoint(folder, every_n_steps=1), Killed(after)]
            given = trainer(
                max_epochs=2, callbacks=watch, plugins=[SafeCheckpointIO()], enable_checkpointing=True,
                log_every_n_steps=2,
            )  # fmt: skip
            with pytest.raises(RuntimeError, match="killed") if after == 5 else nullcontext():
                path = folder / "last.ckpt" if number else None
                given.fit(module, NoiseData(real(), size=4, batches=4, batch_size=4), ckpt_path=path, weights_only=True)
        ended.append((module.state_dict(), module.last_terms, given.optimizers[0].state_dict()["state"]))
    (state, terms, moments), (resumed, resumed_terms, resumed_moments) = ended
    assert terms == resumed_terms
    assert {"train/kd", "train/dafl"} <= set(terms)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in state.items())
    for of_one, of_other in zip(moments.values(), resumed_moments.values(), strict=True):
        assert torch.equal(of_one["momentum_buffer"], of_other["momentum_buffer"])


def test_a_step_that_is_not_finite_is_dropped_whose_phase_ever_it_is() -> None:
    class Broken(nn.Module):
        def forward(self, logits: Tensor, feature: Tensor) -> Tensor:
            return logits.sum() * float("nan")

    models = networks()
    before = copy.deepcopy(models["Generator"].state_dict())
    module = module_of(models, generator_losses={"broken": LossTerm(Broken(), pair=("Teacher", "Teacher.0"))})
    given = trainer(max_epochs=1, callbacks=[NonFinite(policy="skip")])
    with pytest.warns(UserWarning, match=r"term 'broken' .* is nan"):
        given.fit(module, NoiseData(real(), size=4, batches=1, batch_size=4))
    for name in ("0.weight", "0.bias"):
        assert torch.equal(models["Generator"].state_dict()[name], before[name])
    assert "train/broken" not in given.callback_metrics


def test_what_is_logged_and_that_validation_is_on_real_samples() -> None:
    class Twice(NoiseData):
        def val_dataloader(self) -> Any:
            return [self.real.val_dataloader(), self.real.val_dataloader()]

    module = module_of(val_losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))})
    given, generated_in_validation = trainer(max_epochs=1), list[bool]()
    module.models["Generator"].register_forward_hook(lambda *_: generated_in_validation.append(given.validating))
    given.fit(module, Twice(real(), size=4, batches=3, batch_size=4))
    assert not any(generated_in_validation)
    names = set(given.callback_metrics)
    assert {"train/loss", "train/kd", "train/generator_loss", "train/dafl", "train/adversarial"} <= names
    assert {"val/0/ce", "val/1/ce", "val/0/Student/top1", "val/1/Teacher/top1"} <= names
    assert not any("Generator" in name for name in names)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generator": "Maker"}, "generator='Maker' names no model"),
        ({"phases": {"Generator": 1, "Teacher": 2}}, "of 'Generator' and 'Student'"),
        ({"phases": {"Generator": 0, "Student": 2}}, "at least 1"),
        ({"generator_losses": {"kd": adversarial()}}, r"both have \['kd'\]"),
        ({"losses": {"kd": LossTerm(KDLoss(), pair=("Student", "Generator"))}}, "move it to generator_losses"),
        ({"generator_losses": {"kd2": LossTerm(KDLoss(), pair=("Student", "Teecher"))}}, "term 'kd2'.*'Teecher'"),
        ({"frozen": ["Teacher", "Generator"]}, "frozen names"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module_of(**changed)


def test_a_term_that_does_not_reach_the_generator_is_refused() -> None:
    broken = LossTerm(
        lambda student, teacher: (student.detach() - teacher.detach()).square().mean(), pair=("Student", "Teacher")
    )
    module = module_of(generator_losses={"nothing": broken})
    with pytest.raises(ValueError, match="teaches nobody"):
        module.build({"noise": torch.randn(4, 4)})


def test_real_samples_are_no_training_data() -> None:
    module = module_of()
    with pytest.raises(ValueError, match="real images are for validation and test alone"):
        trainer(max_epochs=1).fit(
            module, DataLoader(TensorDataset(torch.randn(4, 8), torch.zeros(4).long()), batch_size=2)
        )


def test_a_teacher_cache_is_refused_as_noise_has_no_samples(tmp_path: Path) -> None:
    cache = TeacherCache(folder=tmp_path)
    with pytest.raises(ValueError, match="images of a generator are new ones in each step"):
        trainer(max_epochs=1, callbacks=[cache]).fit(module_of(), NoiseData(real(), size=4, batches=3, batch_size=4))


@pytest.mark.filterwarnings("ignore:the frozen Teacher is no better than chance")
def test_the_experiment_by_the_command_line(tmp_path: Path) -> None:
    config = composed("train",
        "experiment=data_free_digits_images", "allow_random_teacher=true", "data_free.noise.batches=4",
        "data_free.noise.batch_size=8", "models.Generator.width=4", "trainer=cpu", "trainer.max_epochs=1",
        "+trainer.limit_val_batches=1", "callbacks.progress=null", f"run_dir={tmp_path}",
    )  # fmt: skip
    results = run(config)
    assert {"train/dafl", "train/adversarial", "train/kd", "val/Student/top1"} <= set(results["final"])
    finished = load_run(tmp_path)
    assert finished.classifiers == ("Student", "Teacher")
    assert finished.model("Generator")(torch.randn(2, 32)).shape == (2, 3, 8, 8)
    cost = training_cost(finished, steps=1)
    assert {"forward Student", "forward Teacher"} <= set(cost.seconds)
    module = build_module(config)
    diagnosis = diagnose(module, build_data(config), validation_samples=0)
    assert set(diagnosis.terms) == {"kd", "dafl", "adversarial"}
    assert not [finding for finding in diagnosis.findings if "gradient reaches" in finding]


@pytest.mark.parametrize("noise", [None, {"size": 4}, {"size": 4, "batches": 2, "batch_size": 0}])
def test_noise_of_a_config_has_all_its_numbers(noise: Any) -> None:
    config = {"data_free": {"noise": noise}, "seed": 0}
    with pytest.raises(ValueError, match=r"data_free\.noise expects size, batches and|batch_size to be"):
        with_noise(config, real())
