"""No step that is not finite reaches the weights: found after backward, agreed on by all ranks, named, dropped."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Literal, TypeAlias

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_distill._lightning import batches_begun, gradient_scaler, has_communication_hook
from lit_distill._module.kept_buffers import KeptBuffers
from lit_distill._module.window import BatchOfStep, DecidedStep, SampleNames, StepWindow
from lit_distill._screen import few
from lit_distill.losses._numerics import values_unchecked

Policy: TypeAlias = Literal["raise", "skip"]

_TAKES_FOUND_INF = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class NonFiniteError(RuntimeError):
    """A step, its loss or its gradient, was not finite; nothing of it was applied."""


class NonFinite(Callback):
    """Keeps steps whose loss or gradient is NaN or infinite away from the weights, on all ranks at once.

    Once a step, after backward and before clipping and the optimizer, one norm over all gradients is looked at. Under
    DDP the gradients are already averages over the ranks, and a loss that is not finite is made to show in the gradient
    of one small parameter before the averaging: so all ranks see the same without another message. Other strategies
    than plain DDP get an all-reduce of one number. Only a step that failed exchanges its details.

    Of such a step nothing stays: gradients are dropped, so weights and the optimizer's state are untouched, and buffers
    of at most 65,536 elements (BatchNorm's statistics) are put back as they were before it; with gradient accumulation
    that is the whole window. Schedules are functions of the position in the training and go on. Under fp16 the gradient
    scaler's own skips are no failures, as long as its scale holds; a loss that is not finite is one.

    The message names the terms with their pairs, the signals, a frozen model that gave them, the samples, the rank, and
    if the losses were finite the parameters whose gradients were not. Within training steps the losses themselves
    do not look (see :mod:`lit_distill.losses`), so a CPU and an accelerator behave alike. A validation figure that is
    not finite is a warning.

    **On an accelerator** whose optimizer can be asked there to leave a step out (``fused=True`` of SGD, Adam, AdamW and
    Adagrad), nothing waits for the device: such a step is left out by the optimizer, the buffers and the log on the
    device, and reported one optimizer step later, by its terms and samples alone, as its signals are gone by then.
    Under fp16's scaler, and beside a callback that averages weights, it is looked at at once.

    It serves any LightningModule with automatic optimization; a :class:`lit_distill.DistillModule` tells more.

    Args:
        policy: ``"raise"`` :class:`NonFiniteError` on every rank, or ``"skip"`` the step with a warning.
        max_skips: how many steps of a run may be skipped; the next one raises. The count is logged as
            ``train/skipped_steps`` and kept in the checkpoint.
        min_scale: a gradient scaler whose scale fell below it while gradients still overflow is a failure.

    Raises:
        ValueError: an unknown policy or a limit that is none.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[NonFinite(policy="skip", max_skips=3)], logger=False, accelerator="cpu")
    """

    def __init__(self, *, policy: Policy = "raise", max_skips: int = 10, min_scale: float = 1.0) -> None:
        if policy not in ("raise", "skip"):
            raise ValueError(f"policy is 'raise' or 'skip', got {policy!r}")
        if max_skips < 0:
            raise ValueError(f"max_skips is a number of steps, 0 or above, got {max_skips!r}")
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale must be a finite number above 0, got {min_scale!r}")
        self.policy = policy
        self.max_skips = max_skips
        self.min_scale = min_scale
        self.skips = 0
        """Steps skipped so far in this run, resumed parts included."""
        self.dropped = False
        """Whether the last optimizer step was dropped, so that everything stands as before it."""
        self._stack = contextlib.ExitStack()
        self._buffers = KeptBuffers()
        self._window: list[BatchOfStep] = []
        self._poison: Tensor | None = None
        self._carrier: RemovableHandle | None = None
        self._ask_ranks = False
        self._later = False
        self._decided: DecidedStep | None = None
        self._informed: set[Optimizer] = set()

    # ---------------------------------------------------------------- a run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how the ranks come to agree, and which buffers a forward may change."""
        self._release()
        self._buffers = KeptBuffers.of(pl_module)
        self._later = _can_decide_on_device(trainer, pl_module)
        if trainer.world_size == 1:
            return
        self._ask_ranks = not _averages_every_gradient(trainer)
        if not self._ask_ranks:
            trained = [p for p in pl_module.parameters() if p.requires_grad]
            self._carrier = min(trained, key=torch.Tensor.numel).register_hook(self._carry)  # type: ignore[no-untyped-call]

    def on_train_end(self, *_: Any) -> None:
        """Report the last step, if it was not finite, and let go of everything."""
        try:
            self._report()
        finally:
            self._release()

    def on_exception(self, *_: Any) -> None:
        """Let go of everything."""
        self._release()

    def _release(self) -> None:
        self._stack.close()
        for optimizer in self._informed:
            vars(optimizer).pop("found_inf", None)
        self._later, self._decided, self._informed = False, None, set()
        self._window, self._poison, self._ask_ranks = [], None, False
        if self._carrier is not None:
            self._carrier.remove()
            self._carrier = None

    def state_dict(self) -> dict[str, Any]:
        """The number of skipped steps, the last one included."""
        self._report()
        return {"skips": self.skips}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skips = int(state_dict["skips"])

    # ---------------------------------------------------------------- a step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the buffers of a window's beginning; from here on no loss raises on its own."""
        self._stack.close()
        self._stack.enter_context(values_unchecked())
        self.dropped = False
        if not self._window:
            self._buffers.keep()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note whether the total is finite, without waiting for it."""
        poison = loss.detach() * 0  # 0, or NaN
        self._poison = poison if self._poison is None else self._poison + poison
        take = getattr(pl_module, "take_step_record", None)
        record = None if take is None else take()
        batch_idx = batches_begun(trainer) - 1
        if self._later:
            self._window.append(BatchOfStep(batch_idx, loss.detach(), None if record is None else record.slim()))
        elif record is not None and trainer.accumulate_grad_batches > 1:
            # Activations are not to be kept over a window: whoever accumulates is looked at batch by batch.
            bad = not bool(poison.isfinite())
            faults = record.faults(SampleNames(trainer)) if bad else None
            self._window.append(BatchOfStep(batch_idx, loss.detach(), record.slim(), faults))
        else:
            self._window.append(BatchOfStep(batch_idx, loss.detach(), record))

    def _carry(self, gradient: Tensor) -> Tensor:
        """Show in a gradient that the loss is not finite: after DDP's average all ranks have it."""
        return gradient if self._poison is None else gradient + self._poison.to(gradient)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let the step through if it is finite on every rank, else drop it."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._report(within_step=True)
        if optimizer in self._informed:
            vars(optimizer).pop("found_inf", None)  # it was of the step before
        if self._later and _has_state(optimizer):
            self._decide(trainer, pl_module, optimizer, grads)
        elif not self._agreed_finite(grads):
            self._fail(trainer, pl_module, optimizer)
        self._window, self._poison = [], None

    def _decide(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, grads: list[Tensor]) -> None:
        """Have the device leave the step out if it is not finite."""
        found = torch.nn.utils.get_total_norm(grads, norm_type=math.inf)  # 0 of none
        found = found if self._poison is None else self._poison + found.to(self._poison)
        bad = (~found.isfinite()).float()
        if self._ask_ranks:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        self._informed.add(optimizer)
        vars(optimizer)["found_inf"] = bad  # what a gradient scaler sets, and fused kernels read
        self._buffers.restore_where(bad > 0)
        drop = getattr(pl_module, "drop_step", None)
        if drop is not None:
            drop(where=bad > 0)
        self._decided = DecidedStep(StepWindow.of(trainer, self._window), trainer, pl_module, bad)

    def _report(self, *, within_step: bool = False) -> None:
        """Raise or warn if the last step that was decided on the device was not finite."""
        decided, self._decided = self._decided, None
        if decided is None or not decided.is_bad():
            return
        faults = self._faults(decided.trainer, decided.step)
        cause = faults or ["the losses were finite, a gradient was not"]
        self._refuse(decided.pl_module, decided.step, cause, log=within_step)

    def _agreed_finite(self, grads: list[Tensor]) -> bool:
        grads = [g.coalesce().values() if g.is_sparse else g for g in grads]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        found = norm if self._poison is None else norm + self._poison.to(norm)
        if self._ask_ranks:
            torch.distributed.all_reduce(found)
        if math.isfinite(found.item()):
            return True
        # The norm of huge finite gradients overflows: look again, at the values.
        bad = [not bool(g.isfinite().all()) for g in grads]
        finite = torch.tensor(not any(bad) and (self._poison is None or bool(self._poison.isfinite())))
        if self._ask_ranks:
            agreed = finite.to(found)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MIN)
            finite = agreed
        return bool(finite)

    def on_train_batch_end(self, *_: Any) -> None:
        """Outside of steps losses look again."""
        self._stack.close()

    # ---------------------------------------------------------------- a step that failed

    def _fail(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = StepWindow.of(trainer, self._window)
        faults = cause = self._faults(trainer, step)
        scaler = gradient_scaler(trainer)
        if scaler is not None and not faults:
            if scaler.get_scale() >= self.min_scale:
                return  # its own skip: it lowers the scale and goes on
            cause = [
                f"gradients overflow at any scale (the scaler's fell to {scaler.get_scale():g}): "
                "train in bf16-mixed or 32-true, or lower the learning rate"
            ]
        if not faults:
            cause = [*cause, *_gradients(pl_module, optimizer, trainer.world_size)]
        self._drop(pl_module, optimizer)
        self._window = []
        self._refuse(pl_module, step, cause, log=True)

    def _faults(self, trainer: Trainer, step: StepWindow) -> list[str]:
        """What was not finite in the losses of each rank."""
        batches = [b for b in step.batches if not math.isfinite(float(b.loss))]
        mine = [line for batch in batches for line in batch.lines(trainer)]
        everyone: list[list[str]] = [mine]
        if trainer.world_size > 1:
            everyone = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(everyone, mine)
        return [f"rank {rank}: {line}" for rank, lines in enumerate(everyone) for line in lines]

    def _refuse(self, pl_module: LightningModule, step: StepWindow, cause: list[str], *, log: bool) -> None:
        message = "\n  ".join([f"{step.text} is not finite; nothing of it was applied:", *cause])
        if self.policy == "raise":
            raise NonFiniteError(f"{message}\n  to leave such steps out instead: NonFinite(policy='skip')")
        self.skips += 1
        if self.skips > self.max_skips:
            raise NonFiniteError(f"{message}\n  that is one more than max_skips={self.max_skips} steps")
        rank_zero_warn(f"{message}\n  skipped, {self.skips} of at most {self.max_skips}")
        if log:
            pl_module.log("train/skipped_steps", float(self.skips), on_step=True, rank_zero_only=False)

    def _drop(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Optimizers leave parameters without a gradient alone, their momentum, decay and step counts too.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._buffers.restore()
        self.dropped = True
        drop = getattr(pl_module, "drop_step", None)
        if drop is not None:
            drop()

    # ---------------------------------------------------------------- validation

    def on_validation_start(self, *_: Any) -> None:
        """In validation no loss raises on one rank alone either."""
        self._stack.close()
        self._stack.enter_context(values_unchecked())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of metrics that are not finite; a :class:`lit_distill.DistillModule` does so itself, with its terms."""
        self._stack.close()
        said = getattr(pl_module, "non_finite", ())
        bad = sorted(
            name for name, value in trainer.callback_metrics.items()
            if name.startswith("val") and name not in said and not math.isfinite(float(value))
        )  # fmt: skip
        if bad and not trainer.sanity_checking:
            rank_zero_warn(
                f"validation gave figures that are not finite: {', '.join(bad)} (epoch {pl_module.current_epoch})"
            )


def step_was_dropped(trainer: Trainer) -> bool:
    """Whether a :class:`NonFinite` dropped the step that has just ended: averages and figures of it wait as well."""
    return any(each.dropped for each in trainer.callbacks if isinstance(each, NonFinite))  # type: ignore[attr-defined]


def _has_state(optimizer: Optimizer) -> bool:
    """Whether every parameter was stepped before: SGD would keep a momentum that a kernel which left it out made."""
    return all(
        p.grad is None or p in optimizer.state
        for group in optimizer.param_groups if group.get("momentum", 1)
        for p in group["params"]
    )  # fmt: skip


def _can_decide_on_device(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether nothing that follows a step needs to know on the CPU whether it was left out."""
    return (
        pl_module.device.type != "cpu"
        and gradient_scaler(trainer) is None
        and not any(hasattr(p, "full_tensor") for p in pl_module.parameters())  # sharded: kernels mix no forms
        and all(
            isinstance(optimizer, _TAKES_FOUND_INF) and all(group.get("fused") for group in optimizer.param_groups)
            for optimizer in trainer.optimizers
        )
        and not any(getattr(each, "averages_weights", False) for each in trainer.callbacks)  # type: ignore[attr-defined]
    )


def _averages_every_gradient(trainer: Trainer) -> bool:
    """Whether every parameter's gradient is averaged over all ranks as it is, whatever a rank's loss was."""
    wrapped = trainer.strategy.model
    return (
        type(trainer.strategy) is DDPStrategy
        and isinstance(wrapped, DistributedDataParallel)
        and not wrapped.find_unused_parameters
        and not has_communication_hook(trainer)
    )


def _gradients(pl_module: LightningModule, optimizer: Optimizer, ranks: int) -> list[str]:
    """Which parameters' gradients are not finite; under data parallelism they are averages over the ranks."""
    names = {id(p): name for name, p in pl_module.named_parameters()}
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    bad = [names.get(id(p), "?") for p in params if not bool(p.grad.isfinite().all())]
    of = "" if ranks == 1 else ", averaged over the ranks,"
    counted = f"{len(bad)} of {len(params)} parameters: {few(bad, 12) or 'none of this rank'}"
    return [f"the losses are finite, but the gradient{of} is not in {counted}"]
