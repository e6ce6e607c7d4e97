"""The store of one frozen model's signals on batches of one shape: looked up by key, written shard by shard."""

from __future__ import annotations

import hashlib
import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_distill._files import write_text
from lit_distill.teacher_cache.codec import Rows, SignalCodec
from lit_distill.teacher_cache.shards import (
    ENDING,
    Budget,
    DamagedShardError,
    Shard,
    remove_abandoned,
    rows_within,
    write_shard,
)
from lit_distill.untrusted.opening import UntrustedFileError, private_folder

MANIFEST: Final = "store.json"
_SHARD_BYTES: Final = 32 << 20  # that wait in memory at most


class SignalStore:
    """Rows of signals by key, read from shards that are mapped, added to in shards of its own.

    Any number of processes may read and write one folder: a shard has a name that nobody else has, appears whole, and
    never changes. A folder that cannot be made or written makes no error: it is reported once and nothing is kept then.

    Args:
        root: the folder of all stores.
        description: all that the values depend on besides the inputs; equal ones share a folder.
        codecs: of the signals, in order.
        budget: of the root.
        before_writing: called before a shard is written; raises where its rows must not be kept.
    """

    def __init__(
        self,
        root: Path,
        description: Mapping[str, Any],
        codecs: Sequence[SignalCodec],
        budget: Budget,
        before_writing: Callable[[], None] = lambda: None,
    ) -> None:
        text = json.dumps(description, indent=1, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.codecs = tuple(codecs)
        self.budget = budget
        self.row_bytes = sum(codec.bytes for codec in codecs)
        self.full = False
        self.damaged = 0
        self._before_writing = before_writing
        self._shards: dict[str, Shard] = {}
        self._left_out: set[str] = set()  # shards that cannot be read, each told once
        self._index = _Index([])
        self._pending: dict[bytes, Rows] = {}
        self.refresh()
        try:
            private_folder(root)
            private_folder(self.folder)
            if not (self.folder / MANIFEST).is_file():
                with self.budget.room():  # one at a time: ranks come here together
                    write_text(self.folder / MANIFEST, text + "\n", private=True)
        except (OSError, UntrustedFileError) as error:
            self._tell_unwritable(error)
        else:
            remove_abandoned(self.folder)

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self) -> None:
        """Take in the shards that others have written meanwhile."""
        known = self._shards.keys() | self._left_out
        try:
            new = [path for path in sorted(self.folder.glob(f"*{ENDING}")) if path.name not in known]
        except OSError as error:
            self._tell_unwritable(error)
            return
        for path in new:
            try:
                self._shards[path.name] = Shard(path, self.row_bytes)
            except FileNotFoundError:
                continue
            except DamagedShardError as error:
                self._discard(path, error)
            except (OSError, UntrustedFileError) as error:
                self._left_out.add(path.name)
                warnings.warn(f"the teacher cache's {path} cannot be read ({error}): it is left out", stacklevel=2)
        if new:
            self._index = _Index(list(self._shards.values()))

    def read(self, keys: Sequence[bytes]) -> dict[str, Tensor] | None:
        """The signals of a batch, on the CPU; None unless every sample is there."""
        places = self._index.find(keys)
        if places is None:
            return None
        rows = np.empty((len(keys), self.row_bytes), np.uint8)
        try:
            for row, (shard, number) in zip(rows, places, strict=True):
                current = shard
                row[:] = shard.row(number)
        except DamagedShardError as error:
            del self._shards[current.path.name]
            self._discard(current.path, error)
            self._index = _Index(list(self._shards.values()))
            return None
        return self._decode(rows)

    def take(self, keys: Sequence[bytes], signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep what a model gave for a batch, and give it as :meth:`read` will: rounded where the store rounds.

        Samples that are there already, or whose signals are not finite, are not added.
        """
        if self.full and self.is_exact:
            return dict(signals)
        rows = np.concatenate([codec.encode(signals[codec.text]) for codec in self.codecs], axis=1)
        if not self.full:
            finite = _finite_rows([signals[codec.text] for codec in self.codecs], len(keys))
            for key, row, good in zip(keys, rows, finite, strict=True):
                if good and key not in self._pending and self._index.find([key]) is None:
                    self._pending[key] = row
            if len(self._pending) * self.row_bytes >= _SHARD_BYTES:
                self.flush()
        if self.is_exact:
            return dict(signals)
        device = next(iter(signals.values())).device
        return {text: tensor.to(device) for text, tensor in self._decode(rows).items()}

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what the model gave, to the bit."""
        return all(codec.is_exact for codec in self.codecs)

    def flush(self) -> None:
        """Write what waits, as a shard, if there is room; what does not fit is left out from then on, and told once.

        Raises:
            Exception: what ``before_writing`` raises; nothing of what waited is written then.
        """
        pending, self._pending = self._pending, {}
        if not pending:
            return
        self._before_writing()
        path = self.folder / f"{secrets.token_hex(8)}{ENDING}"
        try:
            with self.budget.room() as room:
                fitting = dict(islice(pending.items(), rows_within(room, self.row_bytes)))
                if fitting:
                    write_shard(path, list(fitting), np.stack(list(fitting.values())))
        except (OSError, UntrustedFileError) as error:  # no room on the disk or no permission: train without a cache
            self._tell_unwritable(error)
            return
        self.refresh()
        if len(fitting) < len(pending):
            self._tell_full(
                f"its limit of {self.budget.limit / 1e9:.3g} GB is reached",
                "Set teacher_cache.max_gb=<more>, dtype=float16 or top_k, or remove the folders of teachers that are "
                "no longer used",
            )

    def _decode(self, rows: Rows) -> dict[str, Tensor]:
        found, start = {}, 0
        for codec in self.codecs:
            found[codec.text] = codec.decode(rows[:, start : start + codec.bytes])
            start += codec.bytes
        return found

    def _discard(self, path: Path, error: DamagedShardError) -> None:
        self.damaged += 1
        self._left_out.add(path.name)
        with suppress(OSError):
            path.unlink()
        warnings.warn(f"the teacher cache's {path} is damaged ({error}): it is made again", stacklevel=3)

    def _tell_unwritable(self, error: OSError | UntrustedFileError) -> None:
        self._tell_full(
            str(error), "Make room and the folder writable, or give another as teacher_cache.folder=<folder>"
        )

    def _tell_full(self, why: str, remedy: str) -> None:
        if self.full:
            return
        self.full = True
        warnings.warn(
            f"the teacher cache {self.budget.root} takes no more: {why}, {len(self)} samples of this store are in it; "
            f"for the others the teacher runs in every epoch. {remedy}",
            stacklevel=3,
        )


class _Index:
    """Where each key is; sorted halves of keys, so that millions cost 24 bytes each."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        keys: NDArray[np.uint64] = (
            np.concatenate([shard.keys for shard in shards]) if shards else np.empty((0, 2), np.uint64)
        )
        order = np.argsort(keys[:, 0], kind="stable")
        self._keys = keys[order]
        self._order = order
        self._starts = np.cumsum([0, *(len(shard.keys) for shard in shards)])

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Sequence[bytes]) -> list[tuple[Shard, int]] | None:
        """Shard and row of each key; None if one is missing."""
        wanted = np.frombuffer(b"".join(keys), "<u8").reshape(len(keys), 2)
        places = np.searchsorted(self._keys[:, 0], wanted[:, 0])
        if not len(self._keys) or int(places.max()) >= len(self._keys):
            return None
        if not np.array_equal(self._keys[places], wanted):
            return None
        rows = self._order[places]
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        numbers = rows - self._starts[shards]
        return [(self._shards[s], n) for s, n in zip(shards.tolist(), numbers.tolist(), strict=True)]


def _finite_rows(signals: Sequence[Tensor], batch: int) -> list[bool]:
    good = torch.ones(batch, dtype=torch.bool)
    for signal in signals:
        if signal.is_floating_point():
            good &= signal.isfinite().reshape(batch, -1).all(1).cpu()
    return good.tolist()
