"""Run a function on several ranks of one machine, each in a process of its own, over gloo."""

from __future__ import annotations

import datetime
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import processes

TIMEOUT = datetime.timedelta(minutes=5)


def run_on_ranks(function: Callable[..., object], *arguments: Any, world_size: int = 2) -> list[Any]:
    """Call ``function(rank, *arguments)`` on every rank within an initialized gloo group.

    ``function`` must be importable (at the top of a module below ``tests/``) and its arguments must pickle; it returns
    tensors, numbers, strings or containers of those. An exception on a rank fails the assertion here that shows it.

    Returns:
        What each rank returned, in the order of the ranks.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").write_bytes(pickle.dumps((function, arguments)))
        processes.run_ranks(world_size, ["-m", "ddp.launch", folder], cwd=Path(__file__).parents[1])
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(folder: Path, rank: int, world_size: int) -> None:
    function, arguments = pickle.loads((folder / "work").read_bytes())  # written by this file, a moment ago
    # A file instead of a port: nothing to collide with when test processes run side by side.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        torch.save(function(rank, *arguments), folder / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # pytest names a test outside of packages from there
    _rank(Path(sys.argv[1]), int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
