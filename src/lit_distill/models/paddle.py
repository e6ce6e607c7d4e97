"""Reads Paddle's ``.pdparams`` files without Paddle, and without running anything that they hold.

``paddle.save`` writes one pickle of protocol 2, 3 or 4; :mod:`lit_distill.models.pickle_machine` interprets it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from lit_distill.models.pickle_machine import Array, ArrayState, Dtype, Machine, Name, WeightsError, shown
from lit_distill.untrusted.budgets import WEIGHTS_BYTES
from lit_distill.untrusted.opening import read_untrusted

__all__ = ["NAME_TABLE", "SLICE_TABLE", "WeightsError", "read_pdparams"]

NAME_TABLE = "StructuredToParameterName@@"
"""Key of a state dict under which Paddle keeps its internal parameter names: no tensor."""
SLICE_TABLE = "UnpackBigParamInfor@@"
"""Key under which Paddle lists the tensors above 1 GiB that it cut into slices for protocols 2 and 3."""

_MAX_DEPTH = 32
_MAX_NAME = 512
_LOOKALIKES: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive; a PyTorch file must be named .pth, .pt or .ckpt",
    b"version https://git-lfs": "a Git LFS pointer, not the weights themselves: run git lfs pull",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"<": "an HTML or XML page: the download failed",
}


def _tensors(value: object, limit: int) -> Iterator[tuple[str, Tensor]]:
    """Dotted path and tensor of every array below ``value``; numbers and texts beside them (epochs) are passed over."""
    pending: list[tuple[tuple[str, ...], object]] = [((), value)]
    steps = 0
    while pending:
        path, node = pending.pop()
        steps += 1
        if len(path) > _MAX_DEPTH:
            raise WeightsError(f"containers nested more than {_MAX_DEPTH} deep")
        if steps > limit:
            raise WeightsError("containers shared so often that they hold more values than the file has bytes")
        match node:
            case Array():
                yield ".".join(path) or "tensor", node.tensor()
            case (str() as name, Array() as array):
                yield ".".join(path) or name, array.tensor()
            case tuple() | list():
                pending.extend(((*path, str(index)), item) for index, item in reversed(list(enumerate(node))))
            case dict():
                items = [(key, item) for key, item in _joined(node).items() if key != NAME_TABLE]
                pending.extend(((*path, str(key)), item) for key, item in reversed(items))
            case Dtype() | Name():
                raise WeightsError(f"a bare {type(node).__name__.lower()} where a tensor belongs")


def _joined(node: dict[object, object]) -> dict[object, object]:
    """The dictionary with the slices that :data:`SLICE_TABLE` lists put together again."""
    table = node.get(SLICE_TABLE)
    if table is None:
        return node
    if not isinstance(table, dict):
        raise WeightsError(f"{SLICE_TABLE} is no table")
    joined = {key: item for key, item in node.items() if key != SLICE_TABLE}
    for key, entry in table.items():
        match entry:
            case {"OriginShape": tuple() | list() as shape, "slices": list() | tuple() as names, **rest} if not rest:
                joined[key] = _join(key, shape, [joined.pop(name, None) for name in names if type(name) is str])
            case _:
                raise WeightsError(f"{SLICE_TABLE} does not say how {shown(key)} was cut")
    return joined


def _join(key: object, shape: Sequence[object], parts: list[object]) -> Array:
    states = [part.state for part in parts if isinstance(part, Array) and part.state is not None]
    sizes = tuple(size for size in shape if type(size) is int and size >= 0)
    if not states or len(states) != len(parts) or len(sizes) != len(shape):
        raise WeightsError(f"slices of {shown(key)} are missing")
    total = sum(len(state.payload) for state in states)
    if len({state.dtype for state in states}) != 1 or math.prod(sizes) * states[0].dtype.itemsize != total:
        raise WeightsError(f"the slices of {shown(key)} do not make up {shown(sizes)}")
    whole = Array()
    whole.state = ArrayState(sizes, states[0].dtype, False, b"".join(state.payload for state in states))
    return whole


def read_pdparams(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a file that ``paddle.save`` wrote, by name, in the file's order, exactly as stored.

    A state dict gives its own keys. Dictionaries, lists and tuples inside others give dotted paths
    (``model.fc.weight``), a single tensor its Paddle name. Numbers and texts beside the tensors are left out, as is
    the table of internal names; tensors above 1 GiB, which protocols 2 and 3 store in slices, are put together. Linear
    weights are [in, out] and running statistics are called ``_mean`` and ``_variance``:
    :func:`lit_distill.models.load_weights` translates both.

    bfloat16 tensors are stored as unsigned 16-bit integers. Paddle has no tensors of that type (it reads such an array
    back as bfloat16), so neither do we: every ``u2`` array becomes a bfloat16 tensor of the same bits.

    Args:
        path: a file of pickle protocol 2, 3 or 4, written under Python 2 or 3, numpy 1 or 2.

    Raises:
        WeightsError: in one line, what the file holds that has no place in it. No code of the file has run.
        OSError: the file cannot be opened.

    Example:
        >>> import numpy as np, pathlib, pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "fc.pdparams"
        ...     _ = path.write_bytes(pickle.dumps({"fc.bias": np.zeros(2, np.float32)}, protocol=4))
        ...     read_pdparams(path)
        {'fc.bias': tensor([0., 0.])}
    """
    data = read_untrusted(path, what="a weights file", limit=WEIGHTS_BYTES)
    try:
        for start, meaning in _LOOKALIKES.items():
            if data.startswith(start):
                raise WeightsError(meaning)
        tensors: dict[str, Tensor] = {}
        for name, tensor in _tensors(Machine(data).run(), limit=len(data)):
            if name in tensors:
                raise WeightsError(f"the name {shown(name)} twice")
            if not name.isprintable() or len(name) > _MAX_NAME:
                raise WeightsError(f"a tensor named {shown(name)}")
            tensors[name] = tensor
        if not tensors:
            raise WeightsError("it holds no tensor")
    except WeightsError as error:
        raise WeightsError(f"{path} is refused as a .pdparams file: {error}") from None
    return tensors
