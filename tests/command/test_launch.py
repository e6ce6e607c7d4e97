"""The name of a run folder: one for all processes of a job."""

from __future__ import annotations

import re

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is documented there

from lit_distill._command.launch import STARTED, share_start


@pytest.fixture
def agent() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def worker(agent: TCPStore, **more: str) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), **more,
    }  # fmt: skip


def test_the_first_process_of_torchrun_names_it_for_all_and_for_restarts(agent: TCPStore) -> None:
    first = worker(agent)
    share_start(first)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", first[STARTED])
    agent.set("lit_distill/started", "2020-01-01_00-00-00")  # as if long ago: a later clock has no say
    second = worker(agent)
    share_start(second)
    assert second[STARTED] == "2020-01-01_00-00-00"


def test_a_process_alone_asks_nobody(agent: TCPStore) -> None:
    for environment in (worker(agent, WORLD_SIZE="1", MASTER_PORT="1"), worker(agent, **{STARTED: "given"})):
        share_start(environment)
        assert environment[STARTED]
    plain: dict[str, str] = {}
    share_start(plain)
    assert plain == {}


def test_a_torchrun_without_a_store_wants_the_folder_named(agent: TCPStore) -> None:
    with pytest.raises(ValueError, match=r"hydra\.run\.dir"):
        share_start(worker(agent, TORCHELASTIC_USE_AGENT_STORE="False"))


def test_the_tasks_of_a_slurm_step_share_it() -> None:
    tasks = [{"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": p} for p in "01"]
    for task in tasks:
        share_start(task)
    assert {task[STARTED] for task in tasks} == {"slurm_17_0"}
    alone = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    share_start(alone)
    assert STARTED not in alone
