"""Every term teaches somebody, on signals that its loss expects: what is not so is said before training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossComposer, LossTerm
from lit_distill.losses import DISTLoss, DKDLoss, DMLLoss, KDLoss
from lit_distill.schedules import Linear

CE = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))


class Network(nn.Module):
    """A stem, a feature without a graph in the named mode, and a head."""

    def __init__(self, detached: str = "never", classes: int = 3) -> None:
        super().__init__()
        self.detached = detached
        self.stem, self.feature, self.head = nn.Linear(4, 8), nn.Identity(), nn.Linear(8, classes)
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        off = self.detached in ("always", "training" if self.training else "evaluation")
        self.feature(x.detach() if off else x)
        return self.last(self.head(x))  # type: ignore[no-any-return]


def detaching(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.detach() - teacher).square().mean()


class Hint(nn.Module):
    """A loss that has parameters of its own, which alone would learn on a feature without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self.fc(student), teacher)


class Late(nn.Module):
    """Teaches from its fifth epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0.0

    def set_epoch(self, epoch: float) -> None:
        self.epoch = epoch

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean() if self.epoch >= 5 else student.new_zeros(())


def loader(samples: int = 8, target: Tensor | None = None) -> DataLoader[Any]:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(dim=1) if target is None else target), batch_size=4)


def module(
    term: LossTerm, student: nn.Module | None = None, teacher: nn.Module | None = None, **more: Any
) -> DistillModule:
    models = {"Student": student or Network(), "Teacher": teacher or Network()}
    given: dict[str, Any] = {"losses": {"ce": CE, "hint": term}, "frozen": ["Teacher"], **more}
    return DistillModule(models, optimizer=partial(torch.optim.SGD, lr=0.1), **given)


def fit(made: Any, data: DataLoader[Any] | None = None, *, validate: bool = False, **kwargs: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_epochs": 1, "num_sanity_val_steps": 0, **kwargs},
    )  # fmt: skip
    data = data or loader()
    trainer.fit(made, data, data if validate else None)
    return trainer


FEATURE = ("Student.feature", "Teacher.feature")


@pytest.mark.parametrize("preflight", [True, False])
@pytest.mark.parametrize(
    ("term", "student", "why"),
    [
        (LossTerm(nn.MSELoss(), pair=FEATURE), Network("always"), "'hint' .*Student.feature comes without a graph"),
        (LossTerm(Hint(), pair=FEATURE), Network("always"), "'hint' .*Student.feature comes without a graph"),
        (LossTerm(detaching, pair=FEATURE), Network(), "'hint' .*the loss detaches it"),
        (LossTerm(detaching, pair=FEATURE, weight=1e-9), Network(), "'hint' .*the loss detaches it"),
        (
            LossTerm(nn.MSELoss(), pair=FEATURE),
            Network().requires_grad_(False),
            "'ce' .*no parameter of Student learns",
        ),
    ],
)
def test_a_term_that_teaches_nobody_is_refused(term: LossTerm, student: Network, why: str, preflight: bool) -> None:
    made = module(term, student, preflight=preflight)
    if not preflight and not any(p.requires_grad for p in student.parameters()):
        why = ""  # there is no first step: torch refuses an optimizer of nothing
    with pytest.raises(ValueError, match=rf"^term {why}.*monitor=True" if why else "empty parameter list"):
        fit(made)


def test_a_tap_on_a_part_that_is_not_trained_is_refused() -> None:
    made = module(LossTerm(nn.MSELoss(), pair=("Student.stem", "Teacher.stem")), train_only=["Student.head"])
    with pytest.raises(ValueError, match=r"teaches nobody.*nothing before it learns"):
        fit(made)


def test_what_is_detached_in_training_alone_is_found_in_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"term 'hint' .*teaches nobody"):
        fit(module(LossTerm(nn.MSELoss(), pair=FEATURE), Network("training")))


def test_terms_between_two_that_learn_are_looked_at_too() -> None:
    mutual = {
        "ce": CE,
        "hint": LossTerm(nn.MSELoss(), pair=FEATURE),
        "back": LossTerm(nn.MSELoss(), pair=FEATURE[::-1]),
    }
    fit(module(CE, frozen=[], losses=mutual))
    with pytest.raises(ValueError, match=r"term 'hint' .*teaches nobody"):
        fit(module(CE, Network("always"), frozen=[], losses=mutual))


def test_a_schedule_that_begins_at_zero_is_warned_of_and_refused_when_it_begins() -> None:
    term = LossTerm(nn.MSELoss(), pair=FEATURE, weight=Linear(start=0.0, end=1.0, epochs=4))
    with pytest.warns(UserWarning, match=r"teaches nobody"), pytest.raises(ValueError, match=r"teaches nobody"):
        fit(module(term, Network("always")), max_epochs=2)


@pytest.mark.parametrize(
    ("term", "student"),
    [
        (LossTerm(nn.MSELoss(), pair=FEATURE), Network("evaluation")),
        (LossTerm(nn.MSELoss(), pair=FEATURE, weight=0.0), Network("always")),
        (LossTerm(nn.MSELoss(), pair=FEATURE, weight=Linear(start=0.0, end=1.0, epochs=4)), Network()),
        (LossTerm(Late(), pair=FEATURE), Network()),
        (LossTerm(Hint(), pair=FEATURE), Network()),
        (LossTerm(nn.MSELoss(), pair=("Student.head", "Student.last")), Network()),
        (LossTerm(nn.MSELoss(), pair=FEATURE, monitor=True), Network("always")),
        (LossTerm(detaching, pair=FEATURE, monitor=True), Network()),
    ],
)
def test_what_teaches_or_says_that_it_does_not_is_let_be(term: LossTerm, student: Network) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*teaches")
        fit(module(term, student, frozen=["Teacher"] if "Teacher" in term.pair_text else [], losses={
            "ce": CE, "teacher": LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth")), "hint": term,
        } if "Teacher" not in term.pair_text else {"ce": CE, "hint": term}))  # fmt: skip


def test_a_monitor_is_logged_and_moves_nothing() -> None:
    def trained(losses: dict[str, LossTerm]) -> tuple[DistillModule, Tensor]:
        torch.manual_seed(0)
        made = module(CE, losses=losses)
        fit(made)
        return made, made.models["Student"].stem.weight.detach().clone()  # type: ignore[union-attr, operator]

    watching = LossTerm(nn.MSELoss(), pair=FEATURE, monitor=True)
    made, weight = trained({"ce": CE, "watch": watching})
    _, plain = trained({"ce": CE})
    assert torch.equal(weight, plain)
    assert made.last_terms["train/watch"] > 0
    assert made.last_terms["train/loss"] == pytest.approx(made.last_terms["train/ce"])


def test_a_probe_learns_on_what_it_watches() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, feature: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(self.fc(feature), target)

    probe = Probe()
    before = probe.fc.weight.detach().clone()
    fit(module(LossTerm(probe, pair=("Student.feature", "GroundTruth"), monitor=True)))
    assert not torch.equal(probe.fc.weight, before)


def test_a_model_that_only_monitors_name_is_not_trained() -> None:
    with pytest.raises(ValueError, match=r"no training term names \['Student'\]"):
        module(CE, losses={"watch": LossTerm(nn.MSELoss(), pair=FEATURE, monitor=True)})


def test_the_mixin_and_a_loop_of_your_own_find_it_too() -> None:
    composer = LossComposer({"hint": LossTerm(detaching, pair=("Student", "Teacher"))})
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    with composer.capture({"Student": student, "Teacher": teacher}) as signals:
        student(torch.zeros(2, 4)), teacher(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"term 'hint' .*teaches nobody"):
        composer(signals)

    class Own(DistillMixin):
        def __init__(self) -> None:
            super().__init__()
            self.net = Network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)

    made = Own().distill(Network(), student="net", losses={"hint": LossTerm(detaching, pair=FEATURE)})
    with pytest.raises(ValueError, match=r"term 'hint' .*teaches nobody"):
        made.distillation.build(made._distill_networks, torch.randn(2, 4))


# ---------------------------------------------------------------- one logit


def binary(student: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(student, target)


@pytest.mark.parametrize(
    "loss", [KDLoss(), DMLLoss(), DISTLoss(), nn.CrossEntropyLoss(), F.cross_entropy, nn.KLDivLoss()]
)
def test_a_loss_over_classes_refuses_one_logit(loss: Callable[..., Tensor]) -> None:
    losses = {
        "bce": LossTerm(binary, pair=("Student", "GroundTruth")),
        "kd": LossTerm(loss, pair=("Student", "Teacher")),
    }
    made = module(CE, Network(classes=1), Network(classes=1), losses=losses)
    with pytest.raises(ValueError, match=r"term 'kd' .*at least two classes.*softmax of one logit"):
        fit(made, loader(target=torch.rand(8, 1).round()))


@pytest.mark.parametrize("loss", [KDLoss(class_dim=1), nn.CrossEntropyLoss()])
def test_maps_of_one_channel_are_refused(loss: Callable[..., Tensor]) -> None:
    maps = torch.randn(2, 1, 3, 3)
    composer = LossComposer({"kd": LossTerm(loss, pair=("Student", "Teacher"))})
    net = nn.Conv2d(1, 1, 1)
    with composer.capture({"Student": net, "Teacher": (other := nn.Conv2d(1, 1, 1))}) as signals:
        net(maps), other(maps)
    with pytest.raises(ValueError, match=r"at least two classes"):
        composer(signals)


def test_dkd_refuses_one_class() -> None:
    with pytest.raises(ValueError, match=r"dkd_loss expects at least two classes"):
        DKDLoss()(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))


def test_regression_of_one_number_trains_without_top1() -> None:
    mse = {"mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))}
    made = module(CE, Network(classes=1), Network(classes=1), losses=mse)
    with pytest.warns(UserWarning, match=r"top1 and top5 of Student are left out: its output \(4, 1\) is one number"):
        trainer = fit(made, loader(target=torch.rand(8, 1)), validate=True)
    assert not [name for name in trainer.callback_metrics if "top" in name]


# ---------------------------------------------------------------- metrics that fit


class Structured(Network):
    def forward(self, x: Tensor) -> Any:
        return {"scores": super().forward(x)}


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]] * 4), "no sample has a label of one class"),
        (torch.tensor([[1, 1, 0], [0, 0, 1]] * 4), "no sample has a label of one class"),
        (torch.rand(8), "is neither class indices nor probabilities"),
        (torch.zeros(8, 2, 2), "is neither class indices nor probabilities"),
    ],
)
def test_targets_without_one_class_have_no_top1(target: Tensor, why: str) -> None:
    def loss(student: Tensor, target: Tensor) -> Tensor:
        return student.square().mean() + 0 * target.float().mean()

    made = module(CE, losses={"own": LossTerm(loss, pair=("Student", "GroundTruth"))})
    with pytest.warns(UserWarning, match=rf"top1 and top5 of Student are left out: .*{why}.*metrics="):
        trainer = fit(made, loader(target=target), validate=True)
    assert not [name for name in trainer.callback_metrics if "top" in name]


def test_outputs_that_are_structures_are_said() -> None:
    made = module(
        CE, Structured(), losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student.last", "GroundTruth"))}
    )
    with pytest.warns(UserWarning, match=r"top1 and top5 of Student are left out: its output is a dict"):
        trainer = fit(made, validate=True)
    assert "val/Teacher/top1" in trainer.callback_metrics


@pytest.mark.parametrize("soft", [False, True])
def test_soft_labels_and_labels_that_miss_keep_their_top1(soft: bool) -> None:
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])
    target = F.one_hot(labels.clamp(min=0), 3) * 0.8 + 0.2 / 3 if soft else labels
    ce = LossTerm(nn.CrossEntropyLoss(ignore_index=-1), pair=("Student", "GroundTruth"))
    made = module(CE, losses={"ce": ce})
    trainer = fit(made, loader(target=target), validate=True)
    top1 = float(trainer.callback_metrics["val/Student/top1"])
    assert (top1 * (8 if soft else 6)) % 1 == pytest.approx(0, abs=1e-4)


# ---------------------------------------------------------------- probabilities for logits


class Ending(Network):
    """Ends in an activation, in a module or as a function."""

    def __init__(self, last: nn.Module | Callable[[Tensor], Tensor], classes: int = 3) -> None:
        super().__init__(classes=classes)
        self.function = last

    def forward(self, x: Tensor) -> Tensor:
        return self.function(super().forward(x))


KD_PAIR = ("Student", "Teacher")
KD = LossTerm(KDLoss(), pair=KD_PAIR)
BCE = LossTerm(nn.BCEWithLogitsLoss(), pair=("Student", "GroundTruth"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize(
    ("student", "teacher", "term", "who"),
    [
        (Ending(nn.Softmax(dim=1)), None, KD, "Student"),
        (None, Ending(nn.Softmax(dim=1)), KD, "Teacher"),
        (None, Ending(partial(torch.softmax, dim=1)), KD, "Teacher"),
        (Ending(torch.sigmoid), None, KD, "Student"),
        (None, Ending(nn.Sigmoid()), KD, "Teacher"),
        (None, Ending(nn.Softmax(dim=1)), LossTerm(nn.MSELoss(), pair=("Student", "Teacher")), "Teacher"),
        (None, None, LossTerm(nn.KLDivLoss(), pair=("Student", "Teacher")), "Student"),
    ],
)
def test_the_wrong_last_activation_is_warned_of(
    student: nn.Module | None, teacher: nn.Module | None, term: LossTerm, who: str, precision: Any
) -> None:
    made = module(term, student, teacher)
    if precision == "bf16-true":
        made = made.bfloat16()
    batch = next(iter(loader()))
    with pytest.warns(UserWarning, match=rf"term 'hint' .*'{who}' \(4, 3\) does not fit"):
        made.build((batch[0].to(next(made.parameters()).dtype), batch[1]))


@pytest.mark.parametrize("last", [torch.sigmoid, partial(torch.softmax, dim=1)])
def test_multi_label_losses_expect_logits_too(last: Callable[[Tensor], Tensor]) -> None:
    made = module(CE, Ending(last), losses={"bce": BCE})
    with pytest.warns(UserWarning, match=r"term 'bce' .*where the loss expects logits"):
        made.build((torch.randn(4, 4), torch.rand(4, 3).round()))


@pytest.mark.parametrize(
    ("student", "teacher", "term"),
    [
        (Network(), Network(), KD),
        (Ending(lambda x: x * 1000), Ending(lambda x: x * 1000), KD),  # confident networks
        (Ending(nn.LogSoftmax(dim=1)), Network(), KD),  # the softmax of a log-softmax is the softmax
        (Ending(nn.LogSoftmax(dim=1)), Ending(nn.Softmax(dim=1)), LossTerm(nn.KLDivLoss(), pair=KD_PAIR)),
        (Network(), Ending(nn.Softmax(dim=1)), LossTerm(
            lambda s, t: F.kl_div(s.log_softmax(1), t, reduction="batchmean"), pair=("Student", "Teacher"))),
        (Network(), Ending(nn.Softmax(dim=1)), LossTerm(nn.CrossEntropyLoss(), pair=("Student", "Teacher"))),
    ],
)  # fmt: skip
def test_what_a_loss_expects_is_no_alarm(student: nn.Module, teacher: nn.Module, term: LossTerm) -> None:
    losses = {"hint": term}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not fit")
        module(term, student, teacher, losses=losses).build(next(iter(loader())))


# ---------------------------------------------------------------- validation that is not finite


def test_a_validation_term_that_is_nan_is_named() -> None:
    def broken(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean() if torch.is_grad_enabled() else student.mean() * torch.nan

    with pytest.warns(UserWarning, match=r"val/hint, val/loss in epoch 0: val/hint is nan \(broken: Student <- Tea"):
        fit(module(LossTerm(broken, pair=("Student", "Teacher"))), validate=True)


@pytest.mark.parametrize("validate", [False, True])
def test_a_training_term_that_is_nan_is_named_once(validate: bool) -> None:
    def broken(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean() * torch.nan

    with pytest.warns(UserWarning, match=r"train/hint is nan \(broken: Student <- Teacher") as said:
        fit(module(LossTerm(broken, pair=("Student", "Teacher"))), validate=validate, max_epochs=2, log_every_n_steps=1)
    assert len([each for each in said if "train/hint is nan" in str(each.message)]) == 1


# ---------------------------------------------------------------- a teacher that guesses


def separable() -> tuple[DataLoader[Any], nn.Module]:
    x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    right = nn.Linear(4, 3)
    right.weight.data, right.bias.data = torch.eye(3, 4), torch.zeros(3)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(dim=1)), batch_size=32), right


def test_a_teacher_at_chance_is_said_once() -> None:
    data, right = separable()
    wrong = nn.Sequential(right, nn.Softplus(), nn.Linear(3, 3, bias=False))
    wrong[2].weight.data = torch.eye(3).roll(1, 0)
    with pytest.warns(UserWarning, match=r"the frozen Teacher is no better than chance: top-1 .* 128 valid") as said:
        fit(module(KD, teacher=wrong), data, validate=True, max_epochs=2, num_sanity_val_steps=1)
    assert len([each for each in said if "no better than chance" in str(each.message)]) == 1


def test_a_teacher_that_knows_is_not() -> None:
    data, right = separable()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no better than chance")
        fit(module(KD, teacher=right), data, validate=True, num_sanity_val_steps=1)
