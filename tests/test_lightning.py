"""What the door to Lightning's undocumented names relies on, on real runs, and that there is no other door.

A test that fails here after an upgrade names what the release changed: adapt lit_distill/_lightning.py alone.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import lightning
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelPruning, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import CombinedLoader
from packaging.requirements import Requirement
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_distill import _lightning
from lit_distill._lightning import (
    AVERAGING_METHODS,
    average_of,
    batches_begun,
    batches_done,
    cluster_environment,
    correct_restored_progress,
    correct_saved_progress,
    ends_step,
    gradient_scaler,
    has_communication_hook,
    is_between_steps,
    leave_out_of_ddp,
    load_train_data,
    loader_names,
    loader_under_way,
    loaders_cycle,
    logged_step,
    pruned_modules,
    shorten_epoch,
    signal_started_processes,
    starts_command_again,
    steps_within,
    takes_batch_idx,
    train_loaders,
    trainer_of,
    validation_interval,
)

BATCHES, WINDOW = 5, 2  # of an epoch: two whole windows, and one of a single batch


@contextmanager
def relying_on(function: Callable[..., Any]) -> Iterator[None]:
    """Turn what goes wrong within into a failure that says which function of the door is to be adapted."""
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"lightning {lightning.__version__} is no longer as lit_distill._lightning.{function.__name__} expects "
            f"({type(error).__name__}: {error}): adapt it, or bound lightning in pyproject.toml\n{function.__doc__}"
        )


class Net(LightningModule):
    """One weight, and a Linear that no loss reaches; logs its loss in every step and validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.weight * 1.0
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset[Tensor]):
    """Samples of which nobody knows how many there are."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(float(BATCHES))


class Steps(Logger):
    """Notes under which step each name was logged."""

    name, version = "steps", 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen += [(name, step or 0) for name in metrics if name != "epoch"]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class At(Callback):
    """Calls a function at each of some hooks, and keeps (hook, what it gave)."""

    HOOKS: ClassVar = (
        "setup", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end",
        "on_validation_batch_start", "on_train_end",
    )  # fmt: skip

    def __init__(self, **functions: Callable[[Trainer], Any]) -> None:
        self.seen: list[tuple[str, Any]] = []
        for hook, function in functions.items():
            assert hook in self.HOOKS
            setattr(self, hook, self._calling(hook, function))

    def _calling(self, hook: str, function: Callable[[Trainer], Any]) -> Callable[..., None]:
        return lambda trainer, *_, **__: self.seen.append((hook, function(trainer)))

    def of(self, hook: str) -> list[Any]:
        return [value for name, value in self.seen if name == hook]


def batches(count: int = BATCHES) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(count))), batch_size=1)


def quiet(tmp_path: Path, *callbacks: Callback, **more: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **{**defaults, **more})


# ---------------------------------------------------------------- an optimizer step


@pytest.mark.parametrize("data", [batches(), DataLoader(Stream(), batch_size=1)], ids=["a length", "a stream"])
def test_a_step_ends_with_its_window_and_with_the_epoch(data: DataLoader[Any], tmp_path: Path) -> None:
    with relying_on(ends_step):
        seen = At(on_train_batch_start=ends_step, on_train_batch_end=lambda t: (ends_step(t), t.global_step))
        quiet(tmp_path, seen, max_epochs=2, accumulate_grad_batches=WINDOW).fit(Net(), data)
        known = data.dataset.__class__ is not Stream
        ends = [False, True, False, True, known]  # the end of a stream is known only once its next batch was asked for
        assert seen.of("on_train_batch_start")[: BATCHES - 1] == ends[: BATCHES - 1]
        ends[-1] = True
        assert [end for end, _ in seen.of("on_train_batch_end")] == ends * 2
        assert [step for _, step in seen.of("on_train_batch_end")] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]


def test_between_steps_no_gradients_wait(tmp_path: Path) -> None:
    with relying_on(is_between_steps):
        seen = At(
            on_train_batch_start=is_between_steps,
            on_validation_batch_start=is_between_steps,
            on_train_end=is_between_steps,
        )
        trainer = quiet(tmp_path, seen, accumulate_grad_batches=WINDOW, val_check_interval=1)
        trainer.fit(Net(), batches(), batches(1))
        assert seen.of("on_train_batch_start") == [True, False, True, False, True]
        assert seen.of("on_validation_batch_start") == [False, True, False, True, True]
        assert seen.of("on_train_end") == [True]


def test_steps_within_counts_what_the_trainer_makes(tmp_path: Path) -> None:
    with relying_on(steps_within):
        made = [0]
        seen = At(on_train_batch_end=lambda t: made.append(t.global_step))
        trainer = quiet(tmp_path, seen, max_epochs=2, accumulate_grad_batches=WINDOW)
        trainer.fit(Net(), batches())
        within = [steps_within(trainer, count) for count in range(2 * BATCHES + 1)]
        assert within == made


def test_logged_step_is_that_of_lightnings_own_rows(tmp_path: Path) -> None:
    with relying_on(logged_step):
        rows, mine = Steps(), At(on_train_batch_end=logged_step, on_validation_batch_start=logged_step)
        trainer = quiet(tmp_path, mine, logger=rows, log_every_n_steps=1, accumulate_grad_batches=WINDOW)
        trainer.fit(Net(), batches(), batches(1))
        steps = [step for name, step in rows.seen if name == "train/loss"]
        assert steps == [0, 1, 2]
        assert mine.of("on_train_batch_end") == [0, 0, 1, 1, 2]
        assert mine.of("on_validation_batch_start") == [step for name, step in rows.seen if name == "val/loss"] == [2]


# ---------------------------------------------------------------- the place in an epoch, and its loaders


def test_the_place_in_an_epoch(tmp_path: Path) -> None:
    with relying_on(batches_begun):
        seen = At(
            on_train_batch_start=lambda t: (batches_begun(t), batches_done(t)),
            on_train_batch_end=lambda t: (batches_begun(t), batches_done(t)),
            on_validation_batch_start=lambda t: (batches_begun(t), batches_done(t)),
        )
        quiet(tmp_path, seen, max_epochs=2, limit_train_batches=2).fit(Net(), batches(), batches(1))
        hooks = [(1, 0), (1, 0), (2, 1), (2, 1), (2, 2)]  # start and end of each batch, validation
        assert [place for _, place in seen.seen] == hooks * 2


def test_the_place_is_restored_with_a_checkpoint(tmp_path: Path) -> None:
    with relying_on(batches_done):
        path = tmp_path / "a.ckpt"
        first = At(on_train_batch_end=lambda t: t.save_checkpoint(path) if batches_begun(t) == 3 else None)
        quiet(tmp_path, first).fit(Net(), batches())
        seen = At(on_train_start=batches_begun, on_train_batch_start=lambda t: (batches_begun(t), batches_done(t)))
        quiet(tmp_path, seen).fit(Net(), batches(), ckpt_path=path, weights_only=True)
        assert seen.of("on_train_batch_start")[0] == (4, 3)


@pytest.mark.parametrize(
    ("mode", "count", "cycles"), [("max_size_cycle", 4, True), ("min_size", 2, False), (None, 2, False)]
)
def test_every_loader_is_found_and_whether_it_begins_again(mode: Any, count: int, cycles: bool, tmp_path: Path) -> None:
    with relying_on(loaders_cycle):
        short, long = batches(2), batches(4)
        data: Any = short if mode is None else CombinedLoader({"a": short, "b": {"c": long}}, mode)
        seen = At(
            setup=lambda t: (train_loaders(t), loaders_cycle(t)),
            on_train_batch_start=lambda t: ([len(each) for each in train_loaders(t)], loaders_cycle(t)),
        )
        quiet(tmp_path, seen).fit(Net(), data)
        assert seen.of("setup") == [([], False)]
        assert seen.of("on_train_batch_start") == [([2] if mode is None else [2, 4], cycles)] * count


def test_loaders_of_validation_have_names_and_numbers(tmp_path: Path) -> None:
    """Also where a step takes no number, in a validation within training and in the one before it."""

    class Several(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    with relying_on(loader_names):
        for given, names in ((batches(1), ["0"]), ([batches(1)] * 2, ["0", "1"]), ({"a": batches(1)}, ["a"])):
            seen = At(on_validation_batch_start=lambda t: (loader_names(t), loader_under_way(t)))
            for run in ("fit", "validate"):
                trainer = quiet(tmp_path, seen, num_sanity_val_steps=1)
                if run == "fit":
                    trainer.fit(Several(), batches(1), given)
                else:
                    trainer.validate(Several(), given, verbose=False)
            assert seen.of("on_validation_batch_start") == [(names, number) for number in range(len(names))] * 3


def test_training_data_is_loaded_in_setup_for_any_number_of_epochs(tmp_path: Path) -> None:
    class Ahead(Net):
        found: Any = None

        def setup(self, stage: str) -> None:
            assert self.trainer.train_dataloader is None
            load_train_data(self.trainer)
            self.found = self.trainer.train_dataloader, self.trainer.num_training_batches

    with relying_on(load_train_data):
        model, data = Ahead(), batches()
        quiet(tmp_path, max_epochs=-1, max_steps=1).fit(model, data)
        assert model.found[0].dataset is data.dataset
        assert model.found[1] == BATCHES


@pytest.mark.parametrize("interval", [1.0, 0.5, 3])
def test_a_shortened_epoch_ends_and_validates(interval: float | int, tmp_path: Path) -> None:
    with relying_on(shorten_epoch):
        seen = At(
            on_train_epoch_start=lambda t: shorten_epoch(t, BATCHES) or shorten_epoch(t, 3),
            on_train_batch_start=lambda t: t.is_last_batch,
            on_validation_batch_start=batches_done,
        )
        trainer = quiet(tmp_path, seen, val_check_interval=interval)
        trainer.fit(Net(), batches(), batches(1))
        assert seen.of("on_train_epoch_start") == [True], "not for what it has anyway"
        assert seen.of("on_train_batch_start") == [False, False, True]
        assert seen.of("on_validation_batch_start") == ([1, 2, 3] if interval == 0.5 else [3])
        assert trainer.num_training_batches == 3


@pytest.mark.parametrize(
    ("interval", "data", "expected"),
    [
        (0.5, batches(4), 2),
        (1.0, batches(4), 4),
        (3, batches(4), 3),
        (1.0, DataLoader(Stream(), batch_size=1), float("inf")),
        ("00:01:00:00", batches(4), None),
    ],
)
def test_the_interval_of_validations_in_batches(interval: Any, data: Any, expected: Any, tmp_path: Path) -> None:
    with relying_on(validation_interval):
        seen = At(on_train_batch_start=validation_interval)
        quiet(tmp_path, seen, val_check_interval=interval).fit(Net(), data, batches(1))
        assert set(seen.of("on_train_batch_start")) == {expected}


# ---------------------------------------------------------------- what a checkpoint says of the loops


class Corrected(Callback):
    """The two corrections, as ExactResume makes them, and nothing else of it."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        correct_saved_progress(trainer, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        correct_restored_progress(trainer)


class SaveAt(Callback):
    """Saves a checkpoint at one batch's start, in training or in validation."""

    def __init__(self, path: Path, stage: str, step: int, batch_idx: int) -> None:
        self.path, self.place = path, (stage, step, batch_idx)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.place == ("train", trainer.global_step, batch_idx):
            trainer.save_checkpoint(self.path)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.place == ("val", trainer.global_step, batch_idx):
            trainer.save_checkpoint(self.path)


def resumed(tmp_path: Path, stage: str, step: int, batch_idx: int, **more: Any) -> list[Any]:
    """The steps of the validation batches, and those of the rows, of a run that is resumed from such a place."""
    path, options = tmp_path / "a.ckpt", {"max_epochs": 2, "log_every_n_steps": 1, **more}
    quiet(tmp_path, Corrected(), SaveAt(path, stage, step, batch_idx), **options).fit(Net(), batches(), batches(3))
    seen, rows = At(on_validation_batch_start=lambda t: t.global_step), Steps()
    trainer = quiet(tmp_path, Corrected(), seen, logger=rows, **options)
    trainer.fit(Net(), batches(), batches(3), ckpt_path=path, weights_only=True)
    return [seen.of("on_validation_batch_start"), [step for name, step in rows.seen if name == "train/loss"]]


def test_a_checkpoint_between_two_steps_is_resumed_at_its_step(tmp_path: Path) -> None:
    with relying_on(correct_saved_progress):
        assert resumed(tmp_path, "train", 2, 2) == [[5, 5, 5, 10, 10, 10], [2, 3, 4, 5, 6, 7, 8, 9]]


def test_a_checkpoint_within_a_validation_is_resumed_at_its_start(tmp_path: Path) -> None:
    with relying_on(correct_saved_progress):
        assert resumed(tmp_path, "val", 5, 1) == [[5, 5, 5, 10, 10, 10], [5, 6, 7, 8, 9]]


def test_validations_by_batches_of_the_whole_run_stay_where_they_are(tmp_path: Path) -> None:
    with relying_on(correct_restored_progress):
        found = resumed(tmp_path, "train", 4, 4, val_check_interval=3, check_val_every_n_epoch=None)
        assert found[0] == [6, 6, 6, 9, 9, 9]


# ---------------------------------------------------------------- a module


def test_a_modules_trainer_is_none_outside_of_one(tmp_path: Path) -> None:
    with relying_on(trainer_of):
        model = Net()
        assert trainer_of(model) is None
        seen = At(on_train_start=lambda t: trainer_of(model) is t)
        quiet(tmp_path, seen).fit(model, batches(1))
        assert seen.of("on_train_start") == [True]


def test_a_training_step_gets_what_the_door_says(tmp_path: Path) -> None:
    class One(Net):
        got: Any = None

        def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
            self.got = (batch,)
            return self.weight * 1.0

    class Two(One):
        def training_step(self, b: Any, number: int) -> Tensor:  # type: ignore[override]
            self.got = (b, number)
            return self.weight * 1.0

    class Any_(One):
        def training_step(self, *args: Any) -> Tensor:
            self.got = args
            return self.weight * 1.0

    with relying_on(takes_batch_idx):
        for kind in (One, Two, Any_):
            model = kind()
            quiet(tmp_path).fit(model, batches(1))
            if kind is not Any_:  # Lightning gives both by name, which *args does not take
                assert takes_batch_idx(model.training_step) == (len(model.got) == 2)
            else:
                assert takes_batch_idx(model.training_step)


def test_the_scaler_of_the_loss(tmp_path: Path) -> None:
    with relying_on(gradient_scaler):
        scaler = torch.amp.GradScaler("cpu")
        seen = At(on_train_batch_start=gradient_scaler)
        quiet(tmp_path, seen, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(Net(), batches(1))
        quiet(tmp_path, seen).fit(Net(), batches(1))
        assert seen.of("on_train_batch_start") == [scaler, None]


# ---------------------------------------------------------------- processes


@pytest.fixture
def own_process_group() -> Iterator[None]:
    """A group that a test makes in this process, and the addresses in its environment, go with it."""
    with mock.patch.dict(os.environ):
        yield
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("own_process_group")
def test_what_is_left_out_of_ddp_is_known_to_torch(tmp_path: Path) -> None:
    with relying_on(leave_out_of_ddp):
        model = Net()
        leave_out_of_ddp(model, ["frozen.weight", "frozen.bias"])
        seen = At(on_train_start=lambda t: t.strategy.model)
        quiet(tmp_path, seen, strategy="ddp", devices=1).fit(model, batches(1))
        (wrapped,) = seen.of("on_train_start")
        assert isinstance(wrapped, DistributedDataParallel)
        assert wrapped.module is model
        assert wrapped.parameters_to_ignore == {"frozen.weight", "frozen.bias"}


def test_a_hook_on_the_ranks_messages_is_seen(tmp_path: Path) -> None:
    with relying_on(has_communication_hook):
        plain, hooked = DDPStrategy(), DDPStrategy(ddp_comm_hook=lambda state, bucket: None)
        found = [has_communication_hook(quiet(tmp_path, strategy=each, devices=1)) for each in (plain, hooked, "auto")]
        assert found == [False, True, False]


def test_what_averages_and_prunes_is_found(tmp_path: Path) -> None:
    callback, net = WeightAveraging(), Net()
    with relying_on(average_of):
        assert average_of(callback) is None
        quiet(tmp_path, callback).fit(net, batches())
        assert average_of(callback).module.state_dict().keys() == net.state_dict().keys()
        assert all(callable(getattr(callback, name)) for name in AVERAGING_METHODS)
    with relying_on(pruned_modules):
        layer = nn.Linear(2, 2)
        assert pruned_modules(ModelPruning("l1_unstructured")) == []
        assert pruned_modules(ModelPruning("l1_unstructured", parameters_to_prune=[(layer, "weight")])) == [layer]


def test_the_environment_of_a_single_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with relying_on(cluster_environment):
        slurm, seen = SLURMEnvironment(auto_requeue=False), At(on_train_start=cluster_environment)
        quiet(tmp_path, seen, plugins=[slurm]).fit(Net(), batches(1))
        assert seen.of("on_train_start") == [slurm]


def test_who_starts_the_other_processes_and_signals_them(tmp_path: Path) -> None:
    with relying_on(starts_command_again):
        several = quiet(tmp_path, strategy="ddp", devices=2)
        assert starts_command_again(several)
        assert not starts_command_again(quiet(tmp_path))
        assert not starts_command_again(quiet(tmp_path, strategy="ddp_spawn", devices=2))
    with relying_on(signal_started_processes):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        several.strategy.launcher.procs = [child]  # type: ignore[union-attr]
        signal_started_processes(several, signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
        signal_started_processes(quiet(tmp_path), signal.SIGTERM)  # started none


# ---------------------------------------------------------------- the only door

SOURCE = Path(_lightning.__file__).parent
DOOR = Path(_lightning.__file__).name
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
UNDOCUMENTED = {  # names without an underscore that Lightning's documentation does not have
    "fit_loop", "epoch_loop", "val_loop", "validate_loop", "batch_progress", "epoch_progress", "optim_progress",
    "val_check_batch", "max_batches", "setup_data", "launcher", "scaler", "signature_utils", "states",
}  # fmt: skip


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(tree: ast.AST) -> set[str]:
    """Private names that a file defines: functions, classes, attributes that it sets, variables, slots."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Constant(value=str(name)):  # __slots__
                names.add(name)
    return set(filter(_is_private, names))


@cache
def _lightnings() -> set[str]:
    """Private names of Lightning, without those that torch's modules and tensors have as well."""
    names: set[str] = set()
    root = Path(lightning.__file__).parent
    for file in (*root.glob("pytorch/**/*.py"), *root.glob("fabric/**/*.py")):
        names |= _defined(ast.parse(file.read_text(encoding="utf-8")))
    assert {"_should_accumulate", "_trainer", "_data_fetcher"} <= names, "is this how Lightning's source is read?"
    return {name for name in names if not hasattr(nn.Identity(), name) and not hasattr(Tensor, name)}


def _uses(tree: ast.AST, lightnings: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a file that only the door may use."""
    own = _defined(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if name in UNDOCUMENTED or (name in lightnings and name not in own):
                yield node.lineno, name
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "lightning":
                names = {*module.split("."), *(alias.name for alias in node.names)}
                yield from ((node.lineno, name) for name in sorted(names) if _is_private(name) or name in UNDOCUMENTED)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=name), *_]):
                if name in lightnings or name in UNDOCUMENTED:
                    yield node.lineno, str(name)
            case ast.Subscript(slice=ast.Constant(value=name)) if name in lightnings or name in UNDOCUMENTED:
                yield node.lineno, str(name)


def test_nothing_else_uses_a_private_name_of_lightning() -> None:
    lightnings, found = _lightnings(), []
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name != DOOR:
            uses = _uses(ast.parse(file.read_text(encoding="utf-8")), lightnings)
            found += [f"{file.relative_to(SOURCE)}:{line}: {name}" for line, name in uses]
    assert not found, f"private or undocumented names of Lightning belong into {DOOR}, with their reason: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "trainer.fit_loop.max_epochs = 3",
        "trainer._logger_connector.reset_results()",
        "from lightning.pytorch.trainer.states import TrainerFn",
        "from lightning.pytorch.loops import _TrainingEpochLoop",
        "getattr(trainer, '_accelerator_connector')",
        "checkpoint['loops']['epoch_loop.state_dict']['_batches_that_stepped'] -= 1",
        "self._save_checkpoint(trainer, path)",
    ],
)
def test_what_the_walk_finds(line: str) -> None:
    assert list(_uses(ast.parse(line), _lightnings()))


def test_the_door_gives_a_reason_for_each_function() -> None:
    functions = [
        node for node in ast.parse(Path(_lightning.__file__).read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    tested = Path(__file__).read_text()
    for function in functions:
        if not _is_private(function.name):
            assert ast.get_docstring(function), function.name
            assert f"{function.name}," in tested, f"no test of {function.name}"


def test_lightning_is_bounded_from_above() -> None:
    core = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    required = next(each for each in map(Requirement, core) if each.name == "lightning")
    assert any(bound.operator == "<" for bound in required.specifier)
    assert required.specifier.contains(lightning.__version__)
