"""Python programs of the tests, each in a process of its own that is forked from one that has imported everything.

A fresh interpreter spends seven CPU seconds on imports before a command does anything. :func:`run` and :func:`start`
take what would follow ``python`` on a command line; the process is the same, but for its imports. What a program starts
in turn (Lightning's launcher, torchrun, a data loader's workers) is as real as ever.

As a program this file is the server, one for all workers of a test run: it reads the folders of commands from a named
pipe, and lives as long as the process that started the workers.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

# The rooms of the commands, not their doors: `-m` warns of a module that stands in sys.modules already.
PRELOADED = (
    "lightning", "hydra", "torchvision", "rich.console", "safetensors.torch", "lit_distill.callbacks",
    "lit_distill.data", "lit_distill.inference", "lit_distill.losses", "lit_distill.models",
    "lit_distill.training.train",
)  # fmt: skip


class Process:
    """A program that runs; its exit code is negative for a signal that ended it, as :mod:`subprocess` has it."""

    def __init__(self, arguments: Sequence[str | Path], cwd: Path | None, env: Mapping[str, str]) -> None:
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._outputs = [folder / "stdout", folder / "stderr"]
        for output in self._outputs:
            output.touch()
        os.mkfifo(folder / "status")
        command = {"arguments": self.args, "cwd": str(cwd or Path.cwd()), "env": dict(env), "folder": str(folder)}
        (folder / "command").write_text(json.dumps(command))
        os.write(_server(), f"{folder}\n".encode())  # one write: lines of several workers stay whole
        self._status = (folder / "status").open()
        self.pid = int(self._status.readline())

    def poll(self, timeout: float = 0.0) -> int | None:
        """The exit code, or None where it has not ended within ``timeout`` seconds."""
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def kill(self) -> None:
        """End it by SIGKILL, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has written to its two outputs by its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended within ``timeout`` seconds, and is killed.
        """
        code = self.poll(timeout)
        if code is None:
            self.kill()
            self.poll(60)
        stdout, stderr = (output.read_text() for output in self._outputs)
        self._folder.cleanup()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout, stdout, stderr)
        return stdout, stderr


def start(arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Process:
    """Start ``python *arguments`` and do not wait for it.

    Args:
        arguments: ``["-m", module, ...]`` or ``[file, ...]``.
        cwd: folder that it starts in.
        env: its whole environment.
    """
    return Process(arguments, cwd, {**(os.environ if env is None else env), "OMP_NUM_THREADS": "1"})


def run(
    arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run ``python *arguments`` to its end, as ``subprocess.run`` does with captured text."""
    process = start(arguments, cwd=cwd, env=env)
    outputs = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, *outputs)


def start_ranks(ranks: int, arguments: Sequence[str | Path], *, cwd: Path | None = None) -> list[Process]:
    """Start a program in processes that Lightning takes for the ranks of one machine, as torchrun and SLURM do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"NODE_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{**os.environ, **group, "LOCAL_RANK": str(rank)} if ranks > 1 else None for rank in range(ranks)]
    return [start(arguments, cwd=cwd, env=environment) for environment in environments]


def run_ranks(ranks: int, arguments: Sequence[str | Path], *, cwd: Path | None = None, timeout: float = 120) -> None:
    """Run a program as :func:`start_ranks` does, and assert that every rank succeeds.

    A rank that fails or takes too long ends the others.
    """
    processes = start_ranks(ranks, arguments, cwd=cwd)
    end = time.monotonic() + timeout
    while any(process.poll(0.05) is None for process in processes):
        if time.monotonic() > end or any(process.returncode for process in processes):
            for process in processes:
                process.kill()
    outputs = [process.communicate(60) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * ranks, "\n".join([f"exit codes {codes}", *(errors[-3000:] for _, errors in outputs)])


@cache
def _server() -> int:
    """Where folders of commands are written to; whoever comes first starts the server."""
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    pipe = Path(tempfile.gettempdir(), f"lit-distill-{os.environ.get('PYTEST_XDIST_TESTRUNUID', owner)}")
    with Path(f"{pipe}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not pipe.exists():
            os.mkfifo(pipe)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.Popen([sys.executable, __file__, pipe, str(owner)], stdin=subprocess.DEVNULL, env=environment)
    return os.open(pipe, os.O_RDWR)  # which waits for nobody


def _serve(pipe: Path, owner: int) -> None:
    """Fork a process a command, until the owner of the tests has ended."""
    gc.disable()  # imports leave no garbage
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # what is collected in no child is shared with all
    gc.enable()
    for folder in _folders(pipe, owner):
        command: dict[str, Any] = json.loads(Path(folder, "command").read_text())
        if os.fork() == 0:  # who waits for the program, so that the next command need not
            program = os.fork()
            if program == 0:
                _become(**command)
            with Path(command["folder"], "status").open("w") as status:
                print(program, file=status, flush=True)
                print(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]), file=status, flush=True)
            os._exit(0)
        while _ended():
            pass
    os._exit(0)  # without taking apart what was imported


def _folders(pipe: Path, owner: int) -> Iterator[str]:
    """The lines of a pipe, until a process has ended."""
    commands, text = os.open(pipe, os.O_RDWR), ""
    while True:
        while not select.select([commands], [], [], 1.0)[0]:
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                pipe.unlink()
                Path(f"{pipe}.lock").unlink()
                return
        *whole, text = (text + os.read(commands, 4096).decode()).split("\n")
        yield from whole


def _ended() -> bool:
    """Whether a process that has waited for a program was there to be buried."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _become(arguments: list[str], cwd: str, env: dict[str, str], folder: str) -> NoReturn:
    """Be ``python *arguments``, to the end of this process.

    It ends as an interpreter does, but for taking apart what was imported, which costs two CPU seconds.
    """
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    code: object = 0
    try:
        _execute(arguments, cwd, env.get("PYTHONPATH", ""))
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # it ends the pools of threads, which joining waits for in vain
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _execute(arguments: list[str], cwd: str, python_path: str) -> None:
    """Run a module or a file as the main program."""
    paths = [path for path in python_path.split(os.pathsep) if path and path not in sys.path]
    if arguments[0] == "-m":
        sys.path[:1] = [cwd, *paths]
        sys.argv[:] = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:1] = [str(Path(arguments[0]).resolve().parent), *paths]
        sys.argv[:] = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
