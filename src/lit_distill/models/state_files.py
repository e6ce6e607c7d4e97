"""The tensors of a weights file of any format, and which of the networks in it is meant."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import safe_open
from torch import Tensor

from lit_distill._files import archive_damage, expand_home, is_archive, pickle_fault
from lit_distill.models.paddle import WeightsError, read_pdparams
from lit_distill.models.shipped import is_shipped, shipped_file
from lit_distill.untrusted.budgets import HEADER_BYTES, TENSORS, UNFOLDED, UNFOLDED_FREE, WEIGHTS_BYTES
from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted

PADDLE_SUFFIXES = (".pdparams",)
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
SAFETENSORS_SUFFIXES = (".safetensors",)
SUFFIXES = (*PADDLE_SUFFIXES, *SAFETENSORS_SUFFIXES, *TORCH_SUFFIXES)
ORIGIN = "origin"
"""Key in a ``.safetensors`` header: what the tensors come from. Published networks may lack the video parts."""
PUBLISHED = "published"

_DTYPES = frozenset(
    {
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
        torch.uint64, torch.complex64, torch.complex128,
    }
)  # fmt: skip
_SHOWN = 3
_MAX_NESTING = 16
_MAX_ENTRIES = 1_000_000
_MAX_PREFIX = 4  # state_dict.models.Student.module


class Contents(NamedTuple):
    """What a weights file holds."""

    tensors: dict[str, Tensor]
    paddle: bool = False  # names and layouts are Paddle's
    published: bool = False  # a published network's: it may lack what the network at hand has


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a weights file under the names they have in it, dotted where containers nest.

    Args:
        path: ``.pdparams``, ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt`` or ``.bin``. Of a file with a
            ``state_dict``, such as a Lightning checkpoint, only that is read.

    Raises:
        WeightsError: no such file, an unknown suffix, or contents that are refused. No code in the file runs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "model": {"bias": torch.zeros(1)}}, f"{folder}/last.pt")
        ...     read_state(f"{folder}/last.pt")
        {'model.bias': tensor([0.])}
    """
    return read_contents(expand_home(path)).tensors


def read_contents(file: Path) -> Contents:
    """The tensors of a file and under whose conventions they stand; raises WeightsError as :func:`read_state` does."""
    if not file.exists():
        raise WeightsError(f"no weights file at {file}")
    suffix = file.suffix.lower()
    try:
        if suffix in PADDLE_SUFFIXES:
            return Contents(_within(read_pdparams(file), file), paddle=True, published=True)
        if suffix in SAFETENSORS_SUFFIXES:
            tensors, metadata = read_safetensors(file)
            return Contents(tensors, published=metadata.get(ORIGIN) == PUBLISHED)
        if suffix in TORCH_SUFFIXES:
            return Contents(_within(_read_torch(file), file))
    except UntrustedFileError as error:
        raise WeightsError(str(error)) from error
    raise WeightsError(
        f"{file}: weights are read from {' '.join(SUFFIXES)}, not from {suffix or 'a file without suffix'}"
    )


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file, and its metadata.

    Raises:
        WeightsError: it cannot be read.
        UntrustedFileError: it is no regular file, or is too large.
    """
    with open_untrusted(file, what="a weights file", limit=WEIGHTS_BYTES) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > HEADER_BYTES:
            raise WeightsError(f"{file} is refused: its header has {length:,} bytes, the limit is {HEADER_BYTES:,}")
        try:
            with safe_open(file, framework="pt") as stored:
                names = stored.keys()
                if len(names) > TENSORS:
                    raise ValueError(f"it has {len(names):,} tensors, the limit is {TENSORS:,}")
                tensors = {key: stored.get_tensor(key) for key in names}
                return tensors, stored.metadata() or {}
        except Exception as error:  # of its header, or of a type that torch does not have
            raise WeightsError(f"{file} is no readable .safetensors file: {_line(error)}") from error


def _within(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors, where they do not unfold to much more than the file that holds them."""
    size, unfolded = file.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if unfolded > UNFOLDED * size + UNFOLDED_FREE:
        raise WeightsError(
            f"{file} is refused: its {size:,} bytes unfold to tensors of {unfolded:,}; store each with its own values"
        )
    return tensors


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        with open_untrusted(file, what="a weights file", limit=WEIGHTS_BYTES) as opened:
            if not is_archive(opened):
                opened.seek(0)
                if fault := pickle_fault(opened, pickles=5):  # before torch 1.6: the values follow after five
                    raise WeightsError(f"{file} is refused: {fault}")
            elif damage := archive_damage(opened):
                raise WeightsError(f"{file} is damaged: {damage}")
            opened.seek(0)
            root = torch.load(opened, map_location="cpu", weights_only=True)
    except (OSError, WeightsError, UntrustedFileError):
        raise
    except Exception as error:  # a broken archive raises nearly anything
        raise WeightsError(
            f"{file} is refused: only tensors in plain containers are read (weights_only), so save the state_dict of "
            f"the network ({type(error).__name__}: {_line(error)})"
        ) from error
    if isinstance(root, Mapping) and (place := unnamed_copy(root)):
        rank_zero_warn(
            f"{file} holds a network and, as {place}, a list of tensors of its shapes without names, such as averages "
            "of its weights, which is not read: if that is meant, save it as a state_dict"
        )
    if isinstance(root, Mapping) and isinstance(root.get("state_dict"), Mapping) and not other_networks(root):
        root = root["state_dict"]
    tensors: dict[str, Tensor] = {}
    visits = itertools.count()
    _flatten(root, (), tensors, visits)
    if next(visits) > _MAX_ENTRIES:
        raise WeightsError(f"{file} is refused: it has more than {_MAX_ENTRIES:,} entries in containers that nest")
    if not tensors:
        raise WeightsError(f"{file} holds no tensor")
    require_plain(tensors, file)
    return tensors


def other_networks(root: Mapping[Any, Any]) -> list[str]:
    """The places beside ``state_dict`` that hold at least half of its tensors again: an average, the raw weights.

    Example:
        >>> weights = {"fc.bias": torch.zeros(1)}
        >>> other_networks({"state_dict": weights, "ema": {"shadow": dict(weights)}, "optimizer": {"state": {}}})
        ['ema.shadow']
    """
    own = _ends(root["state_dict"])
    seen = {id(root["state_dict"])}
    # Lightning's averaging callbacks keep the averages in state_dict, and beside it what they resume from
    passed_over = ("state_dict", "current_model_state") if "pytorch-lightning_version" in root else ("state_dict",)
    return [
        place
        for name, entry in root.items()
        if name not in passed_over
        for place, part in _mappings(entry, str(name), _MAX_PREFIX, seen)
        if own and 2 * len(own & _ends(part)) >= len(own)
    ]


def unnamed_copy(root: Mapping[Any, Any]) -> str | None:
    """The place of a list of tensors that has the shapes of at least half of a network's tensors beside it.

    Example:
        >>> weights = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
        >>> unnamed_copy({"model": weights, "ema": {"decay": 0.9, "shadow_params": [*weights.values()]}})
        'ema.shadow_params'
    """
    parts = list(_mappings(root, "", _MAX_PREFIX, set()))
    network: Counter[torch.Size] = max((_shapes(part.values()) for _, part in parts), key=Counter.total)
    seen = set[int]()
    for place, part in parts:
        for name, entry in part.items():
            path = f"{place}.{name}".lstrip(".")
            if not isinstance(entry, (list, tuple)) or id(entry) in seen or "optim" in path.lower():
                continue
            seen.add(id(entry))
            if 2 * (_shapes(entry) & network).total() >= network.total() > 1:
                return path
    return None


def _shapes(entries: Iterable[object]) -> Counter[torch.Size]:
    return Counter(entry.shape for entry in entries if isinstance(entry, Tensor))


def _mappings(entry: object, place: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """An entry and what it holds to this depth where they are mappings, with their places, each of them once."""
    if isinstance(entry, Mapping) and id(entry) not in seen:
        seen.add(id(entry))
        yield place, entry
        for key, item in entry.items() if depth > 1 else ():
            yield from _mappings(item, f"{place}.{key}", depth - 1, seen)


def _ends(entry: Mapping[Any, Any]) -> set[str]:
    """The last two parts of the names of an entry's tensors: what comes before is the wrapper's."""
    return {".".join(str(key).split(".")[-2:]) for key, value in entry.items() if isinstance(value, Tensor)}


def require_plain(tensors: Mapping[str, object], source: object) -> None:
    """Refuse tensors that a network cannot simply copy: copying one of them fails half way through the others.

    Raises:
        WeightsError: one is sparse, quantized, nested, on the meta device, of an odd type, or no tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            odd = f"a {type(tensor).__name__}"
        elif tensor.is_nested or tensor.layout != torch.strided:
            odd = "nested" if tensor.is_nested else f"of the layout {tensor.layout}"
        elif tensor.device.type == "meta" or tensor.is_quantized or tensor.dtype not in _DTYPES:
            odd = "without values (meta)" if tensor.device.type == "meta" else f"of {tensor.dtype}"
        else:
            continue
        raise WeightsError(f"{source} is refused: expected plain dense tensors, got {name}, which is {odd}")


def _flatten(node: object, path: tuple[str, ...], tensors: dict[str, Tensor], visits: Iterator[int]) -> None:
    if next(visits) > _MAX_ENTRIES:  # a short file may name one container within another without end
        return
    if isinstance(node, Tensor):
        tensors[".".join(path) or "tensor"] = node
    elif isinstance(node, Mapping) and len(path) < _MAX_NESTING:
        for key, item in node.items():
            if next(visits) > _MAX_ENTRIES:
                return
            _flatten(item, (*path, str(key)), tensors, visits)


def split_name(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The file and the network that ``file#Network`` names; a file with # in its own name is taken as it is.

    ``shipped:<name>`` is the file of weights of the package, once its hash is found right.

    Example:
        >>> split_name("runs/last.ckpt#Student")[1]
        'Student'
    """
    if is_shipped(path):
        return shipped_file(os.fspath(path)), ""
    whole = expand_home(path)
    if whole.exists() or "#" not in whole.name:
        return whole, ""
    name, _, wanted = whole.name.rpartition("#")
    return whole.with_name(name), wanted


def file_sha256(path: Path) -> str:
    """The SHA-256 of a weights file's bytes, in hexadecimal.

    Raises:
        UntrustedFileError: it is no regular file, or is too large.
    """
    with open_untrusted(path, what="a weights file", limit=WEIGHTS_BYTES) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Rules(NamedTuple):
    """How names of a file become those of a network: ``native_key``, and Paddle's prefixes for backbone and head."""

    native_key: Callable[[str], str | None]
    paddle: bool

    def names(self, key: str) -> Iterator[str]:
        """The network's possible names of what the file calls ``key``, prefixes already cut; mostly one or none."""
        variants = [key]
        if self.paddle:  # Recognizer2D says backbone and head, RecognizerDistillation 0 and 1
            first, _, rest = key.partition(".")
            variants += {"backbone": [rest], "0": [rest], "1": [f"head.{rest}"]}.get(first, [])
        for variant in variants:
            name = self.native_key(variant)
            if name is not None:
                yield name


def group_by_prefix(keys: Iterable[str], rules: Rules, is_wanted: Callable[[str], bool]) -> dict[str, dict[str, str]]:
    """By prefix, such as ``models.Student``: the names in the network of the tensors behind it, and those in the file.

    Example:
        >>> group_by_prefix(["model.fc.bias", "step"], Rules(str, paddle=False), lambda name: name == "fc.bias")
        {'model': {'fc.bias': 'model.fc.bias'}}
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        parts = key.split(".")
        for cut in range(min(len(parts), _MAX_PREFIX + 1)):
            name = next(filter(is_wanted, rules.names(".".join(parts[cut:]))), None)
            if name is not None:
                groups[".".join(parts[:cut])].setdefault(name, key)
    # Teacher holds what Teacher.0 does, and the classifier; the empty prefix what backbone does
    used = {prefix: frozenset(places.values()) for prefix, places in groups.items()}
    return {
        prefix: places
        for prefix, places in groups.items()
        if not any(
            used[prefix] < keys or (used[prefix] == keys and len(other) < len(prefix)) for other, keys in used.items()
        )
    }


def choose_prefix(fitting: Mapping[str, int], wanted: str, total: int, file: Path) -> str:
    """The wanted prefix, or the only one of which at least half of ``total`` tensors fit, or the best of the others.

    Args:
        fitting: how many tensors fit, by prefix; not empty.
        wanted: what the user named after ``#``, ``.`` for the network without a prefix; empty for nothing.
        total: tensors that the network has.
        file: named in the errors.

    Raises:
        WeightsError: nothing of the wanted name, or several prefixes fit.
    """
    shown = ", ".join(sorted(filter(None, map(display, fitting)))) or "one network without a name"
    if wanted:
        fitting = {
            prefix: count
            for prefix, count in fitting.items()
            if (not prefix if wanted == "." else f".{wanted}." in f".{prefix}.")
        }
        if not fitting:
            raise WeightsError(f"{file} holds no fitting network of the name {wanted}; it holds {shown}")
    fits = [prefix for prefix, count in fitting.items() if 2 * count >= total]
    if "" in fits:  # a part of a network may look like the whole, but it does not fit as well
        fits = [prefix for prefix in fits if fitting[prefix] >= fitting[""]]
    if len(fits) > 1:
        names = sorted((display(prefix) or "." for prefix in fits), key=lambda name: (name == ".", name))
        raise WeightsError(
            f"{file} holds several networks that fit, {', '.join(names)}: name one of them, {file}#{names[0]}"
        )
    return max(fitting, key=lambda prefix: (prefix == "" and prefix in fits, fitting[prefix]))


def display(prefix: str) -> str:
    """How a prefix is shown to the user, and what may follow ``#``."""
    return prefix.removeprefix("models.")


def few(names: Iterable[str]) -> str:
    """The first names of many, for one line."""
    names = list(names)
    more = f", … ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def _line(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return first if len(first) <= 160 else f"{first[:159]}…"
