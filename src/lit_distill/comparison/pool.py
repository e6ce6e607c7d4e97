"""Runs of `train` and `test` as processes, several at a time: each goes on where it was, one that fails ends alone."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch

from lit_distill.runs.names import LOCK_FILE
from lit_distill.runs.resume import environment_of_other_run

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nothing then keeps two comparisons apart
    fcntl = None  # type: ignore[assignment]

_SHOWN = 300  # characters of an error


@dataclass(frozen=True)
class Job:
    """One after another, some commands; the first that fails ends it.

    Attributes:
        name: for the user.
        commands: arguments behind ``python -m``, each.
        log: file that gets what they say; appended to.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path


@dataclass
class Pool:
    """Runs jobs, ``jobs`` at a time.

    A job's processes are sessions of their own, so that Ctrl-C reaches the pool alone: it then sends SIGTERM to each
    once, by which `train` ends with a checkpoint, and waits. A second Ctrl-C kills them.

    Attributes:
        jobs: how many at a time.
        threads: of each process.
        devices: GPUs, given to the places in turn; 0 for none.
        keep_open: descriptor that the processes inherit, such as a lock.
    """

    jobs: int
    threads: int
    devices: int = 0
    keep_open: int | None = None
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set, init=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False)
    _ending: bool = field(default=False, init=False)

    def run(self, jobs: Sequence[Job], *, done: Callable[[Job, str], None]) -> None:
        """Run them all.

        Args:
            jobs: begun in this order.
            done: called in this thread when a job has ended, with what went wrong or an empty text.

        Raises:
            KeyboardInterrupt: a signal came; all processes have ended.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[Job, str]] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        places = [
            threading.Thread(target=self._work, args=(place, waiting, ended), daemon=True)
            for place in range(min(self.jobs, len(jobs)))
        ]
        self._ending = False
        with _terminated_as_interrupted() as came:
            try:
                for place in places:
                    place.start()
                for _ in jobs:
                    done(*_get(ended, came))
            except BaseException:  # Ctrl-C mostly; whatever it is, nothing is left running
                self._end(places)
                raise

    def _work(self, place: int, waiting: queue.SimpleQueue[Job], ended: queue.SimpleQueue[tuple[Job, str]]) -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                fault = self._run(job, place)
            except OSError as error:
                fault = str(error)
            ended.put((job, fault))

    def _run(self, job: Job, place: int) -> str:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        for command in job.commands:
            with job.log.open("ab") as log:
                start = log.tell()
                code = self._call([sys.executable, "-m", *command], log, place)
            if code:
                return _told(job.log, start) or f"python -m {command[0]} ended with {code}"
        return ""

    def _call(self, command: Sequence[str], log: IO[bytes], place: int) -> int:
        kept = () if self.keep_open is None else (self.keep_open,)
        with self._guard:
            if self._ending:
                return 1
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=kept,
                env=self.environment(place), start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._guard:
                self._running.discard(process)

    def environment(self, place: int) -> dict[str, str]:
        """Of a process at a place: its threads, and its GPU where there are some and the user has not said which."""
        environment = {**environment_of_other_run(), "OMP_NUM_THREADS": str(self.threads)}
        if self.devices and "CUDA_VISIBLE_DEVICES" not in environment:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % self.devices)
        return environment

    def _end(self, places: Sequence[threading.Thread]) -> None:
        with self._guard:
            self._ending = True
        self._signal(signal.SIGTERM)
        while any(place.is_alive() for place in places):
            try:
                for place in places:
                    place.join(timeout=0.1)
            except KeyboardInterrupt:
                self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._guard:
            running = list(self._running)
        for process in running:
            with suppress(ProcessLookupError):
                process.send_signal(number)


def places(jobs: int | None) -> tuple[int, int, int]:
    """How many runs at a time, the threads of each, and how many GPUs there are.

    Args:
        jobs: as asked for; None for one a GPU or, without, one a core.

    Raises:
        ValueError: it is below 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = torch.cuda.device_count()
    if jobs is not None and (isinstance(jobs, bool) or jobs < 1):
        raise ValueError(f"jobs is how many runs at a time, at least 1, came {jobs}")
    jobs = jobs or devices or cores
    return jobs, max(1, cores // jobs), devices


@contextmanager
def alone_in(folder: Path) -> Iterator[int | None]:
    """Hold a folder as long as the block, and every process that inherits the descriptor, lasts.

    Raises:
        ValueError: another comparison, or a run that one left, works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield None
        return
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another comparison works in {folder}, or a run that one left: wait for it, end it, or give "
                "folder=<another>"
            ) from None
        yield file.fileno()


def _get(ended: queue.SimpleQueue[tuple[Job, str]], came: Sequence[int]) -> tuple[Job, str]:
    while not came:  # in steps: a wait without end would not be interrupted on all systems
        with suppress(queue.Empty):
            return ended.get(timeout=0.5)
    raise KeyboardInterrupt


@contextmanager
def _terminated_as_interrupted() -> Iterator[list[int]]:
    """SIGTERM is what Ctrl-C is, as long as the block lasts; nothing in threads, where handlers cannot be set.

    Gives a list of the signals that came. Python drops the exception of a handler that happens to run within a
    finalizer; who waits looks at the list too.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    taken = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        taken.append(signal.SIGINT)
    before: dict[signal.Signals, Any] = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(log: Path, start: int) -> str:
    """What a failed command says of itself: its line ``error: …``, or its last one."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:_SHOWN]
