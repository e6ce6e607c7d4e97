"""Writers that end in the middle: forked from one warm process, so that nothing is imported again.

`python -m faults.dying_writers <folder> <number>`, run by test_checkpoints.py, prints the counts of each way to end as
JSON.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint

from faults import tiny
from lit_distill import _files
from lit_distill._command.command import conf_dir
from lit_distill.checkpoints import read_checkpoint, readable_checkpoints, write_checkpoint


def checkpoint(step: int) -> dict[str, Any]:
    """What Lightning hands over: a state dict, an optimizer's state, plain figures."""
    torch.manual_seed(step)
    student = tiny.net()
    optimizer = torch.optim.Adam(student.parameters())
    student(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    return {
        "global_step": step,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": student.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }


def fork(work: Callable[[], None]) -> int:
    """The wait status of a child that did ``work``; 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang is none of the outcomes
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFile(io.FileIO):
    """A file whose process is killed when so many bytes are in it."""

    left = 0

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        if len(data) > DyingFile.left:
            super().write(data[: DyingFile.left])
            die()
        DyingFile.left -= len(data)
        return super().write(data)


@contextmanager
def killed_at(event: int, look: Callable[[], None] = lambda: None) -> Iterator[list[str]]:
    """Kill this process before or after its ``event``-th call that changes or synchronises a file.

    -1 only counts. ``look`` is called wherever a process could be killed.
    """
    calls: list[str] = []
    looking = False

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal looking
            if looking:
                return function(*arguments, **named)
            for when in ("before", "after"):
                calls.append(f"{when} {name}")
                looking = True
                look()
                looking = False
                if len(calls) - 1 == event:
                    die()
                if when == "before":
                    result = function(*arguments, **named)
            return result

        return call

    names = ("fsync", "replace", "unlink", "open")
    kept = {name: getattr(os, name) for name in names}
    for name in names:
        setattr(os, name, wrapped(name, kept[name]))
    try:
        yield calls
    finally:
        for name, function in kept.items():
            setattr(os, name, function)


def bytes_written(folder: Path, number: int) -> dict[str, Any]:
    """SIGKILL after k bytes of the temporary file, for ``number`` values of k; a kill costs a tenth of a second."""
    path = folder / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    old, after = path.read_bytes(), checkpoint(2)
    size = len(old)
    offsets = sorted(random.Random(0).sample(range(size), number))
    survived, killed = 0, 0

    def work() -> None:
        vars(_files)["create_file"] = lambda path, *, private: DyingFile(path, "x")
        write_checkpoint(after, path)

    for offset in offsets:
        DyingFile.left = offset
        killed += fork(work) == signal.SIGKILL
        read_checkpoint(path)
        survived += path.read_bytes() == old
    left = len(list(folder.iterdir()))
    write_checkpoint(after, path)  # the next writer clears up
    return {
        "tried": len(offsets),
        "killed": killed,
        "survived": survived,
        "left": left,
        "after": len(os.listdir(folder)),
    }


def calls(folder: Path, _: int) -> dict[str, Any]:
    """SIGKILL before and after every call that changes or synchronises a file."""
    path, after = folder / "last.ckpt", checkpoint(2)
    write_checkpoint(checkpoint(1), path)
    with killed_at(-1) as events:
        write_checkpoint(after, folder / "count.ckpt")
    tried, survived = len(events), 0
    for event in range(tried):
        write_checkpoint(checkpoint(1), path)

        def work(event: int = event) -> None:
            with killed_at(event):
                write_checkpoint(after, path)

        killed = fork(work) == signal.SIGKILL
        replaced = event > events.index("before replace")
        survived += killed and read_checkpoint(path)["global_step"] == (2 if replaced else 1)
    return {"tried": tried, "survived": survived}


def limit(folder: Path, number: int) -> dict[str, Any]:
    """No file may be longer than k bytes: a failed write, not a kill."""
    path = folder / "last.ckpt"
    write_checkpoint(checkpoint(1), path)
    old, after = path.read_bytes(), checkpoint(2)
    offsets = sorted(random.Random(1).sample(range(len(old)), min(number, 500)))
    survived = 0
    for offset in offsets:

        def work(offset: int = offset) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (offset, resource.RLIM_INFINITY))
            try:
                write_checkpoint(after, path)
            except OSError as error:
                if error.errno == errno.EFBIG and str(path) in str(error) and "untouched" in str(error):
                    return
                raise
            raise AssertionError("it was written past the limit")

        ended = fork(work) == 0
        read_checkpoint(path)
        survived += ended and path.read_bytes() == old and os.listdir(folder) == ["last.ckpt"]
    return {"tried": len(offsets), "survived": survived}


def run(folder: Path, number: int) -> dict[str, Any]:
    """SIGKILL at such calls of a training with the command's own callbacks and one that deletes.

    At each call there must be a good checkpoint; ``number`` / 2 of them are killed, as each kill costs a training.
    """
    warnings.simplefilter("ignore")

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=["experiment=dml_pptsmv2", "run_dir=none"])

    def fit(place: Path) -> None:
        config.run_dir = str(place)
        callbacks: list[Any] = [instantiate(config.callbacks[name]) for name in ("best", "last")]
        callbacks.append(ModelCheckpoint(dirpath=place / "checkpoints", filename="{step}", every_n_train_steps=3))
        fit = tiny.trainer(place, max_epochs=2, enable_checkpointing=True, callbacks=callbacks)
        fit.fit(tiny.module(), tiny.loader(), tiny.loader())

    stood: list[bool] = []
    with killed_at(-1, lambda: stood.append(any(readable_checkpoints(folder / "whole/checkpoints")))) as events:
        fit(folder / "whole")
    first = events.index("after replace")  # from here on there must always be a good one
    tried, survived, damaged = 0, 0, 0
    chosen = random.Random(2).sample(range(first, len(events)), min(number // 2, len(events) - first))
    for event in chosen:
        place = folder / f"killed{event}"

        def work(event: int = event, place: Path = place) -> None:
            with killed_at(event):
                fit(place)

        tried += fork(work) == signal.SIGKILL
        found = list((place / "checkpoints").glob("*.ckpt"))
        good = list(readable_checkpoints(place / "checkpoints"))
        survived += bool(good)
        damaged += len(found) - len(good)
    return {
        "tried": tried,
        "chosen": len(chosen),
        "survived": survived,
        "damaged": damaged,
        "calls": len(events) - first,
        "stood": sum(stood[first:]),
    }


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)  # threads do not come along into a fork
    counts = {}
    for way in (bytes_written, calls, limit, run):
        (folder / way.__name__).mkdir(parents=True)
        counts[way.__name__] = way(folder / way.__name__, number)
    print(json.dumps(counts))
