"""Runs as processes: started, ended by one signal, and alone in a folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from lit_distill._files import open_log
from lit_distill.runs.names import LOCK_FILE
from lit_distill.runs.resume import environment_of_other_run
from lit_distill.untrusted.budgets import TEXT_BYTES
from lit_distill.untrusted.opening import open_untrusted

try:
    import fcntl
except ModuleNotFoundError:  # Windows: nothing then keeps two commands apart
    fcntl = None  # type: ignore[assignment]

_SHOWN = 300  # characters of an error


def start_process(
    command: Sequence[str],
    log: IO[bytes],
    *,
    environment: Mapping[str, str] | None = None,
    keep_open: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``python -m <command>`` as another run, in a session that Ctrl-C does not reach.

    Its environment is by default this process's without the variables of a run. It inherits the descriptor
    ``keep_open``, such as that of :func:`alone_in`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        env=environment_of_other_run() if environment is None else environment,
        pass_fds=() if keep_open is None else (keep_open,), start_new_session=True,
    )  # fmt: skip


def fault_of(log: Path, start: int, code: int) -> str:
    """What a failed command says of itself: its line ``error: …``, or its last one, or its exit code."""
    with open_untrusted(log, what="a log") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read(TEXT_BYTES).decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1][:_SHOWN]


@contextmanager
def alone_in(folder: Path) -> Iterator[int | None]:
    """Hold a folder as long as the block, and every process that inherits the descriptor, lasts.

    Raises:
        ValueError: another command, or a run that one left, works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield None
        return
    with open_log(folder / LOCK_FILE) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another comparison or search works in {folder}, or a run that one left: wait for it, end it, or give "
                "folder=<another>"
            ) from None
        yield file.fileno()


@contextmanager
def terminated_as_interrupted() -> Iterator[list[int]]:
    """SIGTERM is what Ctrl-C is, as long as the block lasts; nothing in threads, where handlers cannot be set.

    Gives a list of the signals received. Python drops the exception of a handler that happens to run within a
    finalizer; who waits looks at the list too.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    taken = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        taken.append(signal.SIGINT)
    before: dict[signal.Signals, Any] = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
