"""One rank that fails ends all ranks, each with the cause, instead of leaving them to wait for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_distill._screen import few
from lit_distill.callbacks.non_finite import step_was_dropped
from lit_distill.untrusted.showing import printable

_LONGEST = 4000  # characters of an error's text


class RankGuard(Callback):
    """Makes what would hang several processes an error on all of them; with one process it does nothing.

    - **A rank raises**, in training, validation, data loading or while it saves: it tells the others through the
      process group's store. A thread of theirs, which no collective can block, prints the cause; whoever is still
      waiting for the failed rank after ``patience`` seconds ends with exit code 1.
    - **Uneven training batches** are told at the start of an epoch, before the shorter rank leaves the others waiting.
      Loaders without a length can't be compared; the process group's own timeout ends those.
    - **A parameter without a gradient**, for which DistributedDataParallel waits and then lists indices, is named.

    Args:
        patience: seconds that a rank may take to end by itself, once another has failed.
        poll: seconds between two looks at the store.

    Raises:
        ValueError: a duration that is not above 0; in training, uneven batches or parameters without a gradient.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[RankGuard(patience=5.0)], logger=False, accelerator="cpu")
    """

    def __init__(self, *, patience: float = 8.0, poll: float = 0.5) -> None:
        for name, value in (("patience", patience), ("poll", poll)):
            if not 0 < value < float("inf"):
                raise ValueError(f"RankGuard: {name} is a number of seconds above 0, got {value!r}")
        self.patience = patience
        self.poll = poll
        self._watch: _Watch | None = None

    # ---------------------------------------------------------------- a rank that fails

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        if trainer.world_size > 1 and dist.is_initialized() and self._watch is None:
            self._watch = _Watch(trainer.global_rank, trainer.world_size, self.patience, self.poll)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All went well."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others, and give them the time to hear it; the end of the process is not for them to wait for.

        An exit on purpose (:class:`SystemExit`, as after a signal) happens on all ranks and is nobody's failure.
        """
        watch, self._watch = self._watch, None
        if watch is not None:
            if not isinstance(exception, (SystemExit, KeyboardInterrupt)):
                watch.tell(f"{type(exception).__name__}: {exception}"[:_LONGEST])
            watch.stop()

    # ---------------------------------------------------------------- what would hang

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the ranks' numbers of batches."""
        if trainer.world_size == 1:
            return
        batches = min(float(trainer.num_training_batches), 2.0**52)
        mine = torch.tensor([int(batches)], device=trainer.strategy.root_device)
        every = [torch.zeros_like(mine) for _ in range(trainer.world_size)]
        dist.all_gather(every, mine)
        counts = [int(count) for count in every]
        if len(set(counts)) > 1:
            told = ", ".join(f"rank {rank}: {count}" for rank, count in enumerate(counts))
            raise ValueError(
                f"the ranks have different numbers of training batches ({told}), so the shorter would leave the others "
                "waiting: use a sampler that deals out equally many samples to every rank, such as "
                "lit_distill.data.EpochSampler or DistributedSampler, or limit_train_batches="
                f"{min(counts)}"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Name the parameters that DDP waits for."""
        wrapped = trainer.strategy.model
        if not isinstance(wrapped, DistributedDataParallel) or wrapped.find_unused_parameters or wrapped.static_graph:
            return
        if step_was_dropped(trainer):
            return
        if any(p.grad is None for group in optimizer.param_groups for p in group["params"]):
            self._name_unused(pl_module, wrapped)

    @staticmethod
    def _name_unused(pl_module: LightningModule, wrapped: DistributedDataParallel) -> None:
        ignored = wrapped.parameters_to_ignore
        names = [n for n, p in pl_module.named_parameters() if p.requires_grad and p.grad is None and n not in ignored]
        if names:
            raise ValueError(
                f"no gradient reached {few(names, 12)}, so DDP's ranks would wait for each other for ever: no loss "
                "term depends on them; leave them out, freeze them by requires_grad_(False), or train with "
                "strategy=ddp_find_unused_parameters_true"
            )


class _Watch:
    """The store's view of one fit: who failed, with what, and who has heard of it."""

    def __init__(self, rank: int, ranks: int, patience: float, poll: float) -> None:
        self._rank, self._ranks, self._patience, self._poll = rank, ranks, patience, poll
        # A connection of its own: the main thread may block its one, waiting for a rank that never comes.
        store = _get_default_store().clone()
        fits = store.add(f"lit_distill/fits/{rank}", 1)  # every fit has keys of its own
        self._store = PrefixStore(f"lit_distill/fit{fits}", store)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lit_distill rank guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def tell(self, error: str) -> None:
        """Publish this rank's error and wait until the others have heard of it, a few polls at most."""
        self._ask(lambda: self._store.set(f"error/{self._rank}", error))
        self._ask(lambda: self._store.add("failed", 1))
        self._ask(lambda: self._store.add("heard", 1))
        end = time.monotonic() + 6 * self._poll + 1
        while time.monotonic() < end and (self._ask(lambda: self._store.add("heard", 0)) or self._ranks) < self._ranks:
            time.sleep(self._poll / 5)

    def _run(self) -> None:
        while not self._stopped.wait(self._poll):
            failed = self._ask(lambda: self._store.check(["failed"]))
            if failed is None:
                return  # rank 0, which keeps the store, has ended
            if failed and not self._stopped.is_set():
                self._end()
                return

    def _end(self) -> None:
        errors = []
        for rank in range(self._ranks):
            key = f"error/{rank}"
            if rank != self._rank and self._ask(partial(self._store.check, [key])):
                text = self._ask(partial(self._store.get, key))
                errors.append(f"rank {rank} failed with {'' if text is None else text.decode()}")
        if not errors:
            return
        self._ask(lambda: self._store.add("heard", 1))
        print(f"rank {self._rank} stops, because {printable('; '.join(errors))}", file=sys.stderr, flush=True)
        if not self._stopped.wait(self._patience):
            print(f"rank {self._rank} was still waiting and is ended", file=sys.stderr, flush=True)
            os._exit(1)  # the main thread is within a collective, where no exception reaches it

    @staticmethod
    def _ask(question: Callable[[], Any]) -> Any:
        """The store's answer, or None if it is gone."""
        try:
            return question()
        except RuntimeError:  # DistNetworkError, DistStoreError
            return None
