"""Frozen models stay what they are: their hashes, when they were loaded, in checkpoints, and after training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from lit_distill._screen import few
from lit_distill._terms.trial import shortens
from lit_distill.models.identity import loaded_from, plain_parts, state_sha256


class FrozenModelChanged(RuntimeError):
    """Something wrote to a frozen model while it taught."""


class FrozenRecord:
    """What frozen models held when they were loaded, and a check that costs microseconds that they still do.

    A hash reads every byte, so it is taken once; from then on a tensor counts as untouched while its storage and
    PyTorch's own count of in-place changes are the same.

    Args:
        models: the frozen models by name; those that a callback moves on purpose left out.

    Example:
        >>> teacher = nn.Linear(2, 2)
        >>> record = FrozenRecord({"Teacher": teacher})
        >>> record.changed({"Teacher": teacher})
        []
        >>> nn.init.zeros_(teacher.weight).sum().item()
        0.0
        >>> record.changed({"Teacher": teacher})
        ['Teacher']
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.stored = {name: {"sha256": state_sha256(m.state_dict()), **loaded_from(m)} for name, m in models.items()}
        """For checkpoints: hash and source of each model as it was loaded."""
        self._hashes = {name: stored["sha256"] for name, stored in self.stored.items()}
        self._marks = {name: _mark(model) for name, model in models.items()}
        self._placed = False  # before training, precision and device still change them

    def moved(self, models: Mapping[str, nn.Module]) -> None:
        """Take the models as they stand now, moved to a device or to another precision, for unchanged."""
        self._placed = True
        for name, model in models.items():
            _shorten(model)
            if _mark(model) != self._marks[name]:
                self._hashes[name], self._marks[name] = state_sha256(model.state_dict()), _mark(model)

    def changed(self, models: Mapping[str, nn.Module], *, thorough: bool = False) -> list[str]:
        """Names of the models whose values are not what they were.

        A ``thorough`` look reads every byte, which also shows what was written past PyTorch's count.
        """
        names = []
        for name, model in models.items():
            mark = _mark(model)
            if thorough or mark != self._marks[name]:
                if state_sha256(model.state_dict()) != self._hashes[name]:
                    names.append(name)
                else:
                    self._marks[name] = mark  # values written over themselves, or a buffer that is not the state's
        return names

    def is_of(self, models: Mapping[str, nn.Module]) -> bool:
        """Whether it was taken of these very tensors, untouched since."""
        return {name: _mark(model) for name, model in models.items()} == self._marks

    def require_unchanged(self, models: Mapping[str, nn.Module], *, thorough: bool = False) -> None:
        """Raise FrozenModelChanged, which names the models that are no longer what they were."""
        if self._placed and (names := self.changed(models, thorough=thorough)):
            raise changed_error(names)

    def compare(self, stored: Mapping[str, Mapping[str, Any]], replaced: Collection[str], *, admit: str) -> None:
        """Compare with what a checkpoint recorded of the models that it was trained with.

        ``admit`` is the argument that admits another model, with ``{}`` for its name, for the message.

        Raises:
            ValueError: a model is another one, and its name is not in ``replaced``.
        """
        for name, here in self.stored.items():
            there = stored.get(name)
            if there is None or there["sha256"] == here["sha256"] or name in replaced:
                continue
            raise ValueError(
                f"{name} is frozen and is another network than the checkpoint was trained with: sha256 "
                f"{there['sha256'][:12]} from {_source(there)} then, {here['sha256'][:12]} from {_source(here)} now; "
                f"give the file of then, or say that it is meant: {admit.format(name)}"
            )


@torch.no_grad()
def _shorten(model: nn.Module) -> None:
    """Shorten every vector of embeddings with ``max_norm`` as looking it up would, which then leaves it as it is."""
    parts: Iterator[Any] = filter(shortens, model.modules())
    for part in parts:
        weight = part.weight
        rows = torch.arange(len(weight), device=weight.device)
        for _ in range(3):  # of rounding
            torch.embedding_renorm_(weight.detach(), rows, part.max_norm, part.norm_type)


def shared_tensors(one: nn.Module, other: nn.Module, *, learning: bool = False) -> list[str]:
    """Names in ``one`` of what it shares with ``other``: parameters and buffers in the same memory, and modules.

    Of modules without either, those alone whose training mode matters: dropouts, stochastic depth.

    Args:
        one: a network.
        other: another.
        learning: leave out what takes no gradient in ``one``: parameters, and buffers with such parameters around them.

    Example:
        >>> base = nn.Linear(2, 2)
        >>> shared_tensors(nn.Sequential(base, nn.Linear(2, 1)), nn.Sequential(base))
        ['0.weight', '0.bias']
    """
    theirs, parts = set(_places(other)), set(other.modules())
    found = []
    for path, part in one.named_modules():
        tensors = [(name, p, p.requires_grad) for name, p in part.named_parameters(recurse=False)]
        if buffers := list(part.named_buffers(recurse=False)):
            learns = any(p.requires_grad for p in _parameters_around(one, path))
            tensors += [(name, buffer, learns) for name, buffer in buffers]
        found += [
            f"{path}.{name}".lstrip(".")
            for name, tensor, learns in tensors
            if (learns or not learning) and not is_lazy(tensor) and not theirs.isdisjoint(_places_of(tensor))
        ]
        if not learning and part in parts and not tensors and _reads_training(part):
            found.append(path)
    return found


@contextmanager
def warned_of_calls(name: str, model: nn.Module, learners: Mapping[str, nn.Module], said: set[str]) -> Iterator[None]:
    """Warn where a frozen model calls a part of one that learns, which it does not hold: through a list or a closure.

    Args:
        name: of the frozen model.
        model: it.
        learners: the models that learn.
        said: names of frozen models of which it was said; this one is added.
    """
    held, called = set(model.modules()), dict[str, None]()
    parts = {
        part: f"{learner}.{path}".rstrip(".")
        for learner, network in learners.items()
        for path, part in network.named_modules()
        if part not in held and (next(part.parameters(recurse=False), None) is not None or _reads_training(part))
    }

    def note(part: nn.Module, _: Any) -> None:
        if part in parts:
            called[parts[part]] = None

    hook = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()
    if called and name not in said:
        said.add(name)
        rank_zero_warn(
            f"{name} is frozen, but calls {few(called)}, which it does not hold: it changes as that learns, and is in "
            f"training mode with it. If that is not meant, give {name} a copy (copy.deepcopy)"
        )


def _reads_training(part: nn.Module) -> bool:
    """Whether a module's own forward depends on the training mode, as that of a dropout."""
    return "training" in getattr(getattr(type(part).forward, "__code__", None), "co_names", ())


def _parameters_around(model: nn.Module, path: str) -> list[nn.Parameter]:
    """The parameters in a part of a model or, where it has none, in the nearest part around it that has some."""
    while not (parameters := list(model.get_submodule(path).parameters())) and path:
        path = path.rpartition(".")[0]
    return parameters


def _places(model: nn.Module) -> list[int]:
    return [at for t in (*model.parameters(), *model.buffers()) if not is_lazy(t) for at in _places_of(t)]


def _places_of(tensor: Tensor) -> list[int]:
    """Where what a tensor is made of lies in memory, if it has entries."""
    return [part.data_ptr() for _, part in plain_parts("", tensor, whole=False) if part.numel()]


def changed_error(names: Collection[str]) -> FrozenModelChanged:
    """To raise for frozen models whose values have changed."""
    return FrozenModelChanged(
        f"{', '.join(names)}: frozen, but its values have changed since training began; something writes to it "
        "(an optimizer, a callback, a hook). What was trained since then learned from a wrong teacher"
    )


def check_keys(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare the tensors of a module with those of a checkpoint by name and shape.

    Raises:
        ValueError: lists the missing, the unexpected and those of another shape.
    """
    shapes = [
        f"{key} {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if isinstance(tensor, Tensor)
        and isinstance(found.get(key), Tensor)
        and not is_lazy(tensor)
        and tensor.shape != found[key].shape
    ]
    faults = [
        f"{label} {len(keys)}: {few(keys)}"
        for label, keys in {
            "missing": [key for key in expected if key not in found],
            "unexpected": [key for key in found if key not in expected],
            "of another shape": shapes,
        }.items()
        if keys
    ]
    if faults:
        raise ValueError(f"the checkpoint does not fit the models and losses here: {'; '.join(faults)}")


def _mark(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where each tensor lies, and its own count of changes: the part here of a sharded one counts none."""
    tensors = (t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t))
    return tuple((at, 0 if t.is_inference() else t._version) for t in tensors for at in _places_of(t))


def _source(record: Mapping[str, Any]) -> str:
    if "loaded_from" in record:
        return f"{record['loaded_from']} (file {str(record.get('loaded_sha256', ''))[:12]})"
    return "no file"
