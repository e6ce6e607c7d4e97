"""A cached teacher changes nothing but the time: bit for bit, on one rank and two, and nothing wrong is ever read."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from faults import tiny
from faults.killing import Server, differences, serving
from faults.resume_program import PointsModule, build
from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import EMATeacher, NonFinite, NonFiniteError, StepSeed, TeacherCache
from lit_distill.data import ViewsBatch
from lit_distill.models.identity import state_sha256
from lit_distill.teacher_cache.shards import shard_size


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
    said = (tmp_path / "with" / "log0.txt").read_text()
    assert f"33.3 % of {asked} train samples" in said, "epoch 2 is epoch 0 again"
    assert "66.7 % of 30 val samples" in said
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


def fit(folder: Path, module: DistillModule, *, loader: Any = None, data: Any = None, **more: Any) -> TeacherCache:
    arguments = {key: more.pop(key) for key in ("dtype", "top_k", "max_gb", "models") if key in more}
    cache = TeacherCache(folder=folder / "teachers", **arguments)
    callbacks = [*more.pop("callbacks", []), *([cache] if more.pop("cached", True) else [])]
    loader = loader or tiny.loader()
    given = {"datamodule": data} if data else {"train_dataloaders": loader, "val_dataloaders": loader}
    tiny.trainer(folder, callbacks=callbacks, **more).fit(module, **given)
    return cache


def hits(cache: TeacherCache) -> tuple[int, int]:
    assert cache.counts["train"].asked == 64
    return cache.counts["train"].hits, cache.counts["val"].hits


def student(module: DistillModule) -> str:
    return state_sha256(module.models["Student"].state_dict())


def with_teacher(
    teacher: nn.Module, *, tap: Any = "Teacher", of: Any = "Student", student: nn.Module | None = None
) -> DistillModule:
    torch.manual_seed(1)
    loss = mean_square if isinstance(tap, list) else nn.MSELoss()
    return DistillModule(
        models={"Student": student or tiny.net(), "Teacher": teacher},
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(loss, pair=(of, tap)),
        },
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def mean_square(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a - b).square().mean() for a, b in zip(one, other, strict=True)]).sum()


def net(seed: int = 7, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return tiny.net(width)


def test_a_teacher_whose_signals_are_all_there_is_not_run(tmp_path: Path) -> None:
    calls = {}
    for epochs, found in ((1, 0), (1, 32), (4, 128)):
        teacher = Counted(net())
        cache = fit(tmp_path, with_teacher(teacher), max_epochs=epochs)
        for counts in cache.counts.values():
            assert (counts.hits, counts.asked) == (found, 32 * epochs)
        calls[found] = teacher.calls
    assert calls[128] == calls[32], "before the first step alone"
    assert calls[0] == calls[32] + 2 * len(tiny.loader())


class Frames(nn.Module):
    """Folds frames into the batch, as video networks do: inside, a batch of B is one of 2 B."""

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.inside = nn.Linear(2, 3), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        folded: Tensor = self.inside(self.frame(x.view(-1, 2)))
        return folded.view(-1, 2, 3).mean(1)


class FramesFirst(Frames):
    """The other way round: rows of a sample do not stand together."""

    def forward(self, x: Tensor) -> Tensor:
        folded: Tensor = self.inside(self.frame(x.view(-1, 2, 2).transpose(0, 1).reshape(-1, 2)))
        return folded.view(2, -1, 3).mean(0)


class BatchMean(nn.Linear):
    """What it gives for a sample depends on the others."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


@pytest.mark.parametrize(
    ("make", "of", "tap"),
    [
        (net, "Student.3:input", "Teacher.3:input"),
        (net, ["Student", "Student.0"], ["Teacher", "Teacher.0"]),
        (Frames, "Student.inside", "Teacher.inside"),
        (FramesFirst, "Student.inside", "Teacher.inside"),
        (BatchMean, "Student", "Teacher"),
    ],
    ids=["an input", "a list", "frames", "frames first", "batch statistics"],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_signal_is_read_back(tmp_path: Path, make: Callable[[], nn.Module], of: Any, tap: Any, dtype: Any) -> None:
    found = {}
    for name, cached in (("without", False), ("empty", True), ("full", True)):
        torch.manual_seed(7)
        module = with_teacher(make(), of=of, tap=tap, student=make())
        cache = fit(tmp_path, module, dtype=dtype, cached=cached)
        found[name] = student(module), cache
    assert hits(found["empty"][1]) == (32, 32)
    assert hits(found["full"][1]) == (64, 64)
    # rounded values are used from the first epoch on: training does not depend on what the cache holds
    assert found["empty"][0] == found["full"][0]
    assert (found["without"][0] == found["full"][0]) == (dtype == "float32")


class Scaled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
        return 1.001 * x


def test_nothing_is_read_that_another_network_code_precision_or_batch_size_gave(tmp_path: Path) -> None:
    assert hits(fit(tmp_path, with_teacher(net()))) == (32, 32)
    others: dict[str, dict[str, Any]] = {
        "weights": {"module": with_teacher(net(seed=8))},
        "code": {"module": with_teacher(Scaled(*net()))},
        "signal": {"module": with_teacher(net(), tap="Teacher.2", of="Student.2")},
        "precision": {"module": with_teacher(net()), "precision": "bf16-mixed"},
        "batch size": {"module": with_teacher(net()), "loader": tiny.loader(batch_size=16)},
        "rounding": {"module": with_teacher(net()), "dtype": "float16"},
        "logits": {"module": with_teacher(net()), "top_k": 2},
    }
    for name, other in others.items():
        assert hits(fit(tmp_path, **other)) == (32, 32), f"another {name}"
    x, y = (torch.cat(parts) for parts in zip(*tiny.loader(), strict=True))
    moved = DataLoader(TensorDataset(torch.where(x == x[3, 1], x + 1e-6, x), y), batch_size=8)
    assert hits(fit(tmp_path, with_teacher(net()), loader=moved)) == (24 + 32, 24 + 32), "one number of one sample"
    assert hits(fit(tmp_path, with_teacher(net()))) == (64, 64)


class Meddler(Callback):
    """Changes batches after they were keyed."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch[0].mul_(0.5 + trainer.current_epoch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        batch[0].add_(trainer.current_epoch)


def test_a_batch_changed_in_place_is_not_taken_for_what_the_workers_read(tmp_path: Path) -> None:
    figures = []
    for cached in (False, True):
        data = PointsModule(workers=0, mixup=True, views=1)
        module = build("kd", "sgd")
        module.folder = tmp_path
        cache = fit(tmp_path, module, data=data, cached=cached, callbacks=[StepSeed(), Meddler()], max_epochs=3)
        figures.append((student(module), {n: float(v) for n, v in module.trainer.callback_metrics.items()}))
    assert figures[0] == figures[1]
    assert cache.counts["train"].hits == cache.counts["val"].hits == 0
    assert cache.counts["train"].asked == 84


class TwoViews(PointsModule):
    """Two clips of each video in evaluation."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        inputs, target, index = super().on_after_batch_transfer(batch, dataloader_idx)
        if self.trainer is None or not self.trainer.validating:
            return inputs, target, index
        return ViewsBatch(torch.stack([inputs, inputs.flip(-1)], 1), target, index)


def test_averages_over_views_are_read_back(tmp_path: Path) -> None:
    figures = []
    for cached in (False, True):
        built = build("kd", "sgd")
        module = DistillModule(
            models=built.named, frozen=["Teacher"], losses=built.composer.terms, optimizer=torch.optim.SGD
        )
        data = TwoViews(workers=0, mixup=False, views=1)
        cache = fit(tmp_path, module, data=data, cached=cached, callbacks=[StepSeed()], max_epochs=3)
        figures.append({n: float(v) for n, v in module.trainer.callback_metrics.items()})
    assert figures[0] == figures[1]
    assert "val/kd" in figures[0]
    assert (cache.counts["val"].hits, cache.counts["val"].asked) == (20, 30)


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(3)


class Counting(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


class NumPy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(np.random.rand())  # noqa: NPY002 - as users' code draws


class Gram(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.T @ out


@pytest.mark.parametrize(
    ("teacher", "of", "tap", "said"),
    [
        (Noisy(4, 3), "Student", "Teacher", "Teacher draws random numbers in eval mode"),
        (Counting(4, 3), "Student", "Teacher", "another one when the same batch is given again"),
        (NumPy(4, 3), "Student", "Teacher", "Teacher draws random numbers in eval mode"),
        (Gram(4, 3), "Student", "Teacher", "only signals with rows for each sample can be kept"),
    ],
    ids=["noise", "memory", "NumPy's noise", "no rows"],
)
def test_a_signal_that_is_no_function_of_its_sample_is_refused(
    tmp_path: Path, teacher: nn.Module, of: str, tap: str, said: str
) -> None:
    module = with_teacher(teacher, of=of, tap=tap)
    module.composer.terms["mse"].loss = lambda one, other: (one.mean() - other.mean()).square()
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, module)


def test_new_views_in_every_epoch_are_neither_written_nor_rounded(tmp_path: Path) -> None:
    figures = []
    for cached in (False, True):
        module = build("kd", "sgd")
        module.folder = tmp_path
        data = PointsModule(workers=0, mixup=True, views=None)
        cache = fit(tmp_path, module, data=data, cached=cached, dtype="float16", callbacks=[StepSeed()], max_epochs=3)
        figures.append(student(module))
    assert figures[0] == figures[1], "training is that without a cache"
    assert cache.counts["train"].asked == 0
    assert (cache.counts["val"].hits, cache.counts["val"].asked) == (20, 30)
    rows = sum(SHARD_HEAD.unpack(path.read_bytes()[: SHARD_HEAD.size])[1] for path in shards(tmp_path))
    assert rows == 10, "those of validation"


SHARD_HEAD = struct.Struct("<8sQ")


def shards(folder: Path) -> list[Path]:
    return list((folder / "teachers").rglob("*.shard"))


class Pair(nn.Linear):
    """Returns no tensor."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.inside, self.calls = nn.Identity(), 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.calls += 1
        out = self.inside(super().forward(x))
        return out, out


def test_a_model_that_returns_no_tensor_is_tried_once(tmp_path: Path) -> None:
    calls = []
    for epochs in (1, 3):
        teacher = Pair()
        with pytest.warns(UserWarning, match="of Teacher are left out: its output is a tuple"):
            fit(tmp_path / str(epochs), with_teacher(teacher, tap="Teacher.inside"), max_epochs=epochs)
        calls.append(teacher.calls)
    assert calls[1] - calls[0] == 2 * len(tiny.loader()), "validation runs it as without a cache, and no oftener"


def test_a_folder_that_cannot_be_written_is_told_and_changes_nothing(tmp_path: Path) -> None:
    plain, module = with_teacher(net()), with_teacher(net())
    fit(tmp_path, plain, cached=False)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"takes no more: .*file.*teacher_cache\.folder=<folder>"):
        cache = fit(tmp_path / "file", module, default_root_dir=tmp_path)
    assert hits(cache) == (0, 0)
    assert student(module) == student(plain)


def with_two_teachers() -> DistillModule:
    torch.manual_seed(1)
    return DistillModule(
        models={"Student": tiny.net(), "Mean": tiny.net(), "Teacher": net()},
        frozen=["Mean", "Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mean": LossTerm(nn.MSELoss(), pair=("Student", "Mean")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher")),
        },
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )


def test_of_all_frozen_models_those_that_stand_still_are_served(tmp_path: Path) -> None:
    plain, module = with_two_teachers(), with_two_teachers()
    fit(tmp_path, plain, cached=False, callbacks=[EMATeacher(teacher="Mean")])
    assert hits(fit(tmp_path, module, callbacks=[EMATeacher(teacher="Mean")])) == (32, 32)
    assert student(module) == student(plain)
    said = r"teacher_cache\.models: Mean moves in every step .*: name of \['Teacher'\], or leave it null"
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, with_two_teachers(), models=["Mean"], callbacks=[EMATeacher(teacher="Mean")])


def test_models_that_learn_or_move_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"all of \['Teacher'\] move in every step \(EMATeacher\)"):
        fit(tmp_path, with_teacher(tiny.net()), callbacks=[EMATeacher()])
    with pytest.raises(ValueError, match=r"teacher_cache\.models is empty"):
        fit(tmp_path, with_teacher(net()), models=[])
    with pytest.raises(ValueError, match=r"Student is not frozen.* the frozen models are \['Teacher'\]"):
        fit(tmp_path, with_teacher(net()), models=["Student"])
    peers = tiny.module(frozen=[])
    with pytest.raises(ValueError, match=r"none is: set teacher=frozen"):
        fit(tmp_path, peers)
    for arguments, said in (({"max_gb": 0}, "max_gb"), ({"dtype": "int8"}, "dtype"), ({"top_k": 0}, "top_k")):
        with pytest.raises(ValueError, match=f"teacher_cache.{said}"):
            TeacherCache(**arguments)
    with pytest.raises(ValueError, match=r"top_k must be from 1 to below the 3 classes of 'Teacher', got 3"):
        fit(tmp_path, with_teacher(net()), top_k=3)
    with pytest.raises(ValueError, match=r"'Teacher' has values up to .*, too large for float16"):
        fit(tmp_path, with_teacher(nn.Sequential(net(), Big())), dtype="float16")


class Big(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1e6


@pytest.mark.filterwarnings("ignore:the frozen Teacher is no better than chance")
def test_a_full_cache_is_told_of_beforehand_and_then_and_changes_nothing(tmp_path: Path) -> None:
    plain, module = with_teacher(net()), with_teacher(net())
    fit(tmp_path, plain, cached=False, loader=tiny.loader(1600, 16), max_epochs=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cache = fit(tmp_path, module, max_gb=20e-6, loader=tiny.loader(1600, 16), max_epochs=3)
    said = [str(warning.message) for warning in told if "teacher" in str(warning.message)]
    assert ["takes no more: its limit of 2e-05 GB is reached, 624 samples" in text for text in said] == [True]
    size = sum(path.stat().st_size for path in (tmp_path / "teachers").rglob("*.shard"))
    assert 0 < size <= 20e3
    assert cache.counts["train"].hits == 2 * 624
    assert student(module) == student(plain)
    with pytest.warns(UserWarning, match=r"a view of a sample takes 1.2e-05 MB \(Teacher 1.2e-05 MB\), 1 views of 32"):
        fit(tmp_path / "other", with_teacher(net()), max_gb=100e-9)


def test_what_is_not_finite_is_named_each_time_and_never_kept(tmp_path: Path) -> None:
    x, y = (torch.cat(parts) for parts in zip(*tiny.loader(), strict=True))
    x[5] = 3e38
    for _ in range(2):
        module = with_teacher(nn.Sequential(net(), Big()), student=nn.Sequential(Squash(), nn.Linear(4, 3)))
        with pytest.raises(NonFiniteError, match=r"frozen model 'Teacher' gave .* in 'Teacher', row 5 of the batch"):
            fit(tmp_path, module, loader=DataLoader(TensorDataset(x, y), batch_size=8), callbacks=[NonFinite()])
    (shard,) = (tmp_path / "teachers").rglob("*.shard")
    assert shard.stat().st_size == shard_size(7, 12), "the other samples of its batch alone"


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class Writer(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            pl_module.models["Teacher"][0].weight.data.add_(1e-3)


def test_what_a_changed_teacher_gave_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="frozen, but its values have changed since"):
        fit(tmp_path, with_teacher(net()), callbacks=[Writer()])
    assert not list((tmp_path / "teachers").rglob("*.shard"))


@pytest.mark.parametrize("damage", ["cut", "row", "key", "head"])
def test_a_damaged_shard_is_made_anew(tmp_path: Path, damage: str) -> None:
    plain = with_teacher(net())
    fit(tmp_path, plain, cached=False)
    fit(tmp_path, with_teacher(net()), max_epochs=1)
    (shard,) = (tmp_path / "teachers").rglob("*.shard")
    content = bytearray(shard.read_bytes())
    content[{"cut": 0, "row": -1, "key": 40, "head": 2}[damage]] ^= 16 if damage != "cut" else 0
    shard.write_bytes(content[:-5] if damage == "cut" else content)
    module = with_teacher(net())
    with pytest.warns(UserWarning, match=r"is damaged .*: it is made again"):
        cache = fit(tmp_path, module)
    assert student(module) == student(plain)
    assert not shard.exists()
    assert cache.counts["train"].hits >= 32
    assert hits(fit(tmp_path, with_teacher(net()))) == (64, 64)
