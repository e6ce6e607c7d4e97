"""Poisoned batches, losses and networks for the tests of steps that are not finite; runs on one process or two."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import NonFinite, NonFiniteError
from lit_distill.losses import KDLoss

SAMPLES, BATCH = 48, 4
BAD = 17  # the sample that is poisoned: of batch 4 in one process


class Points(Dataset[tuple[Tensor, int, int]]):
    """Points (4,) of three classes; ``samples`` names a file for each, as the project's data sets do."""

    def __init__(self, poison: float | None = None) -> None:
        self.x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))
        self.y = self.x[:, :3].argmax(dim=1)
        self.samples = [(f"videos/{i}.mp4", int(self.y[i])) for i in range(SAMPLES)]
        if poison is not None:
            self.x[BAD, 2] = poison

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.x[index], int(self.y[index]), index


class At(nn.Module):
    """A term that is ``value`` in call ``call`` of rank ``rank``, and otherwise a small function of the student."""

    def __init__(self, call: int, value: float, *, rank: int = 0, in_gradient: bool = False) -> None:
        super().__init__()
        self.call, self.value, self.rank, self.in_gradient, self.calls = call, value, rank, in_gradient, -1

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss = (student - teacher).square().mean()
        if not torch.is_grad_enabled():
            return loss
        self.calls += 1
        here = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if self.calls != self.call or here != self.rank:
            return loss
        if not self.in_gradient:
            return loss.detach() * 0 + self.value + 0 * loss
        return loss + Overflow.apply(student) * 0  # type: ignore[no-any-return]


class Overflow(torch.autograd.Function):
    """A finite value with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_full(ctx.shape, torch.inf)


class Overflows(nn.Module):
    """A frozen network whose output for some input is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        marked = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))[BAD]
        hit = (x == marked).all(dim=1, keepdim=True)
        return torch.where(hit, torch.inf, self.inner(x))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def module(term: nn.Module | None = None, *, weight: float = 1.0, teacher: nn.Module | None = None) -> DistillModule:
    torch.manual_seed(1)
    losses = {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "kd": LossTerm(KDLoss(), pair=("Student", "Teacher")),
    }
    if term is not None:
        losses["odd"] = LossTerm(term, pair=("Student", "Teacher"), weight=weight)
    return DistillModule(
        models={"Student": net(), "Teacher": teacher or net()}, frozen=["Teacher"], losses=losses,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01), preflight=False,
    )  # fmt: skip


class States(Callback):
    """The trained state after every step: weights, buffers, momentum; and what was logged of the loss until then."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.states.append(state(trainer))
        self.steps.append(trainer.global_step)
        self.losses.append(float(trainer.callback_metrics.get("train/loss", 0.0)))


def state(trainer: Trainer) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}
    for number, momentum in enumerate(trainer.optimizers[0].state.values()):
        found[f"momentum/{number}"] = momentum["momentum_buffer"].clone()
    return found


def fit(
    model: DistillModule, dataset: Dataset[Any], *callbacks: Callback, devices: int = 1, epochs: int = 1, **more: Any
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=more.pop("strategy", "ddp" if devices > 1 else "auto"),
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, use_distributed_sampler=False,
        **more,
    )  # fmt: skip
    share = list(range(trainer.global_rank, SAMPLES, devices))
    trainer.fit(model, DataLoader(dataset, batch_size=BATCH, sampler=share))
    return trainer


def two_ranks(folder: Path, kind: str, policy: str, strategy: str) -> None:
    """Rank 1 meets what rank 0 does not; both must do the same."""
    model, data = module(), Points()
    if kind == "loss":
        model = module(At(2, torch.nan, rank=1), weight=1e-9)
    elif kind == "gradient":
        model = module(At(2, 0.0, rank=1, in_gradient=True))
    else:
        data = Points(torch.nan)  # sample 17 is rank 1's
    states, guard = States(), NonFinite(policy=policy)  # type: ignore[arg-type]
    told = ""
    trainer = None
    try:
        trainer = fit(model, data, guard, states, devices=2, strategy=strategy)
    except NonFiniteError as error:
        told = str(error)
    rank = torch.distributed.get_rank()
    last = dict(model.state_dict())
    torch.save(
        {"told": told, "skips": guard.skips, "states": states.states, "last": last, "fitted": trainer is not None},
        folder / f"rank{rank}.pt",
    )


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]), *sys.argv[2:5])
