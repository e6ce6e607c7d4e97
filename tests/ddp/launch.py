"""Run a function on several ranks of one machine, each in a process of its own, over gloo."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

TIMEOUT = datetime.timedelta(minutes=5)


def run_on_ranks(function: Callable[..., object], *arguments: Any, world_size: int = 2) -> list[Any]:
    """Call ``function(rank, *arguments)`` on every rank within an initialized gloo group.

    The processes are spawned, so ``function`` must be importable (at the top of a module below ``tests/``) and its
    arguments must pickle; it returns tensors, numbers, strings or containers of those. An exception on a rank is raised
    here with its traceback.

    Returns:
        What each rank returned, in the order of the ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world_size, folder, function, arguments), nprocs=world_size)  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # A file instead of a port: nothing to collide with when test processes run side by side.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        torch.save(function(rank, *arguments), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
