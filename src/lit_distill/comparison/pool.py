"""Runs of `train` and `test` as processes, several at a time: each resumes where it was, one that fails ends alone."""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lit_distill._cores import available_cores
from lit_distill._files import open_log
from lit_distill.runs.processes import fault_of, start_process, terminated_as_interrupted
from lit_distill.runs.resume import environment_of_other_run
from lit_distill.untrusted.opening import UntrustedFileError


@dataclass(frozen=True)
class Job:
    """Commands behind ``python -m``, one after another; the first that fails ends it."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    log: Path


@dataclass
class Pool:
    """Runs jobs, ``jobs`` at a time.

    Ctrl-C reaches the pool alone: it then sends SIGTERM to each process once, by which `train` ends with a checkpoint,
    and waits. A second Ctrl-C kills them.

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
        """Run them all, begun in this order.

        ``done`` is called in this thread when a job has ended, with what went wrong or an empty text.

        Raises:
            KeyboardInterrupt: a signal was received; all processes have ended.
        """
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(self.jobs):
            free.put(place)
        self._ending = False
        with terminated_as_interrupted() as received, ThreadPoolExecutor(self.jobs) as threads:
            futures: dict[Future[str], Job] = {}
            try:
                for job in jobs:
                    futures[threads.submit(self._run, job, free)] = job
                for future in _completed(futures, received):
                    done(futures[future], future.result())
            except BaseException:  # Ctrl-C mostly; whatever it is, nothing is left running
                self._end(threads, futures)
                raise

    def _run(self, job: Job, free: queue.SimpleQueue[int]) -> str:
        place = free.get()
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            for command in job.commands:
                with open_log(job.log) as log:
                    start = log.tell()
                    with self._guard:
                        if self._ending:
                            return "interrupted"
                        process = start_process(
                            command, log, environment=self.environment(place), keep_open=self.keep_open
                        )
                        self._running.add(process)
                    code = process.wait()
                    with self._guard:
                        self._running.discard(process)
                if code:
                    return fault_of(job.log, start, code)
        except (OSError, UntrustedFileError) as error:
            return str(error)
        finally:
            free.put(place)
        return ""

    def environment(self, place: int) -> dict[str, str]:
        """Of a process at a place: its threads, and its GPU where there are some and the user has not said which."""
        environment = {**environment_of_other_run(), "OMP_NUM_THREADS": str(self.threads)}
        if self.devices and "CUDA_VISIBLE_DEVICES" not in environment:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % self.devices)
        return environment

    def _end(self, threads: ThreadPoolExecutor, futures: Iterable[Future[str]]) -> None:
        with self._guard:
            self._ending = True
        threads.shutdown(wait=False, cancel_futures=True)
        self._signal(signal.SIGTERM)
        while left := [future for future in futures if not future.done()]:
            try:
                wait(left, timeout=0.1)
            except KeyboardInterrupt:
                self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._guard:
            running = list(self._running)
        for process in running:
            with suppress(ProcessLookupError):
                process.send_signal(number)


def places(jobs: int | None) -> tuple[int, int, int]:
    """How many runs at a time, the threads of each, and the GPUs; by default a run a GPU, else a core.

    Raises:
        ValueError: it is below 1.
    """
    cores = available_cores()
    devices = torch.cuda.device_count()
    if jobs is not None and (isinstance(jobs, bool) or jobs < 1):
        raise ValueError(f"jobs is how many runs at a time, at least 1, got {jobs}")
    jobs = jobs or devices or cores
    return jobs, max(1, cores // jobs), devices


def _completed(futures: Iterable[Future[str]], received: Sequence[int]) -> Iterator[Future[str]]:
    """Yield futures as they complete, until a signal is received whose exception may have been lost."""
    left = set(futures)
    while left:
        if received:
            raise KeyboardInterrupt
        # in steps: a wait without end would not be interrupted on all systems
        ended, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
        yield from ended
