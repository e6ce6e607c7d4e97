"""What a batch is made of: what models take, the target, the index, and entries that terms name as ``Batch.<key>``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

TARGETS = ("labels", "label", "target")
"""Keys of a mapping batch that hold the target, where nothing else is said."""


class Unpacked(NamedTuple):
    """What ``unpack`` gives of a batch; any tuple of its first two to four items will do.

    Attributes:
        inputs: what models take: one value, or a mapping for those that take keywords.
        target: the signal ``GroundTruth``.
        indices: the signal ``SampleIndex``.
        entries: what ``Batch.<key>`` names: a mapping, or the batch itself.

    Example:
        >>> Unpacked.of((1, 2), {"note": 3})
        Unpacked(inputs=1, target=2, indices=None, entries={'note': 3})
    """

    inputs: Any
    target: Any = None
    indices: Tensor | None = None
    entries: Any = None

    @classmethod
    def of(cls, unpacked: Sequence[Any], batch: Any, hook: str = "unpack") -> Unpacked:
        """What a hook gave; the entries are those of the batch where it gave none.

        Raises:
            ValueError: it gave something else.
        """
        if not isinstance(unpacked, (tuple, list)) or not 2 <= len(unpacked) <= 4:
            raise ValueError(
                f"{hook} gives (inputs, target), (inputs, target, index) or (inputs, target, index, entries), got "
                f"{f'{len(unpacked)} items' if isinstance(unpacked, (tuple, list)) else type(unpacked).__name__}"
            )
        found = cls(*unpacked)
        return found if found.entries is not None else found._replace(entries=batch)


@dataclass(frozen=True)
class BatchKeys:
    """Which entries of a mapping batch are what.

    Attributes:
        inputs: a key, whose value models take alone; several keys, which they take by keyword; None for all entries but
            target and index, by keyword.
        target: None for the one of ``labels``, ``label`` and ``target`` that there is.
        index: None for ``index``, where there is one.
        said: whether a user chose them.
    """

    inputs: str | tuple[str, ...] | None = None
    target: str | None = None
    index: str | None = None
    said: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> BatchKeys:
        """Read the argument ``batch``.

        Raises:
            ValueError: it has other keys than ``inputs``, ``target`` and ``index``, or no names of entries.
        """
        if given is None:
            return cls()
        if not isinstance(given, Mapping) or set(given) - {"inputs", "target", "index"}:
            raise ValueError(f"batch names the entries of a batch: inputs, target and index, got {given!r}")
        inputs = given.get("inputs")
        several = isinstance(inputs, Sequence) and not isinstance(inputs, str)
        names = [*(inputs if several and inputs else [inputs]), given.get("target"), given.get("index")]
        if bad := [name for name in names if name is not None and not isinstance(name, str)]:
            raise ValueError(f"batch: an entry is named by its key, a string, got {bad[0]!r}")
        found = tuple(inputs) if inputs is not None and several else inputs
        return cls(found, given.get("target"), given.get("index"), said=True)

    @property
    def by_keyword(self) -> bool:
        """Whether every model takes a mapping by keyword."""
        return self.said and not isinstance(self.inputs, str)

    def unpack(self, batch: Mapping[str, Any], *, with_target: bool = False) -> Unpacked:
        """The parts of a mapping batch, the target among what models take by keyword where it is wanted.

        Raises:
            ValueError: an entry is missing, or more than one may be the target.
        """
        keys = list(map(str, batch))
        named = [*([self.inputs] if isinstance(self.inputs, str) else self.inputs or ()), self.target, self.index]
        if missing := [name for name in named if name is not None and name not in batch]:
            raise ValueError(f"batch names {missing}, but this batch has {keys}")
        targets = [self.target] if self.target is not None else [name for name in TARGETS if name in batch]
        if len(targets) > 1:
            raise ValueError(f"the batch has {targets}: say which is the target, as batch={{'target': {targets[0]!r}}}")
        target = targets[0] if targets else None
        index = self.index or ("index" if "index" in batch else None)
        if isinstance(self.inputs, str):
            inputs = batch[self.inputs]
        else:
            none = (index,) if with_target else (target, index)
            inputs = {key: batch[key] for key in self.inputs or batch if self.inputs or key not in none}
        return Unpacked(
            inputs, None if target is None else batch[target], None if index is None else batch[index], batch
        )


def unpack_batch(
    batch: Any, hook: str = "unpack", keys: BatchKeys | None = None, models: Iterable[nn.Module] = ()
) -> Unpacked:
    """The parts of a batch of a usual form.

    Args:
        batch: ``(inputs, target)``, ``(inputs, target, index)``, each with a mapping of entries behind it, a mapping,
            or the inputs alone where nothing has a label: a tensor, or ``(inputs,)``.
        hook: what to override for others, for the message.
        keys: which entries of a mapping are what.
        models: that take it: where one is of Hugging Face, mappings need no ``keys``; a decoder that makes its own
            inputs of the target is given that, too.

    Raises:
        ValueError: the batch has another form.

    Example:
        >>> import torch
        >>> unpack_batch((1, 2, torch.zeros(2, 3))).indices, unpack_batch((1, 2, {"logits": 3})).entries
        (None, {'logits': 3})
    """
    if isinstance(batch, Mapping):
        known = list(filter(is_hugging_face, models))
        if keys is not None and (keys.said or known):
            decoders = any(getattr(model.config, "is_encoder_decoder", False) for model in known)
            return keys.unpack(batch, with_target=decoders and "decoder_input_ids" not in batch)
        names = list(map(str, batch))
        raise ValueError(
            f"the batch is a mapping of {names}: say what models take, as batch={{'inputs': '<key>', 'target': "
            f"'<key>'}} for model(batch[<key>]), or a list of keys for model(<key>=…), or override {hook}()"
        )
    if isinstance(batch, Tensor):
        return Unpacked(batch, None, None, (batch,))
    if isinstance(batch, (tuple, list)) and len(batch) == 1 and isinstance(batch[0], Tensor):
        return Unpacked(batch[0], None, None, batch)
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3, 4):
        entries = batch[-1] if len(batch) > 2 and isinstance(batch[-1], Mapping) else None
        rest = tuple(batch[: len(batch) - (entries is not None)])
        if len(rest) < 4:
            index = rest[2] if len(rest) == 3 and _is_index(rest[2]) else None
            return Unpacked(rest[0], rest[1], index, batch if entries is None else entries)
    got = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise ValueError(
        "a batch is (inputs, target) or (inputs, target, index), each with a mapping of further entries behind it or "
        f"none, a mapping, or a tensor of inputs without labels, got {got}; override {hook}()"
    )


def _is_index(value: Any) -> bool:
    """Whether the third item of a batch may be positions of samples; a teacher's logits are entries alone."""
    return not (isinstance(value, Tensor) and (value.is_floating_point() or value.ndim > 1))


def is_hugging_face(model: nn.Module) -> bool:
    """Whether a model takes its inputs by keyword, as those of the library transformers do."""
    return isinstance(getattr(model, "main_input_name", None), str) and hasattr(model, "config")


def keywords_of(name: str, model: nn.Module, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a model's ``forward`` names; all of them where it names none but takes any.

    Raises:
        ValueError: it takes none of them.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, ids, mask=None): ...
        >>> keywords_of("Student", Net(), {"ids": 1, "mask": 2, "words": 3})
        {'ids': 1, 'mask': 2}
    """
    signature = inspect.signature(getattr(model, "_orig_mod", model).forward)  # of a compiled one
    found = {str(key): value for key, value in entries.items() if key in signature.parameters}
    if found:
        return found
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
        return {str(key): value for key, value in entries.items()}
    raise ValueError(
        f"the forward of {name} takes none of {list(map(str, entries))} by keyword, its arguments are "
        f"{list(signature.parameters)}: name the entry that it takes alone, as batch={{'inputs': '<key>'}}"
    )
