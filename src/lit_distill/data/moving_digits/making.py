"""Makes the embedded data set on disk: whole or not at all, once for each specification."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from lit_distill._cores import available_cores
from lit_distill._files import CACHE_VARIABLE, cache_root
from lit_distill._screen import Screen
from lit_distill.data.catalogue.counting import counting
from lit_distill.data.moving_digits import rendering as _rendering
from lit_distill.data.moving_digits.rendering import RENDERING, SPLITS, DigitsSpec, Sources, choose_codec
from lit_distill.untrusted.budgets import TEXT_BYTES
from lit_distill.untrusted.opening import private_folder, read_untrusted

MANIFEST: Final = "manifest.json"
CLASS_NAMES: Final = "class_names.txt"

_START: Final = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_WORKER_FILES: Final = ("job.json", "sources.npz")
_CLIPS_A_WORKER: Final = 16  # fewer are not worth another interpreter
_BYTES_A_PIXEL: Final = 0.25  # of video; 0.15 were measured
_ABANDONED_AFTER: Final = 24 * 3600.0


def set_folder(spec: DigitsSpec, root: Path) -> Path:
    """The folder of a specification's set, named by its hash: another specification is another folder."""
    return root / f"moving_digits-{_spec_hash(spec)[:12]}"


def make(spec: DigitsSpec, root: Path, *, workers: int | None = None, console: Console | None = None) -> Path:
    """Return the folder of the set, making it first where it is missing or damaged.

    The clips are made in a temporary folder beside, which is renamed when all is there: an interrupted making leaves
    nothing that could be taken for a set. Where two processes make at once, the later one uses the earlier one's.

    Args:
        spec: what to make; the same specification gives the same files, however many workers make them.
        root: the folder to make the set's folder in.
        workers: number of processes; by default one for each available CPU.
        console: where progress is shown; the standard error by default.

    Raises:
        OSError: when the folder cannot be written or its disk is full.
        ModuleNotFoundError: when scikit-learn, which ships the digits, is missing.
    """
    console = console or Screen(stderr=True)
    folder = set_folder(spec, root)
    fault = find_fault(folder, spec)
    if fault is None:
        return folder
    with _clear_errors(root):
        if root == cache_root():
            private_folder(root)
        root.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            console.print(f"moving_digits: {folder} is damaged ({fault}) and is made again", highlight=False)
            _discard(folder)
        _discard_abandoned(root)
        _check_room(spec, root)
        temporary = root / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            _fill(temporary, spec, workers or available_cores(), console)
            _publish(temporary, folder, spec)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def find_fault(folder: Path, spec: DigitsSpec) -> str | None:
    """What keeps a folder from being the whole set of a specification, or None; only sizes of files are looked at."""
    try:
        manifest = json.loads(read_untrusted(folder / MANIFEST, what="a manifest", limit=TEXT_BYTES))
        if manifest["spec_sha256"] != _spec_hash(spec):
            return f"{MANIFEST} is of another specification"
        files = manifest["files"]
        if sum(name.endswith(".mp4") for name in files) != len(spec.jobs):
            return f"{MANIFEST} lists another number of clips"
        for name, (size, _) in files.items():
            if (folder / name).stat().st_size != size:
                return f"{name} has another size"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except NotADirectoryError:
        return "it is no folder"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    return None


def load_sources() -> Sources:
    """The digits and photographs that scikit-learn ships."""
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the embedded data set is made from the handwritten digits that scikit-learn ships, which is missing: "
            "pip install 'lit-distill[digits]' (the making alone needs it)"
        ) from error
    digits = load_digits()
    photos = tuple(load_sample_image(name) for name in ("china.jpg", "flower.jpg"))
    return Sources((digits.images / 16).astype("float32"), digits.target.astype("int64"), photos)


def _spec_fields(spec: DigitsSpec) -> dict[str, Any]:
    return {"rendering": RENDERING, **dataclasses.asdict(spec)}


def _spec_hash(spec: DigitsSpec) -> str:
    return hashlib.sha256(json.dumps(_spec_fields(spec), sort_keys=True).encode()).hexdigest()


def _fill(folder: Path, spec: DigitsSpec, workers: int, console: Console) -> None:
    """Make all files of the set in an empty folder."""
    codec = choose_codec()
    load_sources().save(folder / "sources.npz")
    (folder / "job.json").write_text(json.dumps({"spec": dataclasses.asdict(spec), "codec": codec}))
    for split in SPLITS:
        for name in spec.class_names:
            (folder / split / name).mkdir(parents=True)
    files = _run_workers(folder, spec, min(workers, -(-len(spec.jobs) // _CLIPS_A_WORKER)), console)
    for name, text in _lists(spec).items():
        content = text.encode()
        (folder / name).write_bytes(content)
        files[name] = (len(content), hashlib.sha256(content).hexdigest())
    manifest = {
        "spec": _spec_fields(spec),
        "spec_sha256": _spec_hash(spec),
        "codec": codec,
        "sources": "scikit-learn: load_digits, load_sample_image",
        "versions": {name: version(name) for name in ("lit-distill", "av", "numpy", "scikit-learn")},
        "files": dict(sorted(files.items())),
    }
    for name in _WORKER_FILES:
        (folder / name).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _lists(spec: DigitsSpec) -> Mapping[str, str]:
    """The text files beside the clips: a list ``path label`` for each split, and the names of the classes."""
    lists = {f"{split}.txt": "" for split in SPLITS}
    for split, index in spec.jobs:
        lists[f"{split}.txt"] += f"{spec.file(split, index)} {spec.label(index)}\n"
    return {**lists, CLASS_NAMES: "".join(f"{name}\n" for name in spec.class_names)}


def _run_workers(folder: Path, spec: DigitsSpec, workers: int, console: Console) -> dict[str, tuple[int, str]]:
    """Let worker processes make the clips; size and SHA-256 of each file by its relative path."""
    program = [sys.executable, "-c", _START, _rendering.__file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # All workers write short lines into one pipe, which keeps each whole; it ends when the last of them has ended.
    read, write = os.pipe()
    started: list[subprocess.Popen[bytes]] = []
    files: dict[str, tuple[int, str]] = {}
    with (
        os.fdopen(read, encoding="utf-8") as lines,
        counting(len(spec.jobs), console, "making moving_digits", "clips") as advance,
    ):
        try:
            try:
                for worker in range(workers):
                    arguments = [*program, str(worker), str(workers)]
                    started.append(subprocess.Popen(arguments, env=environment, stdin=subprocess.DEVNULL, stdout=write))
            finally:
                os.close(write)
            for line in lines:
                made = json.loads(line)
                if isinstance(made, dict):
                    raise OSError(made["error"])
                name, size, digest = made
                files[name] = (size, digest)
                advance()
        finally:
            for process in started:
                process.kill()
                process.wait()
    if len(files) != len(spec.jobs):
        raise RuntimeError(
            f"making the embedded data set: the workers ended after {len(files)} of {len(spec.jobs)} clips"
        )
    return files


def _publish(temporary: Path, folder: Path, spec: DigitsSpec) -> None:
    """Rename a finished folder into place, unless another process was first."""
    for _ in range(3):
        try:
            temporary.rename(folder)
            return
        except OSError:
            if find_fault(folder, spec) is None:
                return
            if not folder.exists():
                raise
            _discard(folder)
    raise OSError(f"{folder} is written by another program")


def _discard(folder: Path) -> None:
    """Remove a folder at one stroke for other processes: renamed first, deleted then."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return  # another process was first
    if doomed.is_dir():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink()


def _discard_abandoned(root: Path) -> None:
    """Remove the temporary folders of makings that were killed long ago."""
    for folder in root.glob(".moving_digits-*"):
        if time.time() - folder.lstat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(folder, ignore_errors=True)


def _check_room(spec: DigitsSpec, root: Path) -> None:
    needed = len(spec.jobs) * spec.frames * spec.side**2 * _BYTES_A_PIXEL
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OSError(f"about {needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free")


@contextmanager
def _clear_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot make the embedded data set in {root}: {error.strerror or error}; "
            f"name a writable folder with room by data.root=… or {CACHE_VARIABLE}"
        ) from error
