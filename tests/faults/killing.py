"""Starts the server of resume_program.py, kills and resumes its runs, and compares what they leave."""

from __future__ import annotations

import json
import os
import random
import select
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import processes
from lit_distill.checkpoints import read_checkpoint

PROGRAM = Path(__file__).with_name("resume_program.py")
LONGEST_DELAY = 0.004  # seconds after an event: about a small step


class Server:
    """Runs commands of resume_program.py in processes of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        pipes = [Path(self._folder.name, name) for name in ("commands", "answers")]
        for pipe in pipes:
            os.mkfifo(pipe)
        self._process = processes.start([PROGRAM, *pipes])
        # Each end is open for both directions, so that no end waits for the other.
        self._commands, self._answers = (
            os.fdopen(os.open(pipe, os.O_RDWR), mode) for pipe, mode in zip(pipes, "wr", strict=True)
        )

    def run(self, folder: Path, scenario: str, *, workers: int = 0, resume: bool = True, **more: Any) -> dict[str, Any]:
        """One run from the last checkpoint, with what is to be sent to it; see :func:`resume_program.obey`."""
        folder.mkdir(parents=True, exist_ok=True)
        command = {"folder": str(folder), "scenario": scenario, "workers": workers, "resume": resume, **more}
        self._commands.write(json.dumps(command) + "\n")
        self._commands.flush()
        while not select.select([self._answers], [], [], 1.0)[0]:
            assert self._process.poll() is None, f"the server has ended: {self._process.communicate(1)}"
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._commands.close()
        self._process.communicate(timeout=30)
        self._answers.close()
        self._folder.cleanup()


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


@dataclass
class Outcome:
    """What a run that was killed again and again came to."""

    places: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    lost: int = 0
    repeated: int = 0


def kill_until_done(
    server: Server, folder: Path, reference: Path, scenario: str, *, kills: int, workers: Sequence[int], seed: int
) -> Outcome:
    """Kill a run by SIGKILL ``kills`` times at random places, each time resumed, then let it end and compare.

    Args:
        server: where it runs.
        folder: of the run.
        reference: folder of the same run, not interrupted.
        scenario: a key of SCENARIOS.
        kills: how often.
        workers: to choose from for each start.
        seed: of the places.
    """
    rng, outcome = random.Random(f"{scenario}/{seed}"), Outcome()
    while True:
        more: dict[str, Any] = {}
        if len(outcome.places) < kills:
            more = {"signal": "SIGKILL", "at": rng.randint(1, 60), "delay": rng.uniform(0, LONGEST_DELAY)}
        answer = server.run(folder, scenario, workers=rng.choice(workers), **more)
        if answer["sent"]:
            outcome.places.append(answer["place"])
        if answer["codes"] == [0] * len(answer["codes"]):
            break
        if -9 not in answer["codes"]:
            log = (folder / "log0.txt").read_text()
            raise AssertionError(f"{scenario}: {answer} after {outcome.places}\n{log[-3000:]}")
    outcome.differences = differences(reference, folder)
    outcome.lost, outcome.repeated = samples_lost_and_repeated(reference, folder)
    return outcome


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs between two finished runs: weights, optimizer, schedule, figures, samples, metrics.csv."""
    found = []
    for file in ("last.ckpt", "best.ckpt"):
        here, there = read_checkpoint(one / file), read_checkpoint(other / file)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "lit_distill"):
            found += [f"{file}:{part}{place}" for place in _differing(here[part], there[part])]
        callbacks = [{key: _without_paths(v) for key, v in c["callbacks"].items()} for c in (here, there)]
        found += [f"{file}:callbacks{place}" for place in _differing(callbacks[0], callbacks[1])]
    if (one / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    return found


def samples_lost_and_repeated(reference: Path, run: Path) -> tuple[int, int]:
    """Samples that the final weights should have seen and have not, and those seen more often than they should."""
    wanted, seen = (
        Counter((step[0], step[1], sample) for step in _seen(folder) for sample in step[2:])
        for folder in (reference, run)
    )
    lost, repeated = sum((wanted - seen).values()), sum((seen - wanted).values())
    for path in reference.glob("samples*.txt"):  # of every rank; a step done again must have had the same samples
        steps, again = set(path.read_text().splitlines()), set((run / path.name).read_text().splitlines())
        lost, repeated = lost + len(steps - again), repeated + len(again - steps)
    return lost, repeated


def _seen(folder: Path) -> list[list[int]]:
    steps: list[list[int]] = read_checkpoint(folder / "last.ckpt")["callbacks"]["Trained"]["seen"]
    return steps


def _without_paths(state: Any) -> Any:
    if isinstance(state, Mapping) and "best_model_path" in state:
        return {name: value for name, value in state.items() if "path" not in name and name != "best_k_models"}
    return state


def _differing(one: Any, other: Any, place: str = "") -> list[str]:
    if type(one) is not type(other):
        return [place]
    if isinstance(one, Mapping):
        if set(one) != set(other):
            return [f"{place}: {sorted(map(str, set(one) ^ set(other)))}"]
        return [found for key in one for found in _differing(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)}"]
        return [f for i, (a, b) in enumerate(zip(one, other, strict=True)) for f in _differing(a, b, f"{place}.{i}")]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
        return [] if same else [place]
    return [] if one == other else [f"{place}: {one} and {other}"]
