"""One rank that fails ends all ranks, each with the cause, instead of leaving them to wait for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import Callback
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_distill._lightning import train_loaders
from lit_distill._screen import few
from lit_distill.callbacks.non_finite import step_was_dropped
from lit_distill.untrusted.showing import printable

_LONGEST = 4000  # characters of an error's text
_EVEN = (
    "give every rank equally many batches, or set limit_train_batches=<number> (limit_val_batches, limit_test_batches)"
)


class RankGuard(Callback):
    """Makes what would hang several processes an error on all of them; with one process it does nothing.

    - **A rank raises**, in training, validation, data loading or while it saves: it tells the others through the
      process group's store. A thread of theirs, which no collective can block, prints the cause; whoever is still
      waiting for the failed rank after ``patience`` seconds ends with exit code 1.
    - **Uneven training batches** are reported at the start of an epoch, before the shorter rank leaves the others
      waiting. Of streams, loaders without a length, a rank announces its last batch before the gradients of it are
      averaged, so that no other begins a step more.
    - **Uneven validation or test batches** are no fault by themselves, since no rank waits for another there. A rank
      that is in a collective of one batch more than another has, as that of a loss that gathers, ends all.
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
        self._streams = False
        self._evaluations = 0

    # ---------------------------------------------------------------- a rank that fails

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        if trainer.world_size > 1 and dist.is_initialized() and self._watch is None:
            self._watch = _Watch(trainer.global_rank, trainer.world_size, self.patience, self.poll)
            self._evaluations = 0

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

    # ---------------------------------------------------------------- streams that end at different batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the ranks' numbers of batches can be known before."""
        wrapped = trainer.strategy.model
        joins = isinstance(wrapped, DistributedDataParallel) and wrapped._join_config.enable
        self._streams = not joins and any(sized_len(loader) is None for loader in train_loaders(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Announce the last batch of a stream, before the others can be through with it."""
        if self._watch is None or not self._streams:
            return
        position = _Position("training", trainer.current_epoch, batch_idx + 1, trainer.accumulate_grad_batches)
        self._watch.begin(position)
        if trainer.is_last_batch:
            self._watch.announce(position)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare, where this rank has more batches."""
        if self._watch is None or not self._streams:
            return
        if not trainer.is_last_batch and (uneven := self._watch.uneven_if_more()):
            raise ValueError(uneven)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the others where a stream had no batch at all, or ended without notice."""
        if self._watch is None or not self._streams:
            return
        if self._watch.announced != _Position("training", trainer.current_epoch).place:
            self._watch.meet("training", trainer.current_epoch, trainer.accumulate_grad_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here."""
        if self._watch is not None:
            self._watch.begin(_Position("test" if trainer.testing else "validation", self._evaluations))

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Count."""
        if self._watch is not None:
            self._watch.begin(replace(self._watch.position, batch=self._watch.position.batch + 1))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for those that are behind: a collective here would be taken for the one that they are in."""
        if self._watch is not None:
            self._watch.meet("test" if trainer.testing else "validation", self._evaluations)
            self._evaluations += 1

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_epoch_end = on_validation_epoch_end

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


@dataclass(frozen=True)
class _Position:
    """The batch that a rank is in, counted from 1, of an epoch or evaluation; ``window`` batches make a step."""

    stage: str
    epoch: int
    batch: int = 0
    window: int = 1

    @property
    def place(self) -> str:
        return f"end of {self.stage} {self.epoch}"

    def steps(self, batch: int) -> int:
        """Steps that so many batches make: ranks average gradients once in each."""
        return -(-batch // self.window)


class _Watch:
    """The store's view of one fit: who failed, with what, and who has heard of it."""

    def __init__(self, rank: int, ranks: int, patience: float, poll: float) -> None:
        self._rank, self._ranks, self._patience, self._poll = rank, ranks, patience, poll
        self.position, self.announced = _Position("training", 0), ""
        self._seen, self._since = self.position, time.monotonic()
        self._main = threading.get_ident()
        # A connection of its own: the main thread may block its one, waiting for a rank that never comes.
        store = _get_default_store().clone()
        fits = store.add(f"lit_distill/fits/{rank}", 1)  # every fit has keys of its own
        self._store = PrefixStore(f"lit_distill/fit{fits}", store)
        self._asking = PrefixStore(f"lit_distill/fit{fits}", store.clone())  # of the main thread
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lit_distill rank guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def begin(self, position: _Position) -> None:
        """Say to the thread which batch this rank is in."""
        self.position = position

    def announce(self, position: _Position) -> None:
        """Say how many batches this rank has."""
        first, self.announced = f"{self._rank} {position.batch}", position.place
        self._ask(lambda: self._asking.compare_set(position.place, "", first))
        self._ask(lambda: self._asking.add(f"{position.place}/ranks", 1))

    def uneven_if_more(self) -> str:
        """What is wrong where this rank has one more batch, in a step that another does not make; else empty."""
        return self._uneven(self._asking, replace(self.position, batch=self.position.batch + 1))

    def meet(self, stage: str, epoch: int, window: int = 1) -> None:
        """Announce the end, and wait for ranks that are behind, without a collective.

        Not for longer than the thread of such a rank takes to see that it waits: one that is slow is waited for in the
        next collective.
        """
        here = (self.position.stage, self.position.epoch) == (stage, epoch)
        self.position = self.position if here else _Position(stage, epoch, 0, window)
        self.announce(self.position)
        place, pause, end = self.position.place, 0.001, time.monotonic() + 4 * self._patience + 4 * self._poll
        while time.monotonic() < end and not self._stopped.is_set():
            if (self._ask(lambda: self._asking.add(f"{place}/ranks", 0)) or self._ranks) >= self._ranks:
                return
            time.sleep(pause)
            pause = min(2 * pause, self._poll)

    def _uneven(self, store: PrefixStore, position: _Position) -> str:
        first = None
        if position.batch and self._ask(lambda: store.check([position.place])):
            first = self._ask(lambda: store.get(position.place))
        if first is None:
            return ""
        rank, count = map(int, first.split())
        if position.steps(position.batch) <= position.steps(count):
            return ""
        return (
            f"the ranks have different numbers of {position.stage} batches (rank {rank}: {count}, rank {self._rank}: "
            f"more), so the shorter would leave the others waiting: {_EVEN}"
        )

    def _waits(self) -> str:
        """What is wrong where this rank waits within a batch that another does not have; empty where it does not."""
        position, now = self.position, time.monotonic()
        if position != self._seen:
            self._seen, self._since = position, now
        if now - self._since < 2 * self._patience or not (uneven := self._uneven(self._store, position)):
            return ""
        # Every step of training needs all ranks; a batch of an evaluation only where it is in a collective.
        needed = position.stage == "training" or self._in_collective()
        return uneven if needed and position == self.position else ""

    def _in_collective(self) -> bool:
        frame = sys._current_frames().get(self._main)
        while frame is not None and frame.f_globals is not vars(distributed_c10d):
            frame = frame.f_back
        return frame is not None

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
            if (uneven := self._waits()) and not self._stopped.is_set():
                print(f"rank {self._rank} stops: {uneven}", file=sys.stderr, flush=True)
                self.tell(f"ValueError: {uneven}")
                os._exit(1)  # the main thread is within a collective, where no exception reaches it

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
