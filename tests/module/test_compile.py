"""`compile=step`: models, taps and losses as one graph, which trains as the eager step does."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ddp.launch import run_on_ranks
from lit_distill import DistillMixin, DistillModule, LossComposer, LossTerm
from lit_distill._terms.compiled import Compilation
from lit_distill.balance import Uncertainty
from lit_distill.callbacks import NonFinite, NonFiniteError, Progress, TeacherCache
from lit_distill.losses import AttentionTransferLoss, DKDLoss, FitNetLoss, KDLoss
from lit_distill.signals import SignalCapture, parse_references

DYNAMO = {"scope": "step", "backend": "eager"}  # what decides whether there is one graph; the cheapest
BATCH = 8


class Net(nn.Sequential):
    """Two taps, BatchNorm, dropout, and an activation in place."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(2 * width, 3),
        )


def ramp(epoch: float) -> float:
    return 0.1 + epoch


def late(epoch: float) -> float:
    return float(epoch >= 1)


def terms() -> dict[str, LossTerm]:
    return {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "dkd": LossTerm(DKDLoss(warmup_epochs=4), pair=("Student", "Teacher"), target="GroundTruth", weight=ramp),
        "at": LossTerm(AttentionTransferLoss(), pair=(["Student.0", "Student.1"], ["Teacher.0", "Teacher.1"])),
        "hint": LossTerm(FitNetLoss(), pair=("Student.1.0", "Teacher.1.0")),  # changed in place behind its tap
        "watched": LossTerm(KDLoss(), pair=("Student", "Teacher"), monitor=True),
    }


def module(compile: Any = None, losses: Mapping[str, LossTerm] | None = None, **more: Any) -> DistillModule:
    torch.manual_seed(0)
    return DistillModule(
        models={"Student": Net(2), "Teacher": Net(3)}, losses=terms() if losses is None else losses,
        frozen=["Teacher"], optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9), compile=compile, **more,
    )  # fmt: skip


def data(samples: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(samples) % 3), batch_size=BATCH)


class Watch(Callback):
    """The loss and the number of graphs after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.graphs: list[int] = []
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        compiler = pl_module._compiler if isinstance(pl_module, DistillModule) else pl_module._distill_compiler
        self.graphs.append(compiler.graphs)
        self.seconds = compiler.seconds


def fit(model: DistillModule, *callbacks: Callback, epochs: int = 2, **more: Any) -> Watch:
    watch, resumed, samples = Watch(), more.pop("ckpt_path", None), more.pop("samples", 2 * BATCH + 3)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[watch, *callbacks], logger=False, enable_checkpointing=False,
        enable_model_summary=False, **{"enable_progress_bar": False, **more},
    )  # fmt: skip
    trainer.fit(model, data(samples), val_dataloaders=data(BATCH), ckpt_path=resumed)
    return watch


@pytest.fixture(scope="module")
def eager() -> tuple[Watch, dict[str, Tensor]]:
    model = module()
    return fit(model), model.state_dict()


@pytest.mark.parametrize(
    ("scope", "backend"),
    [("step", "eager"), ("models", "eager"), pytest.param("step", "aot_eager", marks=pytest.mark.slow)],
)
def test_trains_as_eagerly(scope: str, backend: str, eager: tuple[Watch, dict[str, Tensor]]) -> None:
    """With a ramp, a warm-up, a monitor, taps that are changed in place, and a smaller last batch."""
    expected, state = eager
    model = module({"scope": scope, "backend": backend})
    watch = fit(model)
    assert watch.losses == expected.losses
    assert watch.graphs == [0, 1, 1, 1, 1, 1]  # the first and the smaller batch are run eagerly
    assert watch.seconds > 0
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "first", "all_of_them"), [("64-true", 1e-8, 1e-8), ("32-true", 1e-5, 2e-4)])
def test_inductor_trains_as_eagerly(precision: Any, first: float, all_of_them: float) -> None:
    """In float64 the same losses; in float32 kernels sum in another order, which training makes more of."""
    expected, watch = (fit(module(compile), epochs=17, precision=precision) for compile in (None, "step"))
    assert len(watch.losses) == 51
    torch.testing.assert_close(watch.losses[:10], expected.losses[:10], rtol=first, atol=first)
    torch.testing.assert_close(watch.losses, expected.losses, rtol=all_of_them, atol=all_of_them)
    assert watch.graphs[1:] == [1] * 50


@pytest.mark.slow
def test_accumulation_clipping_precision_and_balance() -> None:
    more: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"}
    losses = {name: term for name, term in terms().items() if name != "hint"}
    expected, watch = (fit(module(compile, losses, balance=Uncertainty()), **more) for compile in (None, DYNAMO))
    assert watch.losses == expected.losses
    assert watch.graphs[-1] == 1


def test_a_term_that_begins_later_has_a_graph_of_its_own() -> None:
    losses = {**terms(), "late": LossTerm(KDLoss(), pair=("Student", "Teacher"), weight=late)}
    losses = {name: losses[name] for name in ("ce", "late")}
    expected, watch = (fit(module(compile, losses), epochs=3) for compile in (None, DYNAMO))
    assert watch.losses == expected.losses
    assert watch.graphs == [0, 1, 1, 1, 2, 2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(None, DYNAMO), (DYNAMO, None)])
def test_checkpoints_have_plain_names_and_resume_in_either_mode(
    before: Any, after: Any, tmp_path: Path, eager: tuple[Watch, dict[str, Tensor]]
) -> None:
    first = module(before)
    fit(first, epochs=1)
    first.trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert not any("_orig_mod" in key for key in torch.load(tmp_path / "a.ckpt", weights_only=False)["state_dict"])
    second = module(after)
    watch = fit(second, ckpt_path=tmp_path / "a.ckpt")
    assert watch.losses == eager[0].losses[3:]
    trained = {key: value for key, value in eager[1].items() if not key.startswith("val_")}
    torch.testing.assert_close({key: second.state_dict()[key] for key in trained}, trained, rtol=0, atol=0)


@pytest.mark.slow
def test_a_cached_teacher_is_read_back(tmp_path: Path, eager: tuple[Watch, dict[str, Tensor]]) -> None:
    cache = TeacherCache(folder=tmp_path)
    watch = fit(module(DYNAMO), cache)
    assert watch.losses == eager[0].losses
    assert watch.graphs[-1] == 1


class Reads(nn.Module):
    """A loss that asks for a value."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        difference = (student - teacher).square().mean()
        return difference * 2 if difference.item() > 1 else difference


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean()


@pytest.mark.parametrize(
    ("more", "term", "why"),
    [
        ({}, LossTerm(Reads(), pair=("Student", "Teacher")), r"term 'odd' \(Reads: .*cannot trace it"),
        ({}, LossTerm(squared, pair=("Student", "Teacher"), ignore_index=0), "takes no mask"),
        ({"unlabelled": True}, LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")), "unlabelled"),
    ],
)
def test_what_cannot_be_one_graph_is_refused_before_training(more: Any, term: LossTerm, why: str) -> None:
    losses = {"kd": LossTerm(KDLoss(), pair=("Student", "Teacher")), "odd": term}
    watch = Watch()
    with pytest.raises(ValueError, match=why) as refused:
        fit(module(DYNAMO, losses, **more), watch)
    assert not watch.losses
    assert "'kd'" not in str(refused.value)
    assert "compile=models" in str(refused.value)


class Counts(nn.Module):
    """A loss whose state is a number of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.calls += 1
        return squared(student, teacher) * (1.0 if self.calls % 2 else 0.5)


@pytest.mark.slow
def test_a_number_that_changes_each_step_is_said() -> None:
    losses = {"odd": LossTerm(Counts(), pair=("Student", "Teacher"))}
    with pytest.raises(ValueError, match="changes from step to step"):
        fit(module(DYNAMO, losses), epochs=4)


def test_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ValueError, match="compile=step needs a C\\+\\+ compiler"):
        fit(module("step"))
    Compilation("step", {"backend": "eager"}).require_compiler()


@pytest.mark.parametrize("given", ["all", {"scope": "step", "speed": 1}, 3])
def test_refuses_what_is_no_mode(given: Any) -> None:
    with pytest.raises(ValueError, match="compile is step, models or none"):
        module(given)


def test_a_step_that_is_not_finite_is_named() -> None:
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    model = module(DYNAMO, losses)

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    pl_module.models["Student"][5].bias.fill_(float("nan"))

    with pytest.raises(NonFiniteError, match="term 'ce'") as raised:
        fit(model, NonFinite(), Poison())
    assert "though all its signals are finite" not in str(raised.value)


def test_shapes_that_never_repeat_are_said() -> None:
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    step = LossComposer(losses).compiled({"Student": nn.Linear(2, 3)}, compile=DYNAMO)
    with pytest.warns(UserWarning, match="nothing was compiled in 20 steps"):  # noqa: PT031
        for size in range(20):
            step(torch.zeros(2 + size % 2, 2), torch.zeros(2 + size % 2, dtype=torch.long))


def test_a_bare_composer_compiles_too() -> None:
    totals: list[list[float]] = []
    for way in ("eager", "step", "models"):
        torch.manual_seed(0)
        models = {"Student": Net(2), "Teacher": Net(3).requires_grad_(False).eval()}
        composer = LossComposer({name: term for name, term in terms().items() if name in ("dkd", "at")})
        x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
        composer.build(models, x, y)
        optimizer = torch.optim.SGD([*models["Student"].parameters(), *composer.parameters()], lr=0.05)
        step: Callable[..., SignalCapture] | None = None
        if way != "eager":
            step = composer.compiled(models, compile={"scope": way, "backend": "eager"})
        totals.append([])
        for number in range(4):
            torch.manual_seed(number)
            if step is None:
                with composer.capture(models, epoch=number / 4) as signals, torch.no_grad():
                    models["Teacher"](x)
                with signals:
                    models["Student"](x)
            else:
                signals = step(x, y, epoch=number / 4)
            total = composer(signals, y, epoch=number / 4).total
            optimizer.zero_grad()
            torch.autograd.backward(total)
            optimizer.step()
            totals[-1].append(total.item())
    assert totals[0] == totals[1] == totals[2]


def test_a_copy_of_a_tapped_module_is_not_tapped() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with SignalCapture({"Student": net}, parse_references("Student.0")) as signals:
        copy.deepcopy(net)(torch.zeros(1, 2))
        assert "Student.0" not in signals


def test_the_progress_line_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_distill.callbacks.progress._SECONDS_BETWEEN_LINES", -1.0)
    text = io.StringIO()
    fit(
        module(DYNAMO, {"ce": terms()["ce"]}),
        Progress(console=Console(file=text, width=200)),
        epochs=1,
        enable_progress_bar=True,
    )
    assert "compiling " in text.getvalue()


def on_two_processes(rank: int, compile: Any) -> dict[str, Any]:
    losses = {name: term for name, term in terms().items() if name != "hint"}
    model = module(compile, losses)
    watch = fit(model, devices=2, strategy="ddp", samples=4 * BATCH + 6)
    return {"losses": watch.losses, "state": model.models["Student"].state_dict(), "graphs": watch.graphs}


@pytest.mark.slow
def test_two_processes() -> None:
    expected, found = (run_on_ranks(on_two_processes, compile) for compile in (None, DYNAMO))
    for rank in (0, 1):
        assert found[rank]["losses"] == expected[rank]["losses"]
        torch.testing.assert_close(found[rank]["state"], expected[rank]["state"], rtol=0, atol=0)
        assert found[rank]["graphs"][-1] == 1


class Own(LightningModule):
    """A module as a user has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Distilled(DistillMixin, Own):
    """The same with terms."""


@pytest.mark.parametrize("scope", ["step", "models"])
def test_the_mixin_compiles_teachers_and_terms(scope: str) -> None:
    found = []
    for compile in (None, {"scope": scope, "backend": "eager"}):
        model = Distilled()
        torch.manual_seed(1)
        losses = {name: term for name, term in terms().items() if name in ("dkd", "at", "watched")}
        model.distill(Net(3), student="net", losses=losses, compile=compile)
        watch = Watch()
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", callbacks=[watch], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, data(2 * BATCH + 3))
        found.append(watch)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert found[0].losses == found[1].losses
    assert found[1].graphs[-1] == (2 if scope == "step" else 1)
