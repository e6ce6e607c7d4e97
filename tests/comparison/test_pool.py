"""The pool of processes: several at a time, each with its log, one that fails alone, and all ended by one signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from lit_distill.comparison.pool import Job, Pool, _completed, places
from lit_distill.runs.processes import alone_in

PROGRAM = """
import os, signal, sys, time
what, folder = sys.argv[1], sys.argv[2]
if what == "say":
    print(os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "-"), *sys.argv[3:])
elif what == "fail":
    print("hello"); print("error: it is broken", file=sys.stderr); print("bye"); sys.exit(1)
elif what == "meet":  # ends once the other has begun: two at a time, or never
    open(f"{folder}/{sys.argv[3]}", "w").close()
    while not os.path.exists(f"{folder}/{sys.argv[4]}"): time.sleep(0.01)
elif what == "save":  # what train does: one signal saves and ends
    def end(number, frame):
        open(f"{folder}/saved", "a").write("x"); sys.exit(143)
    signal.signal(signal.SIGTERM, end)
    open(f"{folder}/begun", "w").close()
    while True: time.sleep(0.01)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "pool_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "pool_program"


def run(pool: Pool, *jobs: Job) -> dict[str, str]:
    found: dict[str, str] = {}
    pool.run(jobs, done=lambda job, fault: found.update({job.name: fault}))
    return found


def test_jobs_run_with_their_threads_and_tell_what_went_wrong(tmp_path: Path, program: str) -> None:
    where = str(tmp_path)
    jobs = [
        Job("good", ((program, "say", where, "one"), (program, "say", where, "two")), tmp_path / "a" / "good.log"),
        Job("bad", ((program, "fail", where), (program, "say", where, "never")), tmp_path / "bad.log"),
        Job("missing", (("no_such_module",),), tmp_path / "missing.log"),
    ]
    found = run(Pool(1, 3), *jobs)
    assert found["good"] == ""
    assert found["bad"] == "it is broken"
    assert "no_such_module" in found["missing"]
    assert (tmp_path / "a/good.log").read_text() == "3 - one\n3 - two\n"
    assert "never" not in (tmp_path / "bad.log").read_text()


def test_as_many_run_at_a_time_as_were_asked_for(tmp_path: Path, program: str) -> None:
    jobs = [
        Job("a", ((program, "meet", str(tmp_path), "a", "b"),), tmp_path / "a.log"),
        Job("b", ((program, "meet", str(tmp_path), "b", "a"),), tmp_path / "b.log"),
    ]
    assert run(Pool(2, 1), *jobs) == {"a": "", "b": ""}


def test_places_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pool = Pool(4, 1, devices=2)
    assert [pool.environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(4)] == ["0", "1", "0", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in Pool(4, 1).environment(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert pool.environment(1)["CUDA_VISIBLE_DEVICES"] == "5", "what the user says holds"


def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert places(None) == (8, 1, 0)
    assert places(3) == (3, 2, 0)
    assert places(20) == (20, 1, 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert places(None) == (2, 4, 2)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it: a program in the background of a shell is started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_process_save_once_and_begins_no_more(
    number: signal.Signals, tmp_path: Path, program: str, ctrl_c: None
) -> None:
    jobs = [
        Job("first", ((program, "save", str(tmp_path)), (program, "say", str(tmp_path), "never")), tmp_path / "1.log"),
        Job("second", ((program, "say", str(tmp_path), "never"),), tmp_path / "2.log"),
    ]

    def interrupt() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(Pool(1, 1), *jobs)
    assert (tmp_path / "saved").read_text() == "x"
    assert "never" not in "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_left_running_when_the_caller_fails(tmp_path: Path, program: str) -> None:
    def done(job: Job, fault: str) -> None:
        raise RuntimeError("no")

    jobs = [
        Job("short", ((program, "say", str(tmp_path), "x"),), tmp_path / "1.log"),
        Job("long", ((program, "save", str(tmp_path)),), tmp_path / "2.log"),
    ]
    pool = Pool(2, 1)
    with pytest.raises(RuntimeError, match="no"):
        pool.run(jobs, done=done)
    assert not pool._running


def test_a_folder_is_held_by_one_comparison_and_by_the_runs_that_it_left(tmp_path: Path) -> None:
    with alone_in(tmp_path) as lock:
        assert lock is not None
        with (
            pytest.raises(ValueError, match=r"another comparison or search works in .*folder=<another>"),
            alone_in(tmp_path),
        ):
            pass
        left = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[lock]
        )
    with pytest.raises(ValueError, match="or a run that one left"), alone_in(tmp_path):
        pass
    left.communicate(b"")
    with alone_in(tmp_path):
        pass


def test_a_signal_whose_exception_was_lost_ends_the_wait_all_the_same() -> None:
    with pytest.raises(KeyboardInterrupt):
        next(_completed([Future()], [signal.SIGTERM]))
