"""The one door to what Lightning does not document: nothing else in the package uses a private name of Lightning.

Each function says which name it relies on and why nothing public serves. Lightning may change these names in any minor
release, so pyproject.toml bounds it from above; tests/test_lightning.py checks each function on a real run.

**An optimizer step ends** with the last batch of its window: with every ``accumulate_grad_batches``-th batch of an
epoch, and with the epoch's last batch, however few the window has by then. ``trainer.global_step`` counts it in every
case, also where :class:`lit_distill.callbacks.NonFinite` dropped it (``step_was_dropped``) or fp16's scaler skipped it:
then the weights are what they were. The first section is the only place that decides this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from lightning import LightningModule, Trainer
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.callbacks import ModelPruning, WeightAveraging
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.amp import GradScaler

# ---------------------------------------------------------------- an optimizer step


def ends_step(trainer: Trainer) -> bool:
    """Whether an optimizer step ends with the training batch under way, or ended with the one just done.

    ``FitLoop._should_accumulate``: it alone knows the epoch's last batch where a loader has no length, and the
    strategies that count windows themselves.
    """
    return not trainer.fit_loop._should_accumulate()


def is_between_steps(trainer: Trainer) -> bool:
    """Whether no gradients wait to be added to: at the start of a batch, of a validation batch, or after training.

    ``batch_progress``: a hook at a batch's start gets its number, one in validation gets none of training's.
    """
    done = trainer.fit_loop.epoch_loop.batch_progress.current
    if done.ready == done.completed:
        return ends_step(trainer)
    return done.completed % trainer.accumulate_grad_batches == 0  # another has begun, so it was not the last


def steps_within(trainer: Trainer, batches: int) -> int:
    """How many optimizer steps end within so many batches from the start of an epoch; they may be of several epochs."""
    window, length = trainer.accumulate_grad_batches, trainer.num_training_batches
    if not length or math.isinf(length):
        return batches // window
    epochs, rest = divmod(batches, int(length))
    return epochs * math.ceil(length / window) + rest // window


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs what a module's ``self.log`` gets at this moment.

    ``_batches_that_stepped``: a callback that calls loggers itself, with figures of a step or pictures of a validation,
    adds to the same row only so; ``global_step`` counts one more within ``on_train_batch_end`` and validation.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


# ---------------------------------------------------------------- the place in an epoch, and its loaders


def batches_begun(trainer: Trainer) -> int:
    """Training batches of this epoch that have been fetched, the one under way included.

    ``batch_progress``: it is in every checkpoint, and the only position that is right after a resume.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def batches_done(trainer: Trainer) -> int:
    """Training batches of this epoch whose hooks are over. ``batch_progress``, see :func:`batches_begun`."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def train_loaders(trainer: Trainer) -> list[Any]:
    """Every training loader by itself, also where a module gives several.

    ``_combined_loader``: ``trainer.train_dataloader`` has them nested in the module's own form.
    """
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)


def loaders_cycle(trainer: Trainer) -> bool:
    """Whether a training loader begins again within an epoch that a longer one beside it ends.

    ``CombinedLoader._mode``: there is no public attribute of the mode that it was made with.
    """
    combined = trainer.fit_loop._combined_loader
    return combined is not None and len(combined.flattened) > 1 and combined._mode == "max_size_cycle"


def load_train_data(trainer: Trainer) -> None:
    """Have ``trainer.train_dataloader`` and ``num_training_batches`` in a module's ``setup`` already.

    ``FitLoop.setup_data``: the documented ``estimated_stepping_batches`` does it, but not with ``max_epochs=-1``.
    """
    trainer.fit_loop.setup_data()


def shorten_epoch(trainer: Trainer, batches: int) -> bool:
    """End an epoch after fewer batches than its loader had when it was set up; False where it ends there already.

    ``FitLoop.max_batches``, the fetcher's ``length`` and ``val_check_batch``: Lightning counts a loader once, and would
    otherwise not notice the last batch, nor validate after it.
    """
    loop, interval = trainer.fit_loop, trainer.val_check_interval
    if batches >= loop.max_batches:
        return False
    loop.max_batches = batches
    fetcher = loop._data_fetcher
    if fetcher is not None and fetcher.length is not None:
        fetcher.length = min(fetcher.length, batches)  # it was counted before the checkpoint was loaded
    if isinstance(interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(batches * interval))
    return True


def loader_names(trainer: Trainer) -> list[str]:
    """Names of the validation or test loaders that are evaluated: keys of a dict of them, else their numbers.

    ``_combined_loader``: the public lists of loaders are empty in the loops of other stages.
    """
    combined = _evaluation_loop(trainer)._combined_loader
    if combined is None or combined._mode != "sequential":
        return ["0"]
    given, number = combined.iterables, len(combined.flattened)
    named = isinstance(given, Mapping) and len(given) == number
    return [str(name) for name in (given if named else range(number))]


def _evaluation_loop(trainer: Trainer) -> Any:
    if trainer.state.fn == "fit":
        return trainer.fit_loop.epoch_loop.val_loop
    return trainer.validate_loop if trainer.validating else trainer.test_loop


def loader_under_way(trainer: Trainer) -> int:
    """Which of several validation or test loaders the batch under way is from, by its number; 0 of one.

    ``_results.dataloader_idx``: a subclass of a module may not pass its step's ``dataloader_idx`` on.
    """
    results = trainer._results
    return 0 if results is None or results.dataloader_idx is None else int(results.dataloader_idx)


def validation_interval(trainer: Trainer) -> int | float | None:
    """Batches from one validation to the next, inf for whole epochs of a stream, None where time decides.

    ``val_check_batch``: the argument ``val_check_interval`` may be a share of an epoch.
    """
    return trainer.val_check_batch


# ---------------------------------------------------------------- what a checkpoint says of the loops


def correct_saved_progress(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Have a checkpoint of this moment resumed here: within a validation from its start, between two steps exactly.

    ``checkpoint["loops"]``: Lightning saves its loops' counters as they are, and reads two moments wrongly. A
    validation that is under way counts as finished. A checkpoint at the start of a batch (fetched, no step made of it)
    is taken for one from the end of a step, for which ``_batches_that_stepped`` is raised by one.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch_loop = trainer.fit_loop.epoch_loop
    validation = epoch_loop.val_loop.batch_progress.total
    if trainer.state.stage == "validate" and validation.ready != validation.completed:
        loops["epoch_loop.val_loop.batch_progress"] |= {  # what Lightning takes for a validation to be run as a whole
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
            "is_last_batch": False,
        }
    elif _is_half_begun(epoch_loop.batch_progress.total) and ends_step(trainer):
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def correct_restored_progress(trainer: Trainer) -> None:
    """At the start of training: forget the batch that a checkpoint counts as fetched, and the validation under way.

    ``batch_progress.total``: Lightning sets back the counts of the epoch alone, and by the totals it decides about
    validation and restarts.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    total = epoch_loop.batch_progress.total
    if _is_half_begun(total):
        total.ready -= 1
    epoch_loop.val_loop.batch_progress.total.reset()


def _is_half_begun(total: Any) -> bool:
    """Whether a batch has been fetched that no step has been made of."""
    return bool(total.ready == total.started + 1)


# ---------------------------------------------------------------- a module


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that runs a module, None outside of one.

    ``_trainer``: the property ``trainer`` raises outside of one.
    """
    return module._trainer


def takes_batch_idx(training_step: Callable[..., Any]) -> bool:
    """Whether Lightning calls a bound ``training_step`` with (batch, batch_idx), not with the batch alone.

    ``is_param_in_hook_signature``: the docs do not say by which rule Lightning decides.
    """
    return is_param_in_hook_signature(training_step, "batch_idx", min_args=2)


def gradient_scaler(trainer: Trainer) -> GradScaler | None:
    """What scales the loss under fp16; None in other precisions.

    ``scaler``: an attribute of the precision plugins that have one.
    """
    return getattr(trainer.precision_plugin, "scaler", None)


# ---------------------------------------------------------------- processes


def leave_out_of_ddp(module: LightningModule, names: Iterable[str]) -> None:
    """Have DDP neither register nor broadcast these parameters and buffers of a module.

    ``_ddp_params_and_buffers_to_ignore``: torch's, read from the module that is wrapped; Lightning's DDPStrategy wraps
    the LightningModule itself.
    """
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


def has_communication_hook(trainer: Trainer) -> bool:
    """Whether a DDPStrategy changes gradients on their way between the ranks.

    ``_ddp_comm_hook``: the argument is not kept under a public name.
    """
    return getattr(trainer.strategy, "_ddp_comm_hook", None) is not None


def cluster_environment(trainer: Trainer) -> ClusterEnvironment | None:
    """Where the processes run, such as a ``SLURMEnvironment``.

    ``_accelerator_connector``: the strategy of a single device has none, and a SLURM job may have one device.
    """
    return trainer._accelerator_connector.cluster_environment


def starts_command_again(trainer: Trainer) -> bool:
    """Whether Lightning starts the other processes by the command line of this one.

    ``launcher`` and its class ``_SubprocessScriptLauncher``: a strategy says it nowhere else.
    """
    return isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)


def signal_started_processes(trainer: Trainer, number: int) -> None:
    """Send a POSIX signal to the processes that Lightning started.

    ``launcher.kill``: it alone has their handles.
    """
    launcher = trainer.strategy.launcher
    if launcher is not None and hasattr(launcher, "kill"):
        launcher.kill(number)


# ---------------------------------------------------------------- callbacks that average or prune

AVERAGING_METHODS: Final = ("_swap_models", "_copy_average_to_current")
"""Of ``WeightAveraging``, those that walk the tensors of the module and of its average side by side."""


def average_of(callback: WeightAveraging) -> Any:
    """The averaged copy of the module that ``WeightAveraging`` makes in ``setup``; None before.

    ``_average_model``: the callback gives it out nowhere else.
    """
    return callback._average_model


def pruned_modules(callback: ModelPruning) -> list[nn.Module]:
    """The modules that ``ModelPruning`` was given to prune; empty where it will take all of the module's.

    ``_parameters_to_prune``: the argument is not kept under a public name.
    """
    return [part for part, _ in callback._parameters_to_prune]
