"""Two processes of B samples give what one process of 2B gives, for every loss there is: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ddp.launch import run_on_ranks
from lit_distill.losses import Example, SizedLoss
from losses.cases import DATASET_SIZE as SIZE
from losses.cases import STEMS, Case, cases_of

BATCH, CLASSES = 8, 5


CASES = {case.id: case for stem in STEMS for case in cases_of(stem)} | {
    "CrossEntropyLoss": Case(nn.CrossEntropyLoss, "labels"),
    "CrossEntropyLoss on mixed targets": Case(nn.CrossEntropyLoss, "mixed labels"),
}


class Net(nn.Module):
    """Three levels of maps and logits."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        inputs = (3, *widths[:2])
        self.levels = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 if n == 0 else 2, padding=1)
            for n, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm = nn.BatchNorm2d(widths[1])
        self.projector = nn.Identity()
        self.fc = nn.Linear(widths[2], CLASSES)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for number, level in enumerate(self.levels):
            x = level(x)
            x = self.norm(x) if number == 1 else x
            maps.append(x)
            x = x.tanh()
        return maps, self.fc(x.mean(dim=(2, 3)))


class World(nn.Module):
    """A student, a teacher that learns from the labels, and one loss between them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        equal = case.signals.startswith(("equal", "hidden"))
        self.case = case
        self.student, self.teacher = Net((4, 6, 8)), Net((4, 6, 8) if equal else (5, 7, 9))
        self.loss = case.make()
        if isinstance(self.loss, SizedLoss):
            ours, theirs = self.signals(torch.randn(2, 3, 8, 8))
            networks = {"Student": self.student, "Teacher": self.teacher}
            taps: tuple[nn.Module, ...] = (self.student.projector,)
            example = Example(ours, theirs, torch.arange(2), taps, (self.teacher.norm,), networks, SIZE)
            self.loss.build(example)
        timed: Any = self.loss
        if hasattr(timed, "set_epoch"):
            timed.set_epoch(0.5)
        if hasattr(timed, "warmup_epochs"):
            timed.set_epoch(100.0)
        self.double()

    def train(self, mode: bool = True) -> World:
        """Training without batch statistics: torch has SyncBatchNorm on accelerators alone."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def signals(self, x: Tensor) -> tuple[Any, Any]:
        (maps, logits), (their_maps, their_logits) = self.student(x), self.teacher(x)
        self.logits, self.their_logits = logits, their_logits
        kind = self.case.signals
        if kind in ("maps", "equal maps"):
            return maps, their_maps
        if kind in ("map", "equal map"):
            return maps[1], their_maps[1]
        if kind == "last map":
            return maps[2], their_maps[2]
        if kind == "hidden and prediction":
            return maps[1], [their_maps[1], their_maps[2]]
        if kind == "heads":
            return [logits, 2 * logits.tanh()], their_logits
        if kind == "feature and labels":
            return [logits, maps[1]], their_logits
        if kind == "equal logits and map":
            return [logits, maps[1]], [their_logits, their_maps[1]]
        if kind == "own logits and map":
            return logits, maps[1]
        if kind == "own stages":
            return maps[:-1], [maps[-1], logits]
        if kind == "peers":
            peers = [logits, their_logits, logits - 2 * their_logits]
            return peers, list(peers)
        return logits, their_logits

    def arguments(self, x: Tensor, target: Tensor, index: Tensor, contrast: Tensor) -> tuple[Any, ...]:
        """What the loss is called with."""
        ours, theirs = self.signals(x)
        if not getattr(self.loss, "teaches_both", False):
            theirs = [t.detach() for t in theirs] if isinstance(theirs, list) else theirs.detach()
        kind = self.case.signals
        if kind in ("labels", "feature and labels"):
            return ours, target
        if kind == "mixed labels":
            return ours, nn.functional.one_hot(target, CLASSES) * 0.7 + 0.3 / CLASSES
        if kind == "samples":
            return ours, theirs, [index, target], contrast
        return (ours, theirs, target) if self.case.has_target else (ours, theirs)

    def forward(self, x: Tensor, target: Tensor, index: Tensor, contrast: Tensor) -> Tensor:
        value = self.loss(*self.arguments(x, target, index, contrast))
        result: Tensor = value + nn.functional.cross_entropy(self.their_logits, target)
        return result


def batch() -> tuple[Tensor, ...]:
    made = torch.Generator().manual_seed(7)
    x = torch.randn(BATCH, 3, 8, 8, dtype=torch.float64, generator=made)
    target, index = torch.arange(BATCH) % CLASSES, torch.randperm(SIZE, generator=made)[:BATCH]
    contrast = torch.cat([index[:, None], torch.randint(SIZE, (BATCH, 4), generator=made)], dim=1)
    return x, target, index, contrast


def step(world: nn.Module, rows: slice) -> dict[str, Tensor]:
    """The loss of some rows, and every parameter's gradient."""
    value = world(*(part[rows] for part in batch()))
    value.backward()
    grads = {n.removeprefix("module."): p.grad for n, p in world.named_parameters() if p.grad is not None}
    return {"value": value.detach(), **grads}


def world_of(name: str) -> World:
    torch.manual_seed(0)
    return World(CASES[name]).train()


def on_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    return {name: step(DistributedDataParallel(world_of(name), find_unused_parameters=True), rows) for name in CASES}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    return run_on_ranks(on_rank)


@pytest.mark.parametrize("name", CASES)
def test_two_times_b_is_one_times_2b(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    world = world_of(name)
    expected = step(world, slice(None))
    assert sum(key.startswith("student.") for key in expected) > 0
    value = torch.stack([rank[name]["value"] for rank in ranks]).mean()
    torch.testing.assert_close(value, expected.pop("value"), rtol=1e-10, atol=1e-14)
    # Gradients that cancel to 0, as a bias's under a loss of differences, are rounding of the size of the others.
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for rank in ranks:
        for key, gradient in expected.items():
            difference = float((rank[name][key] - gradient).abs().max())
            assert difference <= 1e-10 * largest, f"{key}: {difference}"
    if isinstance(world.loss, nn.Module) and any(key.startswith("loss.") for key in expected):
        assert any(bool(expected[key].any()) for key in expected if key.startswith("loss."))
