"""Weights of any supported file into any network, with a report of what fitted and what did not."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_distill.models.paddle import WeightsError
from lit_distill.models.paddle_keys import is_fused_branch, statistics_to_native
from lit_distill.models.shipped import is_shipped
from lit_distill.models.simkd import SimKDStudent
from lit_distill.models.state_files import (
    Contents,
    Rules,
    choose_prefix,
    display,
    few,
    file_sha256,
    group_by_prefix,
    read_contents,
    read_state,
    split_name,
)

__all__ = ["LoadReport", "WeightsError", "load_weights", "read_state"]

_IMAGENET_CLASSES = 1000
_IMAGENET = "the file's classifier is that of the 1000 ImageNet classes"
_WEIGHTS = (
    "pretrained", "weights", "checkpoint", "checkpoint_path", "ckpt_path", "state_dict",
    "pretrained_model_name_or_path",
)  # fmt: skip
_COUNTER = "num_batches_tracked"  # BatchNorm's; used by no network with a momentum, stored by torch only


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did; ``str()`` of it is a short table.

    Attributes:
        path: the file; ``shipped:<name>`` of weights of the package.
        sha256: of the file's bytes, in hexadecimal.
        matched: tensors of the network that now hold the file's values.
        total: tensors that the network has, without BatchNorm's counters.
        missing: tensors of the network that are as they were, and why.
        unexpected: tensors of the file that found no place, by their name there, and why.
        reset: tensors of the classifier that are as they were because ``reset_head`` allowed it, and why.
        ignored: tensors of the file that nothing lacks, such as stale fused branches, and why.
        casts: number of tensors by change of type, such as ``{"float16 -> float32": 275}``.
        name: which of the file's networks was read; empty for a file of one.

    Example:
        >>> report = LoadReport(Path("a.pth"), "0" * 64, 1, 2, missing={"fc.bias": "not in the file"})
        >>> print(report)
        a.pth, sha256 000000000000
          matched     1 of 2
          missing     1  fc.bias  (not in the file)
        >>> report.complete
        False
    """

    path: Path
    sha256: str
    matched: int
    total: int
    missing: Mapping[str, str] = field(default_factory=dict)
    unexpected: Mapping[str, str] = field(default_factory=dict)
    reset: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    casts: Mapping[str, int] = field(default_factory=dict)
    name: str = ""

    @property
    def complete(self) -> bool:
        """Whether the network is now the file's: nothing missing, nothing reset, nothing without a place."""
        return not (self.missing or self.reset or self.unexpected)

    def __str__(self) -> str:
        of = f", {self.name} of it" if self.name else ""
        lines = [f"{self.path}{of}, sha256 {self.sha256[:12]}", f"  matched{self.matched:>6} of {self.total}"]
        for label in ("missing", "unexpected", "reset", "ignored"):
            keys_of: dict[str, list[str]] = defaultdict(list)
            for key, reason in getattr(self, label).items():
                keys_of[reason].append(key)
            lines.extend(f"  {label:<10}{len(keys):>3}  {few(keys)}  ({why})" for why, keys in keys_of.items())
        lines.extend(f"  {'cast':<10}{count:>3}  {change}" for change, count in self.casts.items())
        return "\n".join(lines)


def weights_files(node: Any) -> dict[str, str | None]:
    """The weights files that a model's config names, for itself ('') and for its parts, by their names in the model.

    A part's place in the config, such as ``members.first``, is that of its submodule. None where none is given.

    Example:
        >>> weights_files({"members": {"first": {"pretrained": "a.pth"}, "second": {"pretrained": None}}})
        {'members.first': 'a.pth', 'members.second': None}
    """
    if isinstance(node, Mapping):
        if "pretrained" in node:
            return {"": None if node["pretrained"] in (None, False) else str(node["pretrained"])}
        items: Iterable[tuple[Any, Any]] = node.items()
    else:
        items = enumerate(node) if isinstance(node, Sequence) and not isinstance(node, str) else ()
    return {f"{key}.{inner}".rstrip("."): file for key, value in items for inner, file in weights_files(value).items()}


def has_weights(node: Any) -> bool:
    """Whether a model's config, or a part of it, says by the name of an argument where its weights are from.

    Example:
        >>> has_weights({"_target_": "my.Net", "weights": "DEFAULT"}), has_weights({"_target_": "my.Net", "width": 8})
        (True, False)
    """
    if isinstance(node, Mapping):
        return any(
            has_weights(value) or (str(key) in _WEIGHTS and value is not None and value is not False)
            for key, value in node.items()
        )
    return not isinstance(node, str) and isinstance(node, Sequence) and any(map(has_weights, node))


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, reset_head: bool = False) -> LoadReport:
    """Copy the weights of a file into ``model``; all of it is checked before the first value changes.

    ===================================  ==============================================================================
    ``.pdparams``                        Paddle's. Names and layouts are translated: BatchNorm statistics, transposed
                                         Linear weights, and for :class:`PPTSMv2` and :class:`PPTSMResNet` the names of
                                         PaddleVideo and PaddleClas, old and new. What the file lacks stays as it was
                                         and is reported, as the origin does silently.
    ``.safetensors``                     The network's own names, all of them.
    ``.pth .pt .ckpt .bin``              As above; read with ``weights_only``, so that no code in it runs.
    ===================================  ==============================================================================

    The names may stand behind prefixes (``module.``, ``model.``, ``backbone.`` and ``head.``, ``models.Student.``,
    ``Student.0.`` and ``Teacher.1.``). A file of several networks gives the only one that fits; where more than one
    does, name it: ``path#Student``.

    Left as they were without being asked for: the temporal attention and a 1000-class classifier, where a published
    ImageNet network starts a :class:`PPTSMv2` or :class:`PPTSMResNet` with other classes. The report tells.

    Args:
        model: any network; it stays where it is (device, type, training mode).
        path: the file, with ``#Name`` where it holds several networks; or ``shipped:<name>``, weights of the package,
            see :mod:`lit_distill.models.shipped`.
        reset_head: leave the classifier (the last Linear or Conv) as it was if the file's has another shape.

    Returns:
        The report. ``report.complete`` is what a network that will not train must have.

    Raises:
        WeightsError: the file cannot be read or is refused; nothing in it matches; a shape or kind of number differs;
            tensors are missing or superfluous in a file of the network's own format; several networks fit.

    Example:
        >>> import tempfile
        >>> source, target = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(source.state_dict(), f"{folder}/linear.pth")
        ...     report = load_weights(target, f"{folder}/linear.pth")
        >>> report.matched, report.complete, torch.equal(source.weight, target.weight)
        (2, True, True)
    """
    file, wanted = split_name(path)
    shown = Path(path) if is_shipped(path) else file
    contents = read_contents(file)
    if isinstance(model, SimKDStudent):
        model.size_like(contents.tensors)
    targets = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if contents.published and any(map(is_fused_branch, targets)):
        raise WeightsError(
            f"{file} holds the parallel branches of a {type(model).__name__} that is fused already: "
            "load it before reparameterize(); fused convolutions in such a file may be stale"
        )
    found = _find(model, targets, contents, file, wanted)
    matched, wrong = found.matched, found.wrong
    absent = {name: "not in the file" for name in targets if name not in found.tensors and not is_counter(name)}
    head = _head(model)

    missing: dict[str, str] = {}
    if contents.published:
        missing = absent | {
            name: _IMAGENET for name in wrong if name.startswith(head) and found.is_image_classifier(name)
        }
    reset = {
        name: why
        for name, why in (wrong | absent).items()
        if reset_head and name.startswith(head) and name not in missing
    }
    title = f"{file}{f', {found.name} of it,' if found.name else ''} does not fit {type(model).__name__}"
    total = sum(not is_counter(name) for name in targets)
    if 10 * len(found.tensors) < total:
        raise WeightsError(f"{title}: only {matched} of its {total} tensors match, so it is another network's file")
    if faults := {name: why for name, why in wrong.items() if name not in missing and name not in reset}:
        some = "; ".join(f"{name} is {why}" for name, why in list(faults.items())[:3])
        raise WeightsError(
            f"{title}: of {len(faults)} tensors with another shape or type, {some}.{_hint(faults, head)}"
        )
    lacking = [name for name in absent if name not in missing and name not in reset]
    if not contents.published and (lacking or found.unexpected):
        raise WeightsError(
            f"{title}: {matched} of its {total} tensors match; missing {len(lacking)}: {few(lacking)}; "
            f"unexpected {len(found.unexpected)}: {few(found.unexpected)}"
        )
    if not matched:
        raise WeightsError(f"{title}: nothing in it matches but the names")

    casts = _copy({name: tensor for name, tensor in found.tensors.items() if name not in wrong}, targets)
    return LoadReport(
        shown, file_sha256(file), matched, total, missing, found.unexpected, reset, found.ignored, casts, found.name
    )


@dataclass(frozen=True)
class _Found:
    """One network of a file: its tensors, named and laid out as the network at hand wants them."""

    name: str
    tensors: Mapping[str, Tensor]
    wrong: dict[str, str]  # those of another shape or type, and which
    unexpected: Mapping[str, str]
    ignored: Mapping[str, str]

    @property
    def matched(self) -> int:
        return sum(name not in self.wrong and not is_counter(name) for name in self.tensors)

    def is_image_classifier(self, name: str) -> bool:
        """Whether it is the 1000-class classifier of an ImageNet network, which is none for videos."""
        has_attention = any("attention" in key for key in (*self.tensors, *self.unexpected))
        return len(self.tensors[name]) == _IMAGENET_CLASSES and not has_attention


def _find(model: nn.Module, targets: Mapping[str, Tensor], contents: Contents, file: Path, wanted: str) -> _Found:
    native_key = getattr(model, "native_key", statistics_to_native) if contents.paddle else str
    rules = Rules(native_key, contents.paddle)
    linear = {f"{name}.weight".lstrip(".") for name, part in model.named_modules() if isinstance(part, nn.Linear)}

    def laid_out(name: str, key: str) -> Tensor:
        tensor = contents.tensors[key]
        return tensor.t() if contents.paddle and name in linear and tensor.ndim == 2 else tensor

    groups = {
        prefix: {name: laid_out(name, key) for name, key in places.items()}
        for prefix, places in group_by_prefix(contents.tensors, rules, targets.__contains__).items()
    }
    if not groups:
        raise WeightsError(
            f"nothing in {file} matches {type(model).__name__}: it holds {few(contents.tensors)}; "
            f"the network has {few(targets)}"
        )
    differences = {
        prefix: {name: why for name, tensor in group.items() if (why := _difference(tensor, targets[name]))}
        for prefix, group in groups.items()
    }
    fitting = {prefix: len(group) - len(differences[prefix]) for prefix, group in groups.items()}
    if not wanted:  # an average that has not begun holds the same values: either of two equal ones will do
        distinct = [prefix for prefix in groups if not _repeats(prefix, groups)]
        fitting = {prefix: fitting[prefix] for prefix in distinct}
    prefix = choose_prefix(fitting, wanted, len(targets), file)
    others = [f"{other}." for other in groups if other and wanted == "." and fitting[other] >= fitting[prefix]]
    keys = [key for key in contents.tensors if not any(map(key.startswith, others))]  # the network beside them is meant
    unexpected, ignored = leftovers(keys, rules, groups[prefix], prefix)
    return _Found(display(prefix), groups[prefix], differences[prefix], unexpected, ignored)


def _repeats(prefix: str, groups: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether a network before this one in a file holds the same values."""
    for other, tensors in groups.items():
        if other == prefix:
            return False
        mine = groups[prefix]
        if tensors.keys() == mine.keys() and all(torch.equal(tensors[name], mine[name]) for name in mine):
            return True
    return False


def _difference(source: Tensor, target: Tensor) -> str:
    """What keeps ``source`` from being copied into ``target``; empty for nothing."""
    if source.shape != target.shape:
        return f"{tuple(source.shape)} in the file, {tuple(target.shape)} in the network"
    if source.is_floating_point() != target.is_floating_point() or source.is_complex() != target.is_complex():
        return f"{_type(source)} in the file, {_type(target)} in the network"
    return ""


def _copy(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, int]:
    """Copy each tensor into the target of its name; how many changed their type, by change."""
    casts: Counter[str] = Counter()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.dtype != targets[name].dtype:
                casts[f"{_type(tensor)} -> {_type(targets[name])}"] += 1
            targets[name].copy_(tensor)
    return dict(casts)


def leftovers(
    keys: Iterable[str], rules: Rules, placed: Container[str], prefix: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The file's names behind ``prefix`` that found no place, with the reason: the unexpected, and those not needed.

    Args:
        keys: all names of the file.
        rules: how they become the network's.
        placed: the network's names that something was found for.
        prefix: of the network in the file.
    """
    unexpected: dict[str, str] = {}
    ignored: dict[str, str] = {}
    start = f"{prefix}." if prefix else ""
    for key in keys:
        if not key.startswith(start):
            continue
        names = list(rules.names(key.removeprefix(start)))
        if any(name in placed for name in names):
            continue
        if any(map(is_fused_branch, names)):
            ignored[key] = "fused from parallel branches that the file holds too"
        elif is_counter(key):
            ignored[key] = "a counter that this network does without"
        elif names:
            unexpected[key] = "the network has no such tensor"
        else:
            unexpected[key] = "no name of this network; an image network's classifier is left behind"
    return unexpected, ignored


def _head(model: nn.Module) -> tuple[str, ...]:
    """Prefix of the classifier's tensors: the last Linear or convolution that the network registers, if any."""
    names = [name for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    return tuple(f"{name}.".lstrip(".") for name in names[-1:])


def _hint(wrong: Mapping[str, str], head: tuple[str, ...]) -> str:
    if all(name.startswith(head) for name in wrong):
        return " For a fresh classifier say reset_head=True"
    if all("attention" in name for name in wrong):
        return " The attention needs the number of frames that it was trained with: num_frames"
    return " Build the network with the width, depth, frames and classes of the file"


def is_counter(name: str) -> bool:
    """Whether it is one of BatchNorm's counters, which published files do not have."""
    return name.endswith(_COUNTER)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
