"""The same command line under Lightning's launcher and under torchrun, on one machine and as on two: one result."""

from __future__ import annotations

import csv
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented there

import processes

COMMAND = [
    "-m", "lit_distill.train", "experiment=dml_pptsmv2", "data=moving_digits_tiny", "data.batch_size=4", "seed=3",
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(command: list[str], folder: Path, cache: Path, **more: str) -> processes.Process:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "LIT_DISTILL_CACHE": str(cache), "PYTHONWARNINGS": "ignore", **more}
    return processes.start(command, cwd=folder, env=environment)


def finished(process: processes.Process) -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return output


def the_run(folder: Path) -> Path:
    folders = list((folder / "runs" / "dml_pptsmv2").iterdir())
    assert len(folders) == 1, "all processes write into one run folder"
    return folders[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def by_lightning(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("lightning")
    output = finished(start([*COMMAND, "trainer.devices=2"], folder, cache))
    assert output.count("trained 4 steps") == 1  # 32 clips, 2 processes of 4; printed by one of them
    return the_run(folder)


def test_two_processes_train_and_leave_one_run_folder(by_lightning: Path) -> None:
    assert json.loads((by_lightning / "results.json").read_text())["steps"] == 4
    assert (by_lightning / "student.safetensors").is_file()


def assert_equal_runs(run: Path, other: Path) -> None:
    files = [  # but for TensorBoard's, which have the time in their names
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
        for folder in (run, other)
    ]
    assert files[0] == files[1]
    state, wanted = (load_file(folder / "student.safetensors") for folder in (run, other))
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    rows = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (run, other)]
    assert rows[0] == rows[1]
    assert json.loads((run / "results.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_torchrun_gives_what_lightnings_launcher_gives(by_lightning: Path, cache: Path, tmp_path: Path) -> None:
    output = finished(
        start([*TORCHRUN, "--standalone", "--nproc_per_node=2", *COMMAND, "trainer.devices=2"], tmp_path, cache)
    )
    assert output.count("trained 4 steps") == 1
    assert_equal_runs(the_run(tmp_path), by_lightning)


def test_what_torchrun_says_of_two_machines_gives_what_one_gives(
    by_lightning: Path, cache: Path, tmp_path: Path
) -> None:
    """Two processes with the environment and the store of torchrun, without its agents, which import all again."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "ROLE_NAME": "default", "ROLE_WORLD_SIZE": "2", "WORLD_SIZE": "2",
        "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    ranks = [
        start(
            [*COMMAND, "trainer.devices=1", "trainer.num_nodes=2"], tmp_path, cache,
            **shared, RANK=str(node), GROUP_RANK=str(node), ROLE_RANK=str(node),
        )
        for node in range(2)
    ]  # fmt: skip
    assert sum(finished(rank).count("trained 4 steps") for rank in ranks) == 1
    assert_equal_runs(the_run(tmp_path), by_lightning)


@pytest.mark.slow  # what torchrun says to its processes is said to them above
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_machines_give_what_one_gives(rendezvous: str, by_lightning: Path, cache: Path, tmp_path: Path) -> None:
    port = free_port()
    launchers = []
    for node in range(2):
        where = ["--master_addr=127.0.0.1", f"--master_port={port}", f"--node_rank={node}"]
        if rendezvous == "c10d":
            where = ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=7"]
        nodes = ["--nnodes=2", "--nproc_per_node=1", *where]
        launchers.append(
            start([*TORCHRUN, *nodes, *COMMAND, "trainer.devices=1", "trainer.num_nodes=2"], tmp_path, cache)
        )
    for launcher in launchers:
        finished(launcher)
    assert_equal_runs(the_run(tmp_path), by_lightning)
