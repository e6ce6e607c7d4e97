"""A cached teacher changes nothing but the time: bit for bit, on one rank and two, and nothing wrong is ever read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faults import tiny
from faults.killing import Server, differences, serving
from lit_distill import DistillModule
from lit_distill.callbacks import TeacherCache


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("scenario", ["cached teacher, Mixup", "cached teacher on two ranks"])
def test_training_is_the_uncached_one_bit_for_bit(server: Server, tmp_path: Path, scenario: str) -> None:
    for name, but in (("without", {"cache": None}), ("with", {}), ("again", {})):
        folder = tmp_path / name
        if name == "again":  # all that training and validation ask for is there from the start
            folder.mkdir()
            (tmp_path / "with" / "teachers").rename(folder / "teachers")
        answer = server.run(folder, scenario, but=but, workers=2)
        assert set(answer["codes"]) == {0}, (folder / "log0.txt").read_text()
    for name in ("with", "again"):
        assert differences(tmp_path / "without", tmp_path / name) == []
    asked = {"cached teacher, Mixup": 84, "cached teacher on two ranks": 72}[scenario]  # whole batches of 3 epochs
    assert (
        f"33.3 % of {asked} train samples" in (tmp_path / "with" / "log0.txt").read_text()
    )  # epoch 2 is epoch 0 again
    assert "66.7 % of 30 val samples" in (tmp_path / "with" / "log0.txt").read_text()
    said = (tmp_path / "again" / "log0.txt").read_text()
    assert f"100.0 % of {asked} train samples" in said
    assert "100.0 % of 30 val samples" in said


class Counted(nn.Module):
    """A network that counts how often it is run."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.inner(x)
        return out


def fit(folder: Path, *, module: DistillModule | None = None, loader: Any = None, **more: Any) -> TeacherCache:
    arguments = {key: more.pop(key) for key in ("dtype", "top_k", "max_gb", "models") if key in more}
    cache = TeacherCache(folder=folder / "teachers", **arguments)
    loader = loader or tiny.loader()
    tiny.trainer(folder, callbacks=[cache], **more).fit(module or tiny.module(), loader, loader)
    return cache


def counts(cache: TeacherCache) -> list[tuple[int, int]]:
    return [(cache.counts[stage].hits, cache.counts[stage].asked) for stage in ("train", "val")]


def counted() -> tuple[DistillModule, Counted]:
    torch.manual_seed(1)
    teacher = Counted(tiny.net(16))
    return tiny.module(models={"Student": tiny.net(), "Teacher": teacher}), teacher


def test_a_teacher_whose_signals_are_all_there_is_not_run(tmp_path: Path) -> None:
    calls = {}
    for epochs, hits in ((1, 0), (1, 32), (4, 128)):
        module, teacher = counted()
        assert counts(fit(tmp_path, module=module, max_epochs=epochs)) == [(hits, 32 * epochs)] * 2
        calls[hits] = teacher.calls
    assert calls[128] == calls[32], "before the first step alone"
    assert calls[0] == calls[32] + 2 * len(tiny.loader())
