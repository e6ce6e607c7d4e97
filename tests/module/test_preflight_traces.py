"""The preflight leaves no trace: buffers, attributes, training flags and random states are what they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, get_default_qat_qconfig, prepare_qat
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossTerm


class Moving(nn.Module):
    """Moves everything that a forward pass can move, in eval mode too."""

    mean: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.alias = self.mean
        self.center = torch.zeros(4)
        self.state: Tensor | None = None
        self.calls = 0
        self.history: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)
        self.numbers = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.mean(dim=0))
        self.seen = self.seen + 1
        self.center.add_(1.0)
        self.state = x.detach()
        self.calls += 1
        self.history.append(x)
        torch.rand(1), random.random(), np.random.random()  # noqa: NPY002
        torch.rand(1, generator=self.generator), self.numbers.random()
        return self.fc(x)  # type: ignore[no-any-return]

    def traces(self) -> list[Any]:
        return [
            self.mean.tolist(), self.seen.tolist(), self.alias is self.mean, self.center.tolist(), self.state is None,
            self.calls, len(self.history), self.generator.get_state().tolist(), self.numbers.bit_generator.state,
        ]  # fmt: skip


class Centered(nn.Module):
    """A loss that moves a buffer, as a center of teacher outputs."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.center.add_(teacher.mean(dim=0))
        return (student - teacher + self.center).square().mean()


def random_states() -> list[Any]:
    numbers: Any = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist()]


def quantized() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    network.qconfig = get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    return prepare_qat(network)  # type: ignore[no-any-return,no-untyped-call]


def module(student: nn.Module, loss: nn.Module | None = None) -> DistillModule:
    return DistillModule(
        models={"Student": student, "Teacher": nn.Linear(4, 3)},
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(loss or nn.MSELoss(), pair=("Student", "Teacher")),
        },
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])


def test_all_that_a_forward_pass_moves_is_restored() -> None:
    student, loss = Moving(), Centered()
    tried = module(student, loss)
    kept = student.mean
    before, randomness = copy.deepcopy(student.traces()), random_states()
    tried.build(batch())
    assert student.traces() == before
    assert student.mean is kept
    assert kept._version == 0
    assert loss.center.tolist() == [0.0, 0.0, 0.0]
    assert random_states() == randomness
    assert student.training


@pytest.mark.filterwarnings("ignore")
def test_observers_of_quantization_are_restored() -> None:
    student = quantized()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    module(student).build(batch())
    after = student.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert any(isinstance(part, FakeQuantize) for part in student.modules())


def test_a_network_that_builds_itself_in_its_first_pass_stays_built() -> None:
    student: Any = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
    tried = module(student)
    tried.build(batch())
    assert student[0].in_features == 4
    assert tuple(student[3].weight.shape) == (3, 8)
    assert student[1].running_mean.tolist() == [0.0] * 8


class Mixed(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Moving()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Mixed):
    pass


def with_module(preflight: bool) -> tuple[LightningModule, Moving]:
    student = Moving()
    made = module(student)
    made._preflight = preflight
    return made, student


def with_mixin(preflight: bool) -> tuple[LightningModule, Moving]:
    made = Distilled()
    term = LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))
    return made.distill(nn.Linear(4, 3), student="net", losses={"mse": term}, preflight=preflight), made.net


@pytest.mark.parametrize("make", [with_module, with_mixin])
def test_training_begins_with_the_same_state_with_and_without_it(
    make: Callable[[bool], tuple[LightningModule, Moving]],
) -> None:
    seen: list[Any] = []

    class AtStart(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append([*student.traces(), random_states()])

    loader = DataLoader(TensorDataset(*batch()), batch_size=2)
    for preflight in (True, False):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        made, student = make(preflight)
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[AtStart()],
        )  # fmt: skip
        trainer.fit(made, loader)
    assert seen[0] == seen[1]
