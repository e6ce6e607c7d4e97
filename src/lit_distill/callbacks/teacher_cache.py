"""Frozen models run once for each tensor: later epochs, and later runs, read back what they gave."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from lit_distill._files import cache_folder
from lit_distill._screen import Screen
from lit_distill._version import versions
from lit_distill.data.digests import InputKeys, batch_keys, memory_order
from lit_distill.models.identity import state_sha256
from lit_distill.module import DistillModule
from lit_distill.signals import Reference, SignalCapture
from lit_distill.teacher_cache.codec import SignalCodec, Storage
from lit_distill.teacher_cache.probe import Probe, probe
from lit_distill.teacher_cache.shards import Budget
from lit_distill.teacher_cache.store import SignalStore

_FORMAT = 1
_RETURNED = "(returned)"  # no reference: what evaluation judges, where that is not what the terms tap


@dataclass
class CacheCounts:
    """What a cache was good for, in one stage of one process.

    Attributes:
        asked: samples, once for each frozen model.
        hits: of them, those that were read back.
        saved: seconds that the models would have taken for them.
        spent: seconds that looking up and reading took.
    """

    asked: int = 0
    hits: int = 0
    saved: float = 0.0
    spent: float = 0.0


@dataclass
class _Opened:
    """A store, and what its probe told."""

    store: SignalStore
    probe: Probe


class TeacherCache(Callback):
    r"""Keeps what frozen models give, by the very tensor that they gave it for, and reads it back from then on.

    What a step needs of a frozen model (its logits, the submodules that the terms tap) is looked up by a hash of the
    tensor that the model would be given. Data modules of this library hash the bytes of each clip in their workers, and
    the mixing (partner, weight, box) and normalisation with it; the inputs of any other loader are hashed themselves. A
    changed file, crop, flip, number of frames, partner or decoder so gives another key. Values are kept apart by all
    else that they depend on: the model's sha256, the signals, precision, autocast, device, versions, the size of the
    batch (whose kernels differ in the last bits), and every bit that the model gives for a batch of fixed noise. If
    that noise shows that a sample's part depends on its place or its neighbours, keys are of whole batches.

    Either all samples of a batch are there, and the model does not run, or it runs on the whole batch as without a
    cache. In ``"float32"`` the values are those of the model to the bit, so that training is too. Rounded ones
    (``"float16"``, ``top_k``) are used rounded in the first epoch as well: training never depends on what the cache
    holds.

    Training repeats its tensors if the data module has ``views_per_sample``; validation always does. Where it is None,
    so that every epoch draws new views, training runs the models as without a cache, and validation alone is kept.

    Args:
        folder: where it is; none for ``teachers`` in the cache folder (``$LIT_DISTILL_CACHE`` or
            ``~/.cache/lit_distill``). Later runs, and runs at the same time, share it. Remove it to clear it.
        max_gb: most that the folder may take, in GB (10^9 bytes); nothing is added then, and nothing is evicted.
        dtype: ``"float32"``: signals as they are, to the bit; ``"float16"``: those that are wider are rounded.
        top_k: the largest k logits of a model's output alone; the others become one value with their true share of the
            softmax (see :class:`lit_distill.teacher_cache.codec.SignalCodec`); none for all.
        models: names of the frozen models; none for all but those that a callback moves.
        console: where the statistics are printed; standard output by default.

    Raises:
        ValueError: a value is out of its range; when training begins, a named model that is not frozen or that a
            callback moves, or none that stands still; in the first batch, a signal that cannot be kept.

    Example:
        >>> trainer = Trainer(callbacks=[TeacherCache(max_gb=5)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        *,
        folder: str | os.PathLike[str] | None = None,
        max_gb: float = 20.0,
        dtype: Storage = "float32",
        top_k: int | None = None,
        models: Sequence[str] | None = None,
        console: Console | None = None,
    ) -> None:
        if not 0 < max_gb < math.inf:
            raise ValueError(f"teacher_cache.max_gb must be above 0, got {max_gb}")
        if dtype not in ("float32", "float16"):
            raise ValueError(f"teacher_cache.dtype is 'float32' or 'float16', got {dtype!r}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"teacher_cache.top_k must be at least 1, or null for all logits, got {top_k}")
        self.folder = cache_folder("teachers", folder)
        self.limit = int(max_gb * 1e9)
        self.dtype, self.top_k = dtype, top_k
        self.counts: dict[str, CacheCounts] = {"train": CacheCounts(), "val": CacheCounts()}
        """What this process has read and computed since training began, by stage."""
        self._models = None if models is None else tuple(models)
        self._console = console
        self._module: DistillModule | None = None
        self._names: frozenset[str] = frozenset()
        self._trains = True  # whether training is served
        self._opened: dict[tuple[Any, ...], _Opened | None] = {}
        self._hashes: dict[str, str] = {}
        self._budget: Budget | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TeacherCache:
        return self  # a copied module asks the same cache: its mappings are not to be copied

    # ---------------------------------------------------------------- a run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the workers hash what they read."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and hasattr(datamodule, "with_keys"):
            datamodule.with_keys = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the models stand still, and let the module ask from here on."""
        if not isinstance(pl_module, DistillModule):
            raise ValueError(f"TeacherCache serves a DistillModule, got a {type(pl_module).__name__}")
        still = [name for name in pl_module.frozen if name not in pl_module.moving]
        names = still if self._models is None else self._models
        for name in names:
            if name not in pl_module.frozen:
                raise ValueError(
                    f"teacher_cache.models: {name} is not frozen, so that it gives something else in every step; the "
                    f"frozen models are {list(pl_module.frozen)}"
                )
            if name in pl_module.moving:
                raise ValueError(
                    f"teacher_cache.models: {name} moves in every step (EMATeacher), so what it gave is not what it "
                    f"gives: {f'name of {still}, or leave it null' if still else 'set teacher_cache=off'}"
                )
        if not names:
            why = "none is: set teacher=frozen"
            if pl_module.frozen:
                why = f"all of {list(pl_module.frozen)} move in every step (EMATeacher): set teacher_cache=off"
            if self._models is not None:
                why = "teacher_cache.models is empty: leave it null for all"
            raise ValueError(f"teacher_cache=on keeps what frozen models give, but {why}")
        self._budget = Budget(self.folder, self.limit)
        self._opened, self._hashes = {}, {}
        self.counts = {"train": CacheCounts(), "val": CacheCounts()}
        self._module = pl_module
        self._names = frozenset(names)
        pl_module.signal_cache = self
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._trains = _repeats(datamodule)
        if not self._trains and trainer.is_global_zero:
            self._say(
                "teacher cache: every epoch draws new views, so it serves validation alone, not training; "
                "data.views_per_sample=<k> goes through k views of each sample in turn"
            )

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        """See what other processes have written."""
        for store in self._stores:
            store.refresh()

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Write what the epoch, or the validation, added."""
        for store in self._stores:
            store.flush()

    on_validation_start, on_validation_end = on_train_epoch_start, on_train_epoch_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print hit rate, size and time saved."""
        self.on_train_epoch_end()
        counts = [self.counts]
        if trainer.world_size > 1:
            counts = [self.counts for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(counts, self.counts)
        if trainer.is_global_zero:
            self._say(self.report(counts))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what there is, if it is right; the exception at hand is the one to report."""
        with suppress(Exception):
            self.on_train_epoch_end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of everything."""
        if isinstance(pl_module, DistillModule) and pl_module.signal_cache is self:
            pl_module.signal_cache = None
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(datamodule, "with_keys"):
            datamodule.with_keys = False
        self._opened, self._module = {}, None

    def report(self, counts: Sequence[Mapping[str, CacheCounts]]) -> str:
        """Hit rate, size and time saved as a sentence, of the counts of each process."""
        assert self._budget is not None
        stages = {stage: [one[stage] for one in counts] for stage in ("train", "val")}
        shares = ", ".join(_share(stage, of) for stage, of in stages.items() if any(c.asked for c in of))
        every = [c for of in stages.values() for c in of]
        saved, spent = sum(c.saved for c in every), sum(c.spent for c in every)
        damaged = sum(store.damaged for store in self._stores)
        notes = (", full" if any(store.full for store in self._stores) else "") + (
            f", {damaged} damaged files removed" if damaged else ""
        )
        return (
            f"teacher cache: {shares or 'nothing was asked for'}; {saved:.1f} s of the frozen models' running saved, "
            f"{spent:.1f} s spent; {self._budget.used() / 1e9:.3f} of {self.limit / 1e9:.3g} GB in {self.folder}{notes}"
        )

    # ---------------------------------------------------------------- a step

    def run(
        self, name: str, inputs: Any, signals: SignalCapture, compute: Callable[[Any], Any], *, output: bool
    ) -> Any:
        """Put what a frozen model gives for these inputs into ``signals``: read back, or computed and then kept.

        Args:
            name: of the model.
            inputs: what it would be given.
            signals: the capture of this step, whose taps of the model are wanted.
            compute: runs the model.
            output: whether what it returns is wanted too, as in evaluation.

        Returns:
            What the model returns; None where it is not wanted and was not computed.
        """
        if name not in self._names or (torch.is_grad_enabled() and not self._trains):
            return compute(inputs)
        if not isinstance(inputs, Tensor) or inputs.ndim == 0:
            raise ValueError(
                f"teacher_cache needs batches whose inputs are one tensor (B, ...), got {type(inputs).__name__}: "
                "set teacher_cache=off"
            )
        counts = self.counts["train" if torch.is_grad_enabled() else "val"]
        counts.asked += len(inputs)
        started = time.perf_counter()
        opened = self._open(name, inputs, signals, compute, output)
        if opened is None:
            return compute(inputs)
        store, rows = opened.store, self._keys(inputs).rows
        keys = rows if opened.probe.row_wise else batch_keys(rows)
        found = store.read(keys)
        counts.spent += time.perf_counter() - started
        if found is not None:
            counts.hits += len(inputs)
            counts.saved += opened.probe.seconds
            found = {text: tensor.to(inputs.device, non_blocking=True) for text, tensor in found.items()}
        else:
            returned = compute(inputs)
            started = time.perf_counter()
            given = {c.text: returned if c.text == _RETURNED else signals[c.text] for c in store.codecs}
            found = store.take(keys, given)
            counts.spent += time.perf_counter() - started
            if store.is_exact:
                return returned
        for text, tensor in found.items():
            signals.replace(text, tensor)
        answers = (found[text] for text in found if text != _RETURNED and signals.is_answer(Reference.parse(text)))
        return found[_RETURNED] if _RETURNED in found else next(answers, None)

    def _keys(self, inputs: Tensor) -> InputKeys:
        assert self._module is not None
        datamodule = getattr(self._module.trainer, "datamodule", None)
        keys_of = getattr(datamodule, "keys_of", None)
        keys = None if keys_of is None else keys_of(inputs)
        return InputKeys.of_tensor(inputs) if keys is None else keys

    def _open(
        self, name: str, inputs: Tensor, signals: SignalCapture, compute: Callable[[Any], Any], output: bool
    ) -> _Opened | None:
        """The store for such a batch; None where the model returns what is no tensor, and that is wanted."""
        device = inputs.device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "off"
        texts = signals.texts_of(name)
        how = (name, tuple(inputs.shape), memory_order(inputs), inputs.dtype, inputs.device, autocast, texts, output)
        if how not in self._opened:
            self._opened[how] = self._make(name, inputs, signals, compute, output, autocast)
        return self._opened[how]

    def _make(
        self, name: str, inputs: Tensor, signals: SignalCapture, compute: Callable[[Any], Any], output: bool, auto: str
    ) -> _Opened | None:
        assert self._module is not None
        assert self._budget is not None
        texts = signals.texts_of(name)
        answers = [text for text in texts if signals.is_answer(Reference.parse(text))]
        no_tensor = False

        def tried(noise: Tensor) -> dict[str, Tensor]:
            nonlocal no_tensor
            returned = compute(noise)
            found = {text: signals[text] for text in texts}
            no_tensor = output and not isinstance(returned, Tensor)
            if output and not no_tensor and not any(_is_same(found[text], returned) for text in answers):
                found[_RETURNED] = returned  # averaged over views, or another than the output that the terms tap
            signals.forget(name)
            return found

        with torch.no_grad():
            told = probe(name, inputs, tried)
        if no_tensor:
            return None
        model = self._module.models[name]
        if name not in self._hashes:
            self._hashes[name] = state_sha256(model.state_dict())
        sha256 = self._hashes[name]
        codecs = [
            SignalCodec(
                text=text, dtype=told.dtypes[text], shape=shape, storage=self.dtype,
                top_k=self.top_k if text in (*answers, _RETURNED) else None, order=told.orders[text],
            )
            for text, shape in told.shapes.items()
        ]  # fmt: skip
        form = [list(inputs.shape), list(memory_order(inputs)), str(inputs.dtype)]
        described = {
            "format": _FORMAT, "model": name, "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "sha256": sha256, "inputs": form, "autocast": auto,
            "device": inputs.device.type, "versions": {n: versions()[n] for n in ("lit_distill", "torch")},
            "matmul": torch.get_float32_matmul_precision(),
            "signals": {c.text: f"{c.described}, kept as {c.stored_dtype}, top_k={c.top_k}, {c.order}" for c in codecs},
            "row_wise": told.row_wise, "probe": told.fingerprint,
        }  # fmt: skip

        def hold_still() -> None:
            if state_sha256(model.state_dict()) != sha256:
                raise RuntimeError(
                    f"{name}: frozen, but its values have changed since its signals began to be kept; what it gave "
                    "since then is not kept"
                )

        store = SignalStore(self.folder / sha256[:16], described, codecs, self._budget, hold_still)
        self._tell_size(store)
        same = (other for other in self._stores if other.folder == store.folder)
        return _Opened(next(same, store), told)

    def _tell_size(self, store: SignalStore) -> None:
        """Warn where training will not fit, before it runs for days."""
        assert self._module is not None
        loader = self._module.trainer.train_dataloader
        if not torch.is_grad_enabled() or not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
            return
        datamodule = getattr(self._module.trainer, "datamodule", None)
        views = getattr(datamodule, "views_per_sample", None) or 1
        needed = len(loader.dataset) * views * store.row_bytes
        if needed > self.limit and self._module.trainer.is_global_zero:
            sizes = ", ".join(f"{codec.text} {codec.bytes / 1e6:.3g} MB" for codec in store.codecs)
            warnings.warn(
                f"teacher_cache: a view of a sample takes {store.row_bytes / 1e6:.3g} MB ({sizes}), {views} views of "
                f"{len(loader.dataset)} samples {needed / 1e9:.3g} GB; max_gb={self.limit / 1e9:.3g} holds "
                f"{100 * self.limit / needed:.2g} % of them, for the others the models run in every epoch. Set "
                "teacher_cache.max_gb=<more>, dtype=float16, top_k, fewer data.views_per_sample, or tap less",
                stacklevel=2,
            )

    # ---------------------------------------------------------------- parts

    @property
    def _stores(self) -> list[SignalStore]:
        return list({id(opened.store): opened.store for opened in self._opened.values() if opened is not None}.values())

    def _say(self, text: str) -> None:
        (self._console or Screen()).print(text, highlight=False, soft_wrap=True)


def _repeats(datamodule: Any) -> bool:
    """Whether training tensors may come again: not where a data module says that every epoch draws new views."""
    return getattr(datamodule, "views_per_sample", 0) is not None


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _share(stage: str, counts: Sequence[CacheCounts]) -> str:
    asked, hits = sum(c.asked for c in counts), sum(c.hits for c in counts)
    return f"{100 * hits / asked:.1f} % of {asked:,} {stage} samples from it"
