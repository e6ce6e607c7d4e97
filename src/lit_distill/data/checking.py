"""Looks at many videos in worker processes: a file that takes a worker down is one more bad file."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import NamedTuple

import torch

from lit_distill.data.catalogue.quarantine import reason_for
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.video_index import Check, Stamp
from lit_distill.data.decoding.layout import VideoError, VideoLayout
from lit_distill.data.sources import Source

_AHEAD = 4  # jobs a worker


class Job(NamedTuple):
    """A video to look at, and what it is read from: a bare source, since each job takes it to a worker."""

    sample: Sample
    source: Source
    stamp: Stamp | None = None
    check: Check = "headers"


class Checked(NamedTuple):
    """What looking at a video gave: its layout where it has one, or what is wrong with it."""

    name: str
    layout: VideoLayout | None
    reason: str = ""
    stamp: Stamp | None = None


def check(job: Job) -> Checked:
    """Look at one video; what is wrong with it is in the result."""
    name = job.sample.name
    try:
        return Checked(name, job.source.check(job.sample, job.check), stamp=job.stamp)
    except VideoError as error:
        return Checked(name, None, reason_for(name, error.path, error.reason))


def check_all(jobs: Sequence[Job], *, workers: int) -> Iterator[Checked]:
    """Look at many videos.

    A worker that ends without a word (a crash within the decoder, no memory) takes its pool along: the videos then
    under way are looked at one by one, each in a process of its own, and the one that ends that too is bad.

    With 0 workers it is this process that looks. Results come in any order.
    """
    left = iter(jobs)
    if workers == 0:
        yield from map(check, left)
        return
    context = _context()
    broken = True
    while broken:
        running: dict[Future[Checked], Job] = {}
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
        broken = False
        try:
            while not broken:
                for job in left:
                    running[pool.submit(check, job)] = job
                    if len(running) >= _AHEAD * workers:
                        break
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    if isinstance(future.exception(), BrokenProcessPool):
                        broken = True
                    else:
                        del running[future]
                        yield future.result()
        except BrokenProcessPool:  # from submit
            broken = True
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for job in running.values():
            yield _check_alone(job, context)


def _check_alone(job: Job, context: BaseContext) -> Checked:
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
        try:
            return pool.submit(check, job).result()
        except BrokenProcessPool:
            return Checked(
                job.sample.name, None, "reading it ended its process (a crash within the decoder, or no memory)"
            )


def _context() -> BaseContext:
    """Workers are forked from a clean process that has imported this module, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    torch.set_num_threads(1)
