"""What tells a batch's inputs apart: digests of the bytes that workers read, and keys of the tensors made of them."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lit_distill.data.catalogue.quarantine import BadVideo, Batch, PartialBatch
from lit_distill.data.datasets import Item, collate
from lit_distill.data.mixing import Mix

DIGEST_BYTES = 16


def memory_order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions from the outermost in memory to the innermost: kernels differ by it in the last bits.

    Example:
        >>> memory_order(torch.zeros(2, 3, 4, 5)), memory_order(torch.zeros(2, 4, 5, 3).permute(0, 3, 1, 2))
        ((0, 1, 2, 3), (0, 2, 3, 1))
    """
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda dim: -strides[dim]))


def row_digests(rows: Tensor) -> Tensor:
    """A digest (B, 16) uint8 of each row: of its type, its shape, its order in memory and every byte.

    Example:
        >>> one, other = row_digests(torch.tensor([[1, 2], [1, 3]]))
        >>> bool((one == row_digests(torch.tensor([[1, 2]]))[0]).all()), bool((one == other).all())
        (True, False)
    """
    rows = rows.detach().cpu()
    order = memory_order(rows[0]) if len(rows) else ()
    head = f"{rows.dtype}{tuple(rows.shape[1:])}{order}".encode()
    found = bytearray()
    for row in rows:
        digest = hashlib.sha256(head)
        digest.update(row.permute(order).contiguous().reshape(-1).view(torch.uint8).numpy().data)
        found += digest.digest()[:DIGEST_BYTES]
    return torch.frombuffer(found, dtype=torch.uint8).view(len(rows), DIGEST_BYTES)


def collate_with_digests(items: Sequence[Item | BadVideo]) -> Batch | PartialBatch:
    """As :func:`lit_distill.data.datasets.collate`, with the :func:`row_digests` of the clips as a fourth tensor."""
    batch = collate(items)
    if isinstance(batch, PartialBatch):
        return batch if batch.batch is None else PartialBatch(_with_digests(batch.batch), batch.bad)
    return _with_digests(batch)


def _with_digests(batch: Batch) -> Batch:
    return cast("Batch", (*batch, row_digests(batch[0])))


class InputKeys:
    """A key of each row of the inputs of one batch; no tensor, so that it stays on the CPU."""

    def __init__(self, rows: Sequence[bytes]) -> None:
        self.rows = tuple(rows)

    @classmethod
    def of(cls, digests: Tensor, mix: Mix | None, *how: object) -> InputKeys:
        """Keys of what is made of bytes with these digests (B, 16).

        A row of mixed ones holds its partner's digest, the weight and the box too; ``how`` is what else the tensors
        depend on, such as mean and deviation of their normalisation.
        """
        own = [row.tobytes() for row in digests.numpy()]
        tail = repr(how).encode()
        if mix is not None:
            fields = {**mix._asdict(), "partner": None}
            tail += repr({n: v.tolist() if isinstance(v, Tensor) else v for n, v in fields.items()}).encode()
            own = [row + own[partner] for row, partner in zip(own, mix.partner.tolist(), strict=True)]
        return cls([hashlib.sha256(row + tail).digest()[:DIGEST_BYTES] for row in own])

    @classmethod
    def of_tensor(cls, inputs: Tensor) -> InputKeys:
        """Keys of the very bytes of a tensor (B, ...); one on a GPU is copied for it."""
        return cls([row.tobytes() for row in row_digests(inputs).numpy()])


class KeyedInputs:
    """Keys that hold for one tensor, as long as nothing changes it.

    Example:
        >>> inputs = torch.zeros(2, 3)
        >>> keyed = KeyedInputs(inputs, InputKeys([b"a", b"b"]))
        >>> keyed.keys_of(inputs).rows, keyed.keys_of(torch.zeros(2, 3))
        ((b'a', b'b'), None)
        >>> keyed.keys_of(inputs.mul_(2)) is None
        True
    """

    def __init__(self, inputs: Tensor, keys: InputKeys) -> None:
        assert not inputs.is_inference(), "an inference tensor does not count its changes"
        self._inputs, self._version, self._keys = weakref.ref(inputs), inputs._version, keys

    def keys_of(self, inputs: Tensor) -> InputKeys | None:
        """The keys, if this is that tensor and it is as it was."""
        return self._keys if self._inputs() is inputs and inputs._version == self._version else None


def batch_keys(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """Keys that hold for their rows of this very batch alone."""
    whole = hashlib.sha256(b"".join(keys)).digest()
    return tuple(hashlib.sha256(whole + str(row).encode()).digest()[:DIGEST_BYTES] for row in range(len(keys)))
