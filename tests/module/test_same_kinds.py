"""Cases of the kinds of silent mistakes that others wrote: what is wrong is refused, what is honest is left alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from lit_distill import DistillModule, LossTerm
from lit_distill._inputs import left_as_given
from lit_distill._module.frozen import FrozenModelChanged, FrozenRecord, shared_tensors
from lit_distill._module.metrics import TopKAccuracy
from lit_distill._module.scheduling import scheduler_config
from lit_distill._module.step import batch_size
from lit_distill._terms.trial import on_trial


@pytest.mark.parametrize("change", [lambda b: b.update(x=b["x"] / 3), lambda b: b.pop("x")])
def test_an_entry_of_a_batch_that_a_model_replaces_is_refused(change: Callable[[dict[str, Tensor]], object]) -> None:
    batch = {"x": torch.ones(2)}
    with left_as_given("Student", [batch], "copy it"):
        batch["new"] = torch.ones(2)  # which harms nobody
    with pytest.raises(ValueError, match="changes the dict"), left_as_given("Student", [batch], "copy it"):
        change(batch)


def test_a_score_for_whole_targets_is_no_wrong_number_of_classes() -> None:
    def loss(score: Tensor, target: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(score[:, 0], target.float())

    module = DistillModule({"Student": nn.Linear(4, 1)}, {"bce": LossTerm(loss, pair=("Student", "GroundTruth"))})
    module.build((torch.randn(2, 4), torch.tensor([0, 1])))


def test_top1_takes_booleans_and_is_nan_beyond_the_outputs() -> None:
    metric = TopKAccuracy()
    metric.update(torch.randn(2, 3), torch.eye(3, dtype=torch.bool)[:2])
    assert metric.compute().isfinite()
    metric.update(torch.randn(2, 3), torch.tensor([0, 3]))
    assert metric.compute().isnan()


def test_a_loss_that_finds_no_pair_in_the_example_is_left_alone() -> None:
    def mined(student: Tensor, target: Tensor) -> Tensor:
        return student.pow(2).mean() if len(target) > 2 else torch.zeros(())

    module = DistillModule({"Student": nn.Linear(4, 3)}, {"mined": LossTerm(mined, pair=("Student", "GroundTruth"))})
    module.build((torch.randn(2, 4), torch.tensor([0, 1])))


def test_a_scale_of_the_batch_is_not_its_size() -> None:
    inputs = {"scale": torch.ones(1), "clip": torch.zeros(3, 8)}
    assert batch_size(None, inputs) == 3
    assert batch_size(None, {"scale": torch.ones(1)}, {"Student": torch.zeros(4, 2)}) == 4
    assert batch_size(None, torch.zeros(5)) == 5
    assert batch_size(None, "text") == 1


def test_a_step_scheduler_of_a_long_step_is_asked_about() -> None:
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="StepLR has a length of 10"):
        scheduler_config(StepLR(optimizer, 10), steps=24, epochs=3, student="Student")


def test_a_trial_restores_an_embedding_with_max_norm() -> None:
    embedding = nn.Embedding(4, 8, max_norm=0.1)
    before = embedding.weight.detach().clone()
    with on_trial([embedding]):
        embedding(torch.arange(4))
    assert torch.equal(embedding.weight, before)


def test_a_trial_restores_parameters_that_a_forward_pass_writes_to() -> None:
    class Halves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.mul_(0.5)
            return super().forward(x)

    part = Halves(4, 3)
    before = part.weight.detach().clone()
    with on_trial([part]):
        part(torch.zeros(1, 4))
    assert torch.equal(part.weight, before)


@pytest.mark.parametrize("norm", [0.1, 3.7, 100.0])
def test_a_frozen_embedding_with_max_norm_is_not_changed_by_looking_it_up(norm: float) -> None:
    teacher = nn.Embedding(9, 8, max_norm=norm)
    teacher.weight.data.mul_(1000)
    record = FrozenRecord({"Teacher": teacher})
    record.moved({"Teacher": teacher})
    for _ in range(3):
        teacher(torch.arange(9))
    record.require_unchanged({"Teacher": teacher}, thorough=True)
    teacher.weight.data[0] = 0
    with pytest.raises(FrozenModelChanged):
        record.require_unchanged({"Teacher": teacher}, thorough=True)


def test_a_shared_part_that_drops_at_random_is_named() -> None:
    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if not self.training else x * (torch.rand(len(x), 1) > 0.5)

    part = DropPath()
    assert shared_tensors(nn.Sequential(part), nn.Sequential(part)) == ["0"]


def test_a_trial_restores_containers_however_deep() -> None:
    class Carries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[str, list[int]] = {"calls": []}
            self.recent: deque[float] = deque([0.0], maxlen=2)
            self.state = (torch.zeros(1), [torch.zeros(1)])
            self.again = self.state

        def forward(self, x: Tensor) -> Tensor:
            self.seen["calls"].append(1)
            self.recent.append(1.0)
            self.state[0].add_(1)
            self.state[1][0].add_(1)
            assert self.again is self.state, "what is shared stays shared"
            return x

    part = Carries()
    seen, state = part.seen, part.state
    with on_trial([part]):
        part(torch.zeros(1))
        part(torch.zeros(1))
    assert part.seen is seen
    assert part.seen == {"calls": []}
    assert list(part.recent) == [0.0]
    assert part.state is state
    assert not any(tensor.any() for tensor in (state[0], *state[1]))
