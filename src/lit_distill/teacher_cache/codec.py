"""The signals of a batch as rows of bytes, and back: as they are, rounded to float16, or the largest logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Storage: TypeAlias = Literal["float32", "float16"]
Rows: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SignalCodec:
    r"""How one signal of a batch becomes bytes, a row a sample, and the signal again.

    ``"float32"`` keeps every bit, of whatever type the signal is. ``"float16"`` rounds what is wider. With ``top_k``
    the largest k logits of a sample are kept; all others become one value, such that they have their true share of
    the softmax at temperature 1 in all:

    .. math:: \tilde z_c = \log \tfrac{1}{C - k} \sum_{c' \notin top_k} e^{z_{c'}} \quad (c \notin top_k)

    Args:
        text: the reference of the signal.
        dtype: of the signal.
        shape: of one sample's part, (rows, ...): a batch of B gives (B * rows, ...).
        storage: see above.
        top_k: see above; None for all.
        order: of the signal's dimensions in memory, which it comes back in; empty for their own.

    Raises:
        ValueError: ``top_k`` for something that is no logits (B, C) of more classes.

    Example:
        >>> codec = SignalCodec(text="Teacher", dtype=torch.float32, shape=(1, 4), storage="float32", top_k=2)
        >>> logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
        >>> again = codec.decode(codec.encode(logits))
        >>> again.round(decimals=3).tolist(), bool(torch.isclose(again.softmax(1)[0, 0], logits.softmax(1)[0, 0]))
        ([[3.0, 0.6200000047683716, 2.0, 0.6200000047683716]], True)
    """

    text: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: Storage = "float32"
    top_k: int | None = None
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.top_k is not None and not (len(self.shape) == 2 and self.shape[0] == 1 and self._is_float):
            raise ValueError(f"teacher_cache.top_k is of logits (B, C), but {self.text!r} gives {self.described}")
        if self.top_k is not None and not 1 <= self.top_k < self.shape[1]:
            raise ValueError(
                f"teacher_cache.top_k must be from 1 to below the {self.shape[1]} classes of {self.text!r}, "
                f"got {self.top_k}"
            )

    @property
    def described(self) -> str:
        """Shape and type, for messages and the manifest."""
        shape = ("B" if self.shape[0] == 1 else f"{self.shape[0]} B", *map(str, self.shape[1:]))
        return f"({', '.join(shape)}) {str(self.dtype).removeprefix('torch.')}"

    @property
    def _is_float(self) -> bool:
        return self.dtype.is_floating_point

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of the stored values."""
        wide = self.storage == "float16" and self._is_float and self.dtype.itemsize > 2
        return torch.float16 if wide else self.dtype

    @property
    def is_exact(self) -> bool:
        """Whether what comes back is equal to the bit."""
        return self.top_k is None and self.stored_dtype == self.dtype

    @property
    def bytes(self) -> int:
        """Of a sample."""
        size = self.stored_dtype.itemsize
        return math.prod(self.shape) * size if self.top_k is None else self.top_k * (size + 4) + size

    def encode(self, signal: Tensor) -> Rows:
        """The bytes of each sample (B, bytes).

        Raises:
            ValueError: a finite value is too large for float16.
        """
        flat = signal.detach().reshape(len(signal) // self.shape[0], -1)
        if self.top_k is None:
            return _as_bytes(self._narrowed(flat))
        largest, places = flat.topk(self.top_k, dim=1)
        others = flat.to(torch.promote_types(flat.dtype, torch.float32)).scatter(1, places, -math.inf)
        rest = torch.logsumexp(others, dim=1, keepdim=True) - math.log(flat.shape[1] - self.top_k)
        parts = [largest, rest.to(flat.dtype)]
        return np.concatenate([_as_bytes(places.int()), *(_as_bytes(self._narrowed(part)) for part in parts)], axis=1)

    def decode(self, rows: Rows) -> Tensor:
        """The signal of a batch, on the CPU."""
        count = len(rows)
        if self.top_k is None:
            flat = _from_bytes(rows, self.stored_dtype)
        else:
            places = _from_bytes(rows[:, : 4 * self.top_k], torch.int32).long()
            values = _from_bytes(rows[:, 4 * self.top_k :], self.stored_dtype)
            flat = values[:, -1:].repeat(1, self.shape[1]).scatter(1, places, values[:, :-1])
        signal = flat.to(self.dtype).reshape(count * self.shape[0], *self.shape[1:])
        if self.order in ((), tuple(range(signal.ndim))):
            return signal
        back = sorted(range(signal.ndim), key=self.order.__getitem__)
        return signal.permute(self.order).contiguous().permute(back)

    def _narrowed(self, values: Tensor) -> Tensor:
        stored = values.to(self.stored_dtype)
        if stored.dtype != values.dtype and bool((stored.isinf() & values.isfinite()).any()):
            raise ValueError(
                f"{self.text!r} has values up to {float(values.abs().max()):.4g}, too large for float16: "
                "set teacher_cache.dtype=float32"
            )
        return stored


def _as_bytes(values: Tensor) -> Rows:
    rows: Rows = values.contiguous().view(torch.uint8).cpu().numpy()
    return rows


def _from_bytes(rows: Rows, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).view(dtype)
