"""DistillMixin: what is added to a LightningModule that exists, and that all else of it stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_distill import DistillMixin, LossTerm
from lit_distill._module.preflight import try_example
from lit_distill.callbacks import ExactResume, LastCheckpoint, StepSeed
from lit_distill.data import EpochSampler, ResumableLoader
from lit_distill.data.samplers import SampleKey
from lit_distill.losses import KDLoss, SimilarityLoss
from lit_distill.schedules import Linear

KD = LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=0.5)


class Yours(LightningModule):
    """A user's module: it augments, has a dropout, keeps a count in the checkpoint."""

    def __init__(self, width: int = 6, returns: str = "loss") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.returns = returns
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(width, 3))
        self.steps = 0
        self.hooks: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, target = batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]
        loss = self.loss_of(inputs, target)
        self.log("loss", loss)
        self.steps += 1
        if self.returns == "loss":
            return loss
        return {"loss": loss, "extra": target.sum()} if self.returns == "dict" else None

    def loss_of(self, inputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.net(inputs), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["yours"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps = checkpoint["yours"]

    def setup(self, stage: str) -> None:
        self.hooks.append(f"setup {TrainerFn(stage).value}")

    def on_fit_start(self) -> None:
        self.hooks.append("fit")

    def on_train_end(self) -> None:
        self.hooks.append("end")


class Distilled(DistillMixin, Yours):
    pass


class Edited(Yours):
    """The same by hand: what Distilled must equal, bit for bit."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.kd = KDLoss(temperature=2.0)
        self.__dict__["teacher"] = teacher.eval()

    def loss_of(self, inputs: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.__dict__["teacher"](inputs)
        logits = self.net(inputs)
        return 0.25 * F.cross_entropy(logits, target) + torch.dot(
            torch.stack([self.kd(logits, wanted)]), torch.tensor([0.5])
        )


def teacher(seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


class Keyed(TensorDataset):
    """Samples by what the library's sampler gives."""

    def __getitem__(self, key: Any) -> Any:
        at = key.position if isinstance(key, SampleKey) else key
        return tuple(tensor[at] for tensor in self.tensors)


def loader() -> DataLoader[Any]:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    data = Keyed(x, x[:, :3].argmax(dim=1))
    return ResumableLoader(data, batch_size=8, sampler=EpochSampler(data))


def fit(module: LightningModule, **arguments: Any) -> Trainer:
    ckpt_path = arguments.pop("ckpt_path", None)
    defaults = {
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
    }  # fmt: skip
    trainer = Trainer(**{**defaults, **arguments})
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def distilled(**arguments: Any) -> Distilled:
    seed_everything(3, verbose=False)
    own = {name: arguments.pop(name) for name in ("width", "returns") if name in arguments}
    return Distilled(**own).distill(
        arguments.pop("given", teacher()), student="net", **{"losses": {"kd": KD}, **arguments}
    )


def assert_equal(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_it_equals_the_module_edited_by_hand() -> None:
    module = distilled(own_weight=0.25)
    fit(module)
    seed_everything(3, verbose=False)
    edited = Edited(teacher())
    fit(edited)
    assert_equal(dict(module.state_dict()), dict(edited.state_dict()))
    assert module.hooks == edited.hooks == ["setup fit", "fit", "end"]


def test_the_teacher_is_given_what_the_student_is_given_once_a_step_in_eval_mode() -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    given = teacher()
    module = distilled(given=given, preflight=False)
    module.net.register_forward_pre_hook(lambda m, args: seen["student"].append(args[0].clone()))
    given.register_forward_pre_hook(lambda m, args: seen["teacher"].append(args[0].clone()))
    given.register_forward_hook(assert_frozen)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    given.train()  # someone forgot
    fit(module, max_epochs=1)
    assert len(seen["teacher"]) == len(seen["student"]) == 4
    assert all(map(torch.equal, seen["teacher"], seen["student"]))
    assert_equal(given.state_dict(), before)
    assert not any(p is q for p in module.parameters() for q in given.parameters())


def assert_frozen(network: nn.Module, args: Any, output: Tensor) -> None:
    assert not network.training
    assert not output.requires_grad


def test_all_terms_are_logged_beside_what_the_module_logs() -> None:
    terms = {
        "kd": KD,
        "ramp": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=Linear(start=0.0, end=1.0, epochs=2)),
    }
    figures = fit(distilled(losses=terms)).callback_metrics
    assert figures.keys() == {"loss", "distill/kd", "distill/ramp", "distill/ramp_weight"}
    assert figures["distill/ramp_weight"] == pytest.approx(1.75 / 2)  # at the last of 4 batches of the second epoch


def test_checkpoints_are_those_of_the_module_and_each_loads_the_other(tmp_path: Path) -> None:
    module = distilled(width=5)
    path = tmp_path / "distilled.ckpt"
    fit(module).save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert all(name.startswith("net.") for name in stored["state_dict"])
    assert stored["yours"] == 8
    plain = Yours.load_from_checkpoint(path)
    assert_equal(plain.state_dict(), module.state_dict())
    again = Distilled.load_from_checkpoint(path)  # to evaluate or deploy: no teacher is needed
    assert_equal(again.state_dict(), module.state_dict())

    fit(plain).save_checkpoint(tmp_path / "plain.ckpt")
    fit(distilled(width=5), ckpt_path=tmp_path / "plain.ckpt", max_epochs=3)


def test_another_teacher_than_the_checkpoints_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    fit(distilled()).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"Teacher is frozen and is another network.*: replaced_teachers=True$"):
        fit(distilled(given=teacher(seed=2)), ckpt_path=tmp_path / "a.ckpt", max_epochs=3)
    fit(distilled(given=teacher(seed=2), replaced_teachers=True), ckpt_path=tmp_path / "a.ckpt", max_epochs=3)


def test_a_teacher_that_something_writes_to_ends_the_training() -> None:
    given = teacher()
    module = distilled(given=given)

    def write(*_: Any) -> None:
        given[0].bias.data.add_(1.0)  # type: ignore[operator]

    module.net.register_forward_hook(write)
    with pytest.raises(RuntimeError, match="Teacher: frozen, but its values have changed"):
        fit(module)


class MoreTrained(Distilled):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        optimizer.add_param_group({"params": self.distillation.parameters()})
        return optimizer


def hint() -> dict[str, LossTerm]:
    return {"kd": KD, "similarity": LossTerm(SimilarityLoss(), pair=("Student.0", "Teacher.0"))}


class Regressed(nn.Module):
    """Brings the student's logits nearer by a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(3, 3)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self.matrix(student), teacher)


def test_parameters_of_losses_must_be_in_an_optimizer() -> None:
    losses = {"hint": LossTerm(Regressed(), pair=("Student", "Teacher"))}
    with pytest.raises(ValueError, match=r"no optimizer of Distilled trains.*hint.*configure_optimizers"):
        fit(distilled(losses=losses))


class Ends(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_equals_the_uninterrupted_one(every: int, tmp_path: Path) -> None:
    """With the parameters of a loss, dropout and augmentation, from between two steps of an epoch."""

    def make() -> MoreTrained:
        seed_everything(3, verbose=False)
        losses = {**hint(), "hint": LossTerm(Regressed(), pair=("Student", "Teacher"))}
        return MoreTrained().distill(teacher(), student="net", losses=losses)

    def callbacks(folder: Path) -> list[Any]:
        return [LastCheckpoint(folder, every_n_steps=every), ExactResume(), StepSeed(seed=3)]

    whole = make()
    fit(whole, callbacks=callbacks(tmp_path / "a"), enable_checkpointing=True, max_epochs=3)
    with pytest.raises(InterruptedError):
        fit(make(), callbacks=[*callbacks(tmp_path / "b"), Ends(7)], enable_checkpointing=True, max_epochs=3)
    resumed = make()
    trainer = fit(
        resumed, callbacks=callbacks(tmp_path / "b"), enable_checkpointing=True, max_epochs=3,
        ckpt_path=tmp_path / "b" / "last.ckpt",
    )  # fmt: skip
    assert trainer.global_step == 12
    assert "distillation.losses.hint.matrix.weight" in resumed.state_dict()
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_a_tap_that_is_changed_in_place_is_found_before_training() -> None:
    """Student.0 is followed by nn.ReLU(inplace=True)."""
    fit(distilled(losses=hint()), max_epochs=1)
    with pytest.raises(ValueError, match="changed in place"):
        fit(distilled(losses=hint(), preflight=False), max_epochs=1)


def test_a_step_may_return_more_than_its_loss_or_nothing() -> None:
    plain, more, nothing = distilled(), distilled(returns="dict"), distilled(returns="none")
    before = {name: value.clone() for name, value in nothing.state_dict().items()}
    for module in (plain, more, nothing):
        seed_everything(4, verbose=False)
        fit(module)
    assert_equal(dict(more.state_dict()), dict(plain.state_dict()))
    assert_equal(dict(nothing.state_dict()), before)
    assert not torch.equal(before["net.0.weight"], plain.state_dict()["net.0.weight"])


class Whole(LightningModule):
    """A module that is the network itself, whose step takes no batch_idx."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class DistilledWhole(DistillMixin, Whole):
    pass


def test_the_module_itself_may_be_the_student() -> None:
    module = DistilledWhole().distill(
        {"Big": teacher()}, losses={"kd": {"loss": nn.MSELoss(), "pair": ["Student", "Big"]}}
    )
    assert fit(module).callback_metrics["distill/kd"] > 0


def test_the_own_loss_may_fade_by_epochs() -> None:
    """At weight 0 throughout, what is trained depends on the terms alone."""
    silent, other = distilled(own_weight=0.0), distilled(own_weight=Linear(start=0.0, end=0.0, epochs=2))
    for module in (silent, other):
        seed_everything(4, verbose=False)
        fit(module)
    assert_equal(dict(other.state_dict()), dict(silent.state_dict()))


def test_labels_come_from_the_batch() -> None:
    term = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))
    figures = fit(distilled(losses={"ce": term, "kd": KD})).callback_metrics
    torch.testing.assert_close(figures["distill/ce"], figures["loss"])


class ByHand(DistillMixin, Yours):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_what_cannot_be_learned_is_told_before_training() -> None:
    with pytest.raises(ValueError, match=r"Distilled was not told from whom to learn: call distill"):
        fit(Distilled())
    with pytest.raises(ValueError, match="ByHand optimizes by hand"):
        fit(ByHand().distill(teacher(), student="net", losses={"kd": KD}))
    with pytest.raises(ValueError, match=r"Distilled has no submodule 'nett': its children are \['net'\]"):
        Distilled().distill(teacher(), student="nett", losses={"kd": KD})
    with pytest.raises(ValueError, match=r"'Student\.9' names no submodule"):
        distilled(losses={"kd": LossTerm(nn.MSELoss(), pair=("Student.9", "Teacher"))})
    module = Distilled()
    with pytest.raises(ValueError, match="shares parameters"):
        module.distill(module.net, student="net", losses={"kd": KD})
    with pytest.raises(ValueError, match=r"no term names \['Other'\]"):
        distilled(given={"Teacher": teacher(), "Other": teacher()})
    with pytest.raises(ValueError, match="'Student' is the student"):
        distilled(given={"Student": teacher()})
    for weight in (float("nan"), True, "0.5", None):
        with pytest.raises(ValueError, match=f"own_weight must be a finite number or a schedule.*{weight!r}"):
            distilled(own_weight=weight)
    with pytest.raises(ValueError, match="call distill"):
        distilled().distill(teacher(), student="net", losses={"kd": KD})
    with pytest.raises(ValueError, match=r"term 'kd' .* \(2, 3\).*\(2, 16\)"):
        fit(distilled(losses={"kd": LossTerm(nn.MSELoss(), pair=("Student", "Teacher.0"))}))


def test_the_teacher_takes_the_precision_of_the_trainer() -> None:
    given = teacher()
    fit(distilled(given=given), precision="bf16-true", max_epochs=1)
    assert given.state_dict()["0.weight"].dtype == torch.bfloat16


class Turned(Yours, DistillMixin):
    pass


class Past(DistillMixin, Yours):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch[0], batch[1])


class Stepless(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class DistilledStepless(DistillMixin, Stepless):
    pass


class StepOfItsOwn(DistillMixin, Stepless):
    """The step is written beside the mixin, not behind it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])


def test_a_step_without_distillation_is_told() -> None:
    with pytest.raises(ValueError, match=r"Yours stands before DistillMixin.*class Turned\(DistillMixin, Yours\)"):
        Turned().distill(teacher(), student="net", losses={"kd": KD})
    given = teacher()
    module = Past().distill(given, student="net", losses={"kd": KD})
    with pytest.raises(ValueError, match=r"training_step of Past goes past DistillMixin's.*super\(\).training_step"):
        fit(module)
    for kind in (DistilledStepless, StepOfItsOwn):
        with pytest.raises(ValueError, match=rf"training_step.*class {kind.__name__}\(DistillMixin, YourModule\)"):
            fit(kind().distill(teacher(), student="net", losses={"kd": KD}))


class More(Distilled):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)


def none_at_first(samples: list[int]) -> Any:
    return None if 0 in samples else (torch.randn(4, 4), torch.tensor(samples) % 3)


def test_a_step_that_calls_it_passes_and_so_does_a_batch_that_is_none() -> None:
    figures = fit(More().distill(teacher(), student="net", losses={"kd": KD})).callback_metrics
    assert figures["distill/kd"] > 0
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(distilled(preflight=False), DataLoader(range(8), batch_size=4, collate_fn=none_at_first))  # type: ignore[arg-type]
    assert trainer.global_step == 1


class Named(Yours):
    """Has methods and attributes of the names that the mixin once had, and uses them."""

    _preflight = _own_weight = _replaced = 7

    def __init__(self) -> None:
        super().__init__()
        self._networks, self._teachers, self._teacher_record = "a", "b", "c"

    def unpack(self, batch: Any) -> Any:
        return 10 * batch[0], batch[1]

    def _build(self) -> str:
        return self._networks + self._teachers + self._teacher_record

    def run_teacher(self) -> int:
        return self._preflight + self._own_weight + self._replaced

    def _teach(self) -> int:
        return self.run_teacher()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert (self._build(), self._teach()) == ("abc", 21)
        return self.loss_of(*self.unpack(batch))


class DistilledNamed(DistillMixin, Named):
    pass


def test_what_the_module_has_of_its_own_stays_its_own() -> None:
    """With weights of 0 for the terms, it is trained as without them."""
    seed_everything(3, verbose=False)
    plain = Named()
    fit(plain)
    seed_everything(3, verbose=False)
    module = DistilledNamed()
    none = {"mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.0)}
    fit(module.distill(teacher(), student="net", losses=none))
    assert_equal(dict(module.state_dict()), dict(plain.state_dict()))


class Distils(Yours):
    def distill(self) -> None:
        """Of another kind."""

    def distill_unpack(self) -> None:
        """Likewise."""


class DistilledDistils(DistillMixin, Distils):  # type: ignore[misc]
    pass


class Holds(Yours):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.distill_run_teacher = what


class DistilledHolds(DistillMixin, Holds):
    pass


def test_a_name_that_both_have_is_told() -> None:
    with pytest.raises(ValueError, match=r"^Distils has \['distill', 'distill_unpack'\] of its own"):
        DistilledDistils().distill(teacher(), student="net", losses={"kd": KD})
    for what in (1, nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r"^DistilledHolds has \['distill_run_teacher'\] of its own"):
            DistilledHolds(what).distill(teacher(), student="net", losses={"kd": KD})


class Cloned(Distilled):
    def distill_run_teacher(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return super().distill_run_teacher(name, args[0].clone())


@pytest.mark.parametrize("preflight", [True, False])
def test_a_teacher_that_changes_its_input_in_place_is_told(preflight: bool) -> None:
    def changing() -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))

    with pytest.raises(
        ValueError, match=r"^Teacher changes its input \(\d, 4\) in place.*distill_run_teacher in Dist.*clone"
    ):
        fit(distilled(given=changing(), preflight=preflight))
    fit(Cloned().distill(changing(), student="net", losses={"kd": KD}, preflight=preflight), max_epochs=1)


@pytest.mark.parametrize("key", ["x", "parts"])
def test_inputs_in_place_are_found_wherever_they_are(key: str) -> None:
    class Deep(nn.Module):
        def forward(self, *, x: Tensor, parts: dict[str, list[Tensor]]) -> Tensor:
            (x if key == "x" else parts["a"][0]).add_(1.0)
            return x

    module = distilled()
    module._distill_teachers["Teacher"] = Deep()
    with pytest.raises(ValueError, match=r"Teacher changes its input \(2, 4\)"):
        module._distill_ask("Teacher", x=torch.ones(2, 4), parts={"a": [torch.ones(2, 4)]})


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_teacher_that_taught_is_recorded(precision: Any, tmp_path: Path) -> None:
    """Its weights were loaded after distill()."""
    module = distilled(given=(given := teacher(seed=0)))
    given.load_state_dict(teacher(seed=1).state_dict())
    fit(module, precision=precision).save_checkpoint(tmp_path / "a.ckpt")

    fit(distilled(given=teacher(seed=1)), ckpt_path=tmp_path / "a.ckpt", max_epochs=3, precision=precision)
    module = distilled(given=(given := teacher(seed=0)))
    given.load_state_dict(teacher(seed=2).state_dict())
    with pytest.raises(ValueError, match="Teacher is frozen and is another network"):
        fit(module, ckpt_path=tmp_path / "a.ckpt", max_epochs=3, precision=precision)
    module = distilled(given=(given := teacher(seed=0)))
    given.load_state_dict(teacher(seed=1).state_dict())
    module.on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))  # by hand


def test_a_second_fit_may_be_of_another_teacher_and_records_it(tmp_path: Path) -> None:
    module = distilled(given=(given := teacher(seed=0)))
    fit(module, max_epochs=1)
    given.load_state_dict(teacher(seed=1).state_dict())
    fit(module, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    fit(distilled(given=teacher(seed=1)), ckpt_path=tmp_path / "a.ckpt", max_epochs=2)


class LogsToo(Yours):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log_dict({"train/kd": 42.0, "kd": 43.0})
        return super().training_step(batch, batch_idx)


class DistilledLogsToo(DistillMixin, LogsToo):
    pass


def test_no_figure_of_the_module_is_replaced() -> None:
    figures = fit(DistilledLogsToo().distill(teacher(), student="net", losses={"kd": KD})).callback_metrics
    assert figures["train/kd"] == 42
    assert figures["kd"] == 43
    assert 0 < figures["distill/kd"] < 42


class Returns(Yours):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        return self.output


class DistilledReturns(DistillMixin, Returns):
    pass


@pytest.mark.parametrize(
    ("output", "got"),
    [({"los": 1}, r"a dict of \['los'\]"), ({"loss": 1.0}, "float as 'loss'"), (1.0, "float")],
)
def test_a_step_that_returns_no_loss_is_told(output: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"training_step of DistilledReturns must return the loss.*got {got}$"):
        fit(DistilledReturns(output).distill(teacher(), student="net", losses={"kd": KD}))


def test_a_weight_of_the_own_loss_that_is_not_finite_is_told_with_its_epoch() -> None:
    def weight(epoch: float) -> float:
        return float("nan") if epoch > 1 else 1.0

    with pytest.raises(ValueError, match=r"^own_weight: its schedule gives the weight nan at epoch 1\.25$"):
        fit(distilled(own_weight=weight))


class Scaled(nn.Module):
    """A loss with a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.scale * F.mse_loss(student, teacher)


def test_a_checkpoint_with_what_losses_have_is_loaded_by_the_module_as_the_docstring_says(tmp_path: Path) -> None:
    module = distilled(losses={"scaled": LossTerm(Scaled(), pair=("Student", "Teacher"))})
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match=r"distillation\.losses\.scaled\.scale"):
        Yours.load_from_checkpoint(tmp_path / "a.ckpt")
    plain = Yours.load_from_checkpoint(tmp_path / "a.ckpt", strict=False)
    assert_equal(plain.net.state_dict(), module.net.state_dict())
    text = " ".join(str(DistillMixin.__doc__).split())
    assert "Unless a loss has parameters or buffers of its own" in text
    assert "load_from_checkpoint(path, strict=False)" in text


class Forgets(Callback):
    """Sets a part of the teacher to train mode; its top stays in eval mode."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.part.train()


def test_every_part_of_the_teacher_is_in_eval_mode(tmp_path: Path) -> None:
    given = teacher()
    module = distilled(given=given)
    seen: list[bool] = []
    given[3].register_forward_hook(lambda part, args, output: seen.append(part.training))
    given[3].train()
    fit(module, callbacks=[Forgets(given[3])])
    assert len(seen) >= 8
    assert not any(seen[-8:]), "in all steps of both epochs"

    last = LastCheckpoint(tmp_path, every_n_steps=2)
    with pytest.raises(InterruptedError):
        fit(distilled(), callbacks=[last, Ends(3)], enable_checkpointing=True)
    module = distilled(given=given, preflight=False)
    given[3].train()
    seen.clear()
    fit(module, ckpt_path=tmp_path / "last.ckpt", max_epochs=1)
    assert seen == [False, False], "in the last steps of an epoch, whose start is not told again"


class Stream(IterableDataset[Any]):
    """Can be read but once."""

    def __init__(self) -> None:
        self.samples = iter([(torch.randn(4), i % 3) for i in range(16)])

    def __iter__(self) -> Any:
        return self.samples


def test_a_stream_that_can_be_read_once_is_whole_without_the_preflight() -> None:
    """As try_example's docstring says."""
    for preflight, steps in ((True, 3), (False, 4)):
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(distilled(preflight=preflight), DataLoader(Stream(), batch_size=4))
        assert trainer.global_step == steps
    text = str(try_example.__doc__)
    assert "IterableDataset" in text
    assert "preflight=False" in text
