"""Every loss on an accelerator: one graph, no tensor on the wrong device, nothing that waits for a value.

No accelerator is needed: ``FakeTensorMode`` has the shapes, dtypes and devices of CUDA tensors without their values, so
that a read of one raises. PyTorch's backward engine wants a real device, hence :func:`backward`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddp.test_every_loss import CASES, World, batch, world_of
from lit_distill.losses import RKDAngleLoss, RKDDistanceLoss
from lit_distill.losses.relation import _angles, _gram, rkd_distance
from losses import relations
from losses.checks import gradients, logits

DEVICE = torch.device("cuda", 0)


class Transfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that hand a tensor of the device to the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in args if isinstance(x, Tensor)]
        if isinstance(out, Tensor) and out.device.type == "cpu" and any(x.device == DEVICE for x in given):
            self.found.append(func.name())
        return out


def move(world: nn.Module) -> None:
    """Put parameters and buffers on the device, within a fake mode."""

    def moved(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)

    for part in world.modules():
        for name, p in part._parameters.items():
            part._parameters[name] = None if p is None else nn.Parameter(moved(p), p.requires_grad)
        for name, b in part._buffers.items():
            part._buffers[name] = None if b is None else moved(b)


def backward(loss: Tensor) -> dict[Tensor, Tensor]:
    """The gradients of the leaves, by the functions that autograd recorded."""
    assert loss.grad_fn is not None
    order: list[Any] = []
    seen, stack = {loss.grad_fn}, [(loss.grad_fn, iter(loss.grad_fn.next_functions))]
    while stack:  # those that others feed come after them
        function, rest = stack[-1]
        feeds = next((f for f, _ in rest if f is not None and f not in seen), None)
        if feeds is None:
            order.append(stack.pop()[0])
        else:
            seen.add(feeds)
            stack.append((feeds, iter(feeds.next_functions)))
    arrived: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    leaves: dict[Tensor, Tensor] = {}
    for function in reversed(order):
        grads = arrived.pop(function, {})
        given = [grads.get(i) for i in range(len(function._input_metadata))]
        if type(function).__name__ == "AccumulateGrad":
            assert given[0] is not None
            leaves[function.variable] = given[0]
            continue
        if not grads:
            continue
        result = function.apply(*given) if hasattr(function, "apply") else function(*given)
        result = list(result) if isinstance(result, tuple) else [result]
        for feeds, place in function.next_functions:
            while feeds is not None and result[0] is None and len(result) > 1:
                del result[0]  # of an argument that is no tensor
            grad = result.pop(0)
            if grad is None or feeds is None:
                continue
            wanted = feeds._input_metadata[place]
            assert grad.device == wanted.device, f"{function} gives a gradient on {grad.device}"
            grad = grad.sum_to_size(wanted.shape).to(wanted.dtype)
            slot = arrived.setdefault(feeds, {})
            slot[place] = slot[place] + grad if place in slot else grad
    return leaves


@functools.cache
def built(name: str) -> World:
    return world_of(name)


@contextmanager
def on_the_device(name: str) -> Iterator[tuple[World, tuple[Any, ...]]]:
    """A world and the arguments of its loss, on the device."""
    world = built(name)
    with FakeTensorMode(allow_non_fake_inputs=False):
        move(world)
        x, target, index, contrast = (
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE) for t in batch()
        )
        with torch.enable_grad():
            yield world, world.arguments(x, target, index, contrast)


@pytest.mark.parametrize("name", CASES)
def test_waits_for_nothing_and_stays_on_the_device(name: str) -> None:
    with on_the_device(name) as (world, arguments), Transfers() as transfers:
        loss = world.loss(*arguments)
        with torch.no_grad():
            leaves = backward(loss)
    assert loss.device == DEVICE
    assert leaves
    assert not transfers.found


@pytest.mark.parametrize(
    "name", [name if name.startswith(("CRD", "RKD")) else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_is_one_graph(name: str) -> None:
    """Of the quick tests those that have a form of their own for it; the files of many others compile them too."""
    with on_the_device(name) as (world, arguments):
        compiled = torch.compile(world.loss, backend=lambda module, example: module.forward, fullgraph=True)
        assert compiled(*arguments).device == DEVICE


@pytest.fixture
def fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """RKD on the CPU in the form for accelerators."""
    for file in (_angles, _gram, rkd_distance):
        monkeypatch.setattr(file, "can_look", lambda _: False)


def errors(loss: nn.Module, published: Any, student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Relative errors of value and gradient against the published form in float64 on the same rows."""
    value, (slope, _) = gradients(loss, student, teacher)
    wanted, (expected, _) = gradients(published, student.double(), teacher.double())
    assert slope is not None
    assert expected is not None
    return (
        float((value.double() - wanted).abs() / wanted),
        float((slope.double() - expected).norm() / expected.norm()),
    )


RKD = {"distance": (RKDDistanceLoss(), relations.distance), "angle": (RKDAngleLoss(), relations.angle)}


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("kind", RKD)
@pytest.mark.parametrize("n", [3, 70])
def test_fixed_shapes_compute_the_same(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = logits(n, 12, seed=1), logits(n, 9, seed=2)
    assert max(errors(*RKD[kind], student, teacher)) < 1e-9
    assert max(errors(*RKD[kind], student.float(), teacher.float())) < 1e-6
    monkeypatch.setattr(_angles, "_DEVICE_SLAB", n * n * 2 + 5)
    assert max(errors(*RKD[kind], student, teacher)) < 1e-9


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("kind", RKD)
@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6])
def test_fixed_shapes_know_close_float32_rows_and_equal_ones(kind: str, apart: float) -> None:
    student, teacher = logits(40, 12, seed=3).float(), logits(40, 9, seed=4).float()
    student[1] = student[0] + apart * logits(12, seed=5).float()
    student[3] = student[2]
    teacher[5] = teacher[4]
    assert max(errors(*RKD[kind], student, teacher)) < (1e-6 if apart > 1e-5 else 1e-4)


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("kind", RKD)
def test_a_device_without_float64_forms_differences(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gram, "_wide", lambda _: torch.float32)
    student, teacher = logits(40, 12, seed=3).float(), logits(40, 9, seed=4).float()
    assert max(errors(*RKD[kind], student, teacher)) < 1e-5
    monkeypatch.setattr(_gram, "_DEVICE_CHUNK", 40 * 12 * 7)
    student[1] = student[0] + 1e-2 * logits(12, seed=5).float()
    student[3] = student[2]
    assert max(errors(*RKD[kind], student, teacher)) < 1e-4
