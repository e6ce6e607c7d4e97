"""Checkpoints that are whole or not there, run no code, and say what is wrong with them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeAlias, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch.serialization import get_unsafe_globals_in_checkpoint

from lit_distill._files import archive_damage, atomic_file, described_fault
from lit_distill.untrusted.budgets import UNFOLDED, UNFOLDED_FREE, WEIGHTS_BYTES
from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted
from lit_distill.untrusted.showing import printable

_Path: TypeAlias = "str | os.PathLike[str]"
_OFFERED = 3  # checkpoints that are tried, newest first, where one is not readable


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, and why."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class SafeCheckpointIO(CheckpointIO):
    """Writes and reads the checkpoints of any Lightning program so that the last good one always loads.

    A checkpoint is written to a temporary file in its folder, synchronised and renamed: a full disk, a missing
    permission or a kill at any byte leaves the one before untouched. What could not be read back under ``weights_only``
    is refused while it is written. Reading verifies the checksum of every record and runs no code; a damaged file is
    named as damaged, and the newest readable checkpoint of its folder is offered. Local paths only.

    Args:
        on_error: ``"raise"`` ends the run where a checkpoint cannot be written: a full disk rarely heals, and going on
            would lose all that is computed from there, while the last good checkpoint loses no more than the time
            since it. ``"warn"`` tells the cause each time and trains on; nothing is deleted then.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False)
        >>> type(trainer.strategy.checkpoint_io).__name__
        'SafeCheckpointIO'
    """

    def __init__(self, *, on_error: Literal["raise", "warn"] = "raise") -> None:
        if on_error not in ("raise", "warn"):
            raise ValueError(f'on_error is "raise" or "warn", got {on_error!r}')
        self.on_error = on_error
        self._failures = 0  # in a row

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint whole or not at all.

        Raises:
            OSError: it cannot be written, and ``on_error`` is ``"raise"``.
            CheckpointError: it holds what ``weights_only`` would not read.
        """
        if storage_options is not None:
            raise TypeError("SafeCheckpointIO writes local files and takes no storage_options")
        try:
            write_checkpoint(checkpoint, _local(path))
        except OSError as error:
            if self.on_error == "raise":
                raise
            self._failures += 1
            warnings.warn(
                f"NO CHECKPOINT WRITTEN ({self._failures} in a row), training goes on: {error.strerror or error}",
                stacklevel=2,
            )
        else:
            self._failures = 0

    def load_checkpoint(
        self, path: _Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: there is none.
            CheckpointError: it is damaged, no checkpoint, or holds more than tensors and plain containers.
        """
        if weights_only is False:
            raise CheckpointError(
                "SafeCheckpointIO reads with weights_only=True alone, got weights_only=False; "
                "for a file that you trust take Lightning's TorchCheckpointIO"
            )
        return read_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: _Path) -> None:
        """Delete a checkpoint that a newer one has replaced; kept where the newer one could not be written."""
        path = _local(path)
        if self._failures:
            return
        try:
            if path.is_dir():  # of shards
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"the superseded checkpoint {path} cannot be removed: {error.strerror}", stacklevel=2)


def write_checkpoint(checkpoint: Mapping[str, Any], path: _Path) -> None:
    """Write what ``torch.save`` does, whole or not at all, and only what ``weights_only`` reads back.

    Raises:
        OSError: it cannot be written; what stood there is untouched.
        CheckpointError: something in it is neither a tensor nor a plain container, number or text; says what and where.
    """
    with atomic_file(path) as file:
        sink = _Sink(file)
        torch.save(checkpoint, cast("IO[bytes]", sink))
        sink.finish()
        if unsafe := get_unsafe_globals_in_checkpoint(file.name):
            places = [f"{place} is a {name}" for place, name in _foreign(checkpoint, "")][:3]
            raise CheckpointError(
                f"{path} is not written, since it could not be read back: it would hold {', '.join(sorted(unsafe))}"
                f"{' (' + '; '.join(places) + ')' if places else ''}; keep tensors, numbers, texts, lists and dicts "
                "in a state_dict"
            )
        with zipfile.ZipFile(file.name) as archive:
            fault = described_fault(archive)
        if fault:
            places = [f"{place} is a {name}" for place, name in _foreign(checkpoint, "")][:3]
            raise CheckpointError(
                f"{path} is not written, since it could not be read back: {fault}"
                f"{' (' + '; '.join(places) + ')' if places else ''}"
            )


def read_checkpoint(path: _Path, *, map_location: Any | None = "cpu") -> dict[str, Any]:
    """Read a Lightning checkpoint: checksums first, then under ``weights_only``; no code in it runs.

    Args:
        path: a local file.
        map_location: as ``torch.load`` takes it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, refused or no checkpoint; offers the newest readable one in the same folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> write_checkpoint({"state_dict": {"bias": torch.ones(2)}, "pytorch-lightning_version": "2.6"}, path)
        >>> read_checkpoint(path)["state_dict"]
        {'bias': tensor([1., 1.])}
    """
    path = _local(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}{_offer(path)}")
    fault, checkpoint = _read(path, map_location)
    if fault:
        raise CheckpointError(f"{path} {fault}{_offer(path)}")
    return checkpoint


def readable_checkpoints(folder: _Path) -> Iterator[Path]:
    """The ``.ckpt`` files of a folder that can be read, newest first; each is verified when it is asked for."""
    return (path for path in _newest_first(Path(folder)) if not _read(path, "cpu")[0])


def _newest_first(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("*.ckpt") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _read(path: Path, map_location: Any | None) -> tuple[str, dict[str, Any]]:
    """What is wrong with a checkpoint, as the end of a sentence, or its content."""
    try:
        with open_untrusted(path, what="a checkpoint", limit=WEIGHTS_BYTES) as file:
            if damage := archive_damage(file):
                return f"is damaged: {damage}", {}
            file.seek(0)
            content = torch.load(file, map_location=map_location, weights_only=True)
            size = os.fstat(file.fileno()).st_size
        if (unfolded := _unfolded(content)) > UNFOLDED * size + UNFOLDED_FREE:
            return f"is refused: its {size:,} bytes unfold to tensors of {unfolded:,}", {}
    except UntrustedFileError as error:
        return f"is refused: {error.reason}", {}
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it names {found[1]}" if found else "it is no plain data"
        return f"is refused: {what}, and only tensors in plain containers are read (weights_only)", {}
    except OSError:
        raise
    except Exception as error:  # an archive of anything else raises nearly anything
        return f"is damaged or no checkpoint: {' '.join([type(error).__name__, *str(error).splitlines()[:1]])}", {}
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        return "is no checkpoint of a run: it has no state_dict; weights alone go to models.<Name>.pretrained", {}
    if "pytorch-lightning_version" not in content:
        return "is no checkpoint of a run: it was not written by Lightning", {}
    return "", content


def _unfolded(content: Any) -> int:
    """Bytes of all tensors of a checkpoint, if each had its own."""
    total, seen, left = 0, set[int](), [content]
    while left:
        node = left.pop()
        if isinstance(node, torch.Tensor):
            total += node.numel() * node.element_size()
        elif isinstance(node, (Mapping, list, tuple, set)) and id(node) not in seen:
            seen.add(id(node))
            left += node.values() if isinstance(node, Mapping) else node
    return total


def _offer(path: Path) -> str:
    """The newest other checkpoint beside ``path``, as what to say on the command line: each is read as a whole."""
    others = [other for other in _newest_first(path.parent) if other != path]
    other = next((other for other in others[:_OFFERED] if not _read(other, "cpu")[0]), None)
    if other is None and len(others) > _OFFERED:
        return f"; of the {len(others)} others in {path.parent} the newest {_OFFERED} are not readable either"
    if other is None:
        return f"; no other readable checkpoint is in {path.parent}"
    shown = str(other) if re.fullmatch(r"[\w./-]+", str(other)) else f"'{other}'"
    return f"; the newest readable one beside it: ckpt_path={shown}"


def _local(path: _Path) -> Path:
    text = os.fspath(path)
    text = text.removeprefix("file://")
    if is_address(text):
        raise CheckpointError(f"checkpoints are local files, got {text}; take Lightning's TorchCheckpointIO for it")
    return Path(text)


_PLAIN = (
    torch.Tensor, torch.Size, torch.dtype, torch.device,
    str, bytes, int, float, complex, bool, type(None),
)  # fmt: skip
_CONTAINERS = (dict, OrderedDict, Counter, defaultdict, list, tuple, set)


def _foreign(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Where in a checkpoint something is neither a tensor nor plain, and of which class."""
    if isinstance(node, Mapping) and type(node) in _CONTAINERS:
        for key, value in node.items():
            yield from _foreign(key, f"the key {key!r} of {place or 'the checkpoint'}")
            yield from _foreign(value, f"{place}.{key}" if place else str(key))
    elif type(node) in _CONTAINERS:
        for number, value in enumerate(node):
            yield from _foreign(value, f"{place}[{number}]")
    elif type(node) not in _PLAIN and type(node) is not torch.nn.Parameter:
        yield place, f"{type(node).__module__}.{type(node).__qualname__}"


class _Sink:
    """What ``torch.save`` writes to. An error waits until the archive is done: thrown into C++ it ends the process."""

    def __init__(self, file: BinaryIO) -> None:
        self._write: Callable[[Any], int] = file.write
        self._flush = file.flush
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        if self._error is None:
            try:
                self._flush()
            except OSError as error:
                self._error = error

    def finish(self) -> None:
        self.flush()
        if self._error is not None:
            raise self._error
