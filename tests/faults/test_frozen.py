"""Frozen is frozen: nothing of a frozen model changes, trains, is broadcast or saved; resumed runs have the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp.launch import run_on_ranks
from faults import tiny
from faults.report import report
from lit_distill import DistillModule
from lit_distill.callbacks import EMATeacher
from lit_distill.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from lit_distill.models import load_weights
from lit_distill.models.identity import state_sha256

STEPS = 100


class Meddler(Callback):
    """A user who calls train() on the teacher, and asks for gradients through its outputs."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.models["Teacher"].train()


class Writer(Callback):
    """Something that writes to the teacher in a step."""

    def __init__(self, at: int, *, past_the_count: bool = False) -> None:
        self.at, self.past_the_count = at, past_the_count

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.at:
            weight = pl_module.models["Teacher"][0].weight
            with torch.no_grad():
                (weight.data if self.past_the_count else weight).add_(1e-3)


def deep(width: int = 16) -> nn.Sequential:
    """A network with dropout, BatchNorm and a buffer of integers."""
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width),
        nn.BatchNorm1d(width, momentum=None), nn.Linear(width, 3),
    )  # fmt: skip


@pytest.mark.parametrize("steps", [20, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "setting",
    [
        {}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2}, {"val_check_interval": 2},
        {"callbacks": [Meddler()]}, {"detect_anomaly": True, "precision": "64-true"},
    ],
    ids=lambda setting: ", ".join(f"{k}={v}" for k, v in setting.items() if k != "callbacks") or "plain",
)  # fmt: skip
def test_no_step_changes_a_bit_of_the_teacher(tmp_path: Path, setting: dict[str, Any], steps: int) -> None:
    torch.manual_seed(0)
    teacher = deep()
    module = tiny.module(models={"Student": tiny.net(), "Teacher": teacher})
    fit = tiny.trainer(tmp_path, max_epochs=-1, max_steps=steps // setting.get("accumulate_grad_batches", 1), **setting)
    placed = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(setting.get("precision", ""), torch.float32)
    before = state_sha256({k: v.to(placed) if v.is_floating_point() else v for k, v in teacher.state_dict().items()})
    fit.fit(module, tiny.loader(), tiny.loader())
    same = state_sha256(teacher.state_dict()) == before
    if steps == STEPS:
        report(f"frozen: teacher's hash after {steps} steps", tried=1, survived=int(same))
    assert same
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(part.training for part in teacher.modules())
    optimised = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in teacher.parameters()}
    assert len(optimised) == len(list(module.models["Student"].parameters()))


def test_its_graph_is_not_kept_either(tmp_path: Path) -> None:
    module = tiny.module()
    seen: list[bool] = []
    module.models["Teacher"].register_forward_hook(lambda part, args, output: seen.append(output.requires_grad))
    tiny.trainer(tmp_path, max_steps=2).fit(module, tiny.loader())
    assert seen
    assert not any(seen)


class Watch(Callback):
    """What DistributedDataParallel broadcasts and reduces."""

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.buffers: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        ddp = trainer.strategy.model
        assert isinstance(ddp, DistributedDataParallel)
        names = {id(p): name for name, p in pl_module.named_parameters()}
        self.registered = [names[id(p)] for p in ddp._module_parameters]
        self.buffers = [id(b) for b in ddp.modules_buffers]


def on_a_rank(rank: int, folder: str, steps: int) -> dict[str, Any]:
    module = tiny.module(models={"Student": tiny.net(), "Teacher": deep()})
    teacher = module.models["Teacher"]
    with torch.no_grad():  # each rank loads its own: DDP must not touch it
        teacher[0].bias.add_(rank)  # type: ignore[index]
    before, watch = state_sha256(teacher.state_dict()), Watch()
    fit = tiny.trainer(
        Path(folder), max_epochs=-1, max_steps=steps, devices=2, strategy="ddp", callbacks=[watch, Meddler()]
    )
    fit.fit(module, tiny.loader(), tiny.loader())
    return {
        "same": state_sha256(teacher.state_dict()) == before,
        "hash": before,
        "student": state_sha256(module.models["Student"].state_dict()),
        "reduced": sorted(watch.registered),
        "buffers": [n for n, b in module.named_buffers() if id(b) in watch.buffers],
    }


@pytest.mark.parametrize("steps", [20, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_on_two_ranks_it_is_neither_broadcast_nor_reduced(tmp_path: Path, steps: int) -> None:
    ranks = run_on_ranks(_launched, str(tmp_path), steps)
    if steps == STEPS:
        report(
            f"frozen: teacher's hash after {steps} steps on two ranks", tried=2, survived=sum(r["same"] for r in ranks)
        )
    assert all(rank["same"] for rank in ranks)
    assert ranks[0]["hash"] != ranks[1]["hash"]
    assert ranks[0]["student"] == ranks[1]["student"]
    for rank in ranks:
        assert rank["reduced"]
        assert all(name.startswith("models.Student.") for name in rank["reduced"] + rank["buffers"])


def _launched(rank: int, folder: str, steps: int) -> dict[str, Any]:
    """Lightning finds its ranks in the environment, as under torchrun; the process group is there already."""
    import os

    os.environ |= {
        "LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "x",
    }  # fmt: skip
    return on_a_rank(rank, folder, steps)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_checkpoint_has_the_size_of_what_trains(tmp_path: Path, optimizer: Any) -> None:
    from functools import partial

    def wide(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3))

    more = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    module = tiny.module(
        models={"Student": wide(200), "Teacher": wide(600)}, optimizer=partial(optimizer, lr=0.1, **more)
    )
    fit = tiny.trainer(tmp_path, max_steps=2)
    fit.fit(module, tiny.loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    stored = read_checkpoint(tmp_path / "a.ckpt")
    assert not [key for key in stored["state_dict"] if "Teacher" in key]
    student = sum(p.numel() * p.element_size() for p in module.models["Student"].parameters())
    expected = student * (2 if optimizer is torch.optim.SGD else 3)
    assert (tmp_path / "a.ckpt").stat().st_size == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("past_the_count", [False, True], ids=["in place", "by .data"])
def test_a_teacher_that_something_writes_to_ends_the_run(tmp_path: Path, past_the_count: bool) -> None:
    fit = tiny.trainer(tmp_path, max_epochs=2, callbacks=[Writer(at=3, past_the_count=past_the_count)])
    with pytest.raises(RuntimeError, match="Teacher: frozen, but its values have changed since training began"):
        fit.fit(tiny.module(), tiny.loader())
    report("frozen: a teacher that something writes to is reported", tried=1, survived=1)


def test_a_checkpoint_of_a_changed_teacher_is_not_written(tmp_path: Path) -> None:
    fit = tiny.trainer(tmp_path)
    module = tiny.module()
    fit.fit(module, tiny.loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    with torch.no_grad():
        module.models["Teacher"][0].bias.add_(1)  # type: ignore[index]
    with pytest.raises(RuntimeError, match="Teacher: frozen"):
        fit.save_checkpoint(tmp_path / "b.ckpt")
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["a.ckpt"]


# ---------------------------------------------------------------- resuming


def teacher_file(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(tiny.net(16).state_dict(), folder / f"teacher{seed}.pth")
    return folder / f"teacher{seed}.pth"


def with_teacher(file: Path, **more: Any) -> DistillModule:
    module = tiny.module(**more)
    report = load_weights(module.models["Teacher"], file)
    module.models["Teacher"].load_report = report  # type: ignore[assignment]
    return module


def saved(folder: Path, module: DistillModule, **more: Any) -> Path:
    fit = tiny.trainer(folder, max_epochs=1, **more)
    fit.fit(module, tiny.loader())
    fit.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def resumed(folder: Path, module: DistillModule, path: Path, **more: Any) -> Trainer:
    fit = tiny.trainer(folder, max_epochs=2, **more)
    fit.fit(module, tiny.loader(), ckpt_path=path)
    return fit


def test_a_resumed_run_must_have_the_same_teacher(tmp_path: Path) -> None:
    one, other = teacher_file(tmp_path, 1), teacher_file(tmp_path, 2)
    path = saved(tmp_path, with_teacher(one))
    assert resumed(tmp_path, with_teacher(one), path).global_step == 8
    assert resumed(tmp_path, with_teacher(one), path, precision="bf16-true").global_step == 8, "a cast is no other one"
    with pytest.raises(ValueError, match="Teacher is frozen and is another network") as caught:
        resumed(tmp_path, with_teacher(other), path)
    stored = read_checkpoint(path)["lit_distill"]["frozen_records"]["Teacher"]
    for part in (
        stored["sha256"][:12],
        stored["loaded_sha256"][:12],
        str(one),
        str(other),
        "replaced_frozen=[Teacher]",
    ):
        assert part in str(caught.value)
    again = resumed(tmp_path, with_teacher(other, replaced_frozen=["Teacher"]), path)
    assert again.global_step == 8
    again.save_checkpoint(tmp_path / "b.ckpt")
    now = read_checkpoint(tmp_path / "b.ckpt")["lit_distill"]["frozen_records"]["Teacher"]
    assert now["loaded_from"] == str(other)
    report("frozen: another teacher on resuming is reported", tried=1, survived=1)


def test_replaced_frozen_names_frozen_models() -> None:
    with pytest.raises(ValueError, match=r"replaced_frozen names \['Student'\]"):
        tiny.module(replaced_frozen=["Student"])


def test_keys_are_compared_and_listed(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny.module())
    stored = read_checkpoint(path)
    del stored["state_dict"]["models.Student.0.weight"]
    stored["state_dict"]["models.Helper.0.weight"] = torch.zeros(1)
    stored["state_dict"]["models.Student.3.bias"] = torch.zeros(7)
    write_checkpoint(stored, path)
    with pytest.raises(ValueError, match="does not fit") as caught:
        resumed(tmp_path, tiny.module(), path)
    assert "missing 1: models.Student.0.weight" in str(caught.value)
    assert "unexpected 1: models.Helper.0.weight" in str(caught.value)
    assert "of another shape 1: models.Student.3.bias (7,), expected (3,)" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99, "version": "9.0"}, r"written by lit_distill 9\.0 in format 99.*upgrade"),
        ({"frozen": []}, r"trained with frozen=\[\], here it is frozen=\['Teacher'\]"),
        (None, "not written by DistillModule"),
    ],
)
def test_a_checkpoint_of_another_release_or_another_setting_is_told(tmp_path: Path, change: Any, says: str) -> None:
    path = saved(tmp_path, tiny.module())
    stored = read_checkpoint(path)
    stored["lit_distill"] = None if change is None else {**stored["lit_distill"], **change}
    write_checkpoint(stored, path)
    with pytest.raises(CheckpointError, match=says):
        resumed(tmp_path, tiny.module(), path)


def test_a_moving_teacher_is_exempt_and_its_callback_must_come_along(tmp_path: Path) -> None:
    def module() -> DistillModule:
        return tiny.module(width=8)

    path = saved(tmp_path, module(), callbacks=[EMATeacher()])
    stored = read_checkpoint(path)
    assert "Teacher" not in stored["lit_distill"]["frozen_records"]
    assert "models.Teacher.0.weight" in stored["state_dict"]
    assert resumed(tmp_path, module(), path, callbacks=[EMATeacher()]).global_step == 8
    with pytest.raises(ValueError, match=r"a callback that moves \['Teacher'\], such as EMATeacher: add it"):
        resumed(tmp_path, module(), path)
    judged = module()
    tiny.trainer(tmp_path).validate(judged, tiny.loader(), ckpt_path=path, verbose=False)
    assert torch.equal(judged.models["Teacher"][0].weight, stored["state_dict"]["models.Teacher.0.weight"])  # type: ignore[index]
