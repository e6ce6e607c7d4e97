"""What a network is known by, also where its tensors are sharded or made of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ddp.launch import run_on_ranks
from lit_distill import DistillModule, LossTerm
from lit_distill._module.frozen import FrozenRecord
from lit_distill.losses import KDLoss
from lit_distill.models.identity import state_sha256


class Halves(Tensor):
    """A tensor that is made of two, as quantized ones are of numbers and scales."""

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> Halves:
        made: Halves = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)
        return made

    def __init__(self, numbers: Tensor, scale: Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Halves:
        return Halves(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(func)


def test_a_tensor_of_others_counts_as_these() -> None:
    numbers, scale = torch.arange(6, dtype=torch.int8).reshape(2, 3), torch.tensor(0.5)
    assert state_sha256({"w": Halves(numbers, scale)}) == state_sha256({"w.numbers": numbers, "w.scale": scale})
    assert state_sha256({"w": Halves(numbers, scale + 1)}) != state_sha256({"w": Halves(numbers, scale)})


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_sharded_network_is_the_one_that_it_was_and_is_seen_to_change() -> None:
    weight = torch.arange(6.0).reshape(3, 2)
    sharded = distribute_tensor(weight, init_device_mesh("cpu", (1,)), [Shard(0)])
    assert state_sha256({"w": sharded}) == state_sha256({"w": weight})
    net = nn.Linear(2, 3)
    net.weight = nn.Parameter(sharded, requires_grad=False)
    record = FrozenRecord({"Teacher": net})
    assert record.changed({"Teacher": net}, thorough=True) == []
    with torch.no_grad():
        net.weight.zero_()
    assert record.changed({"Teacher": net}) == ["Teacher"]


def sharded_teacher(rank: int) -> dict[str, Any]:
    """The values of a step with a Teacher that lies on both processes in halves."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    student, x = nn.Linear(4, 3), torch.randn(6, 4)
    before, expected = state_sha256(teacher.state_dict()), teacher(x).detach()
    for part in teacher:
        if isinstance(part, nn.Linear):
            fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(teacher, mesh=init_device_mesh("cpu", (2,)))
    module = DistillModule(
        {"Student": student, "Teacher": teacher}, {"kd": LossTerm(KDLoss(), pair=("Student", "Teacher"))},
        frozen=["Teacher"],
    )  # fmt: skip
    record = FrozenRecord({"Teacher": teacher})
    module.build((x, torch.zeros(6, dtype=torch.long)))
    with module.composer.capture(module.named) as signals:
        module.run_models(x, signals)
    held = next(p for p in teacher.parameters() if isinstance(p, DTensor))
    return {
        "same": record.stored["Teacher"]["sha256"] == before
        and not record.changed({"Teacher": teacher}, thorough=True),
        "error": float((signals["Teacher"] - expected).abs().max()),
        "share": held.to_local().numel() / held.numel(),
    }


@pytest.mark.slow
def test_a_frozen_teacher_is_sharded_over_two_processes() -> None:
    for found in run_on_ranks(sharded_teacher):
        assert found == {"same": True, "error": pytest.approx(0, abs=1e-6), "share": 0.5}
