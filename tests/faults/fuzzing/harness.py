"""Tries damaged and hostile files in forked processes under limits, and counts how each ends.

A case is (target, number): the number seeds its changes, so that any of them can be made again:

    python -m faults.fuzzing.harness "lists" 17      # in tests/
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from faults.fuzzing.changes import PORT

MEMORY: Final = 2 << 30  # bytes of addresses that a process may add to those that it has before its first case
RESIDENT: Final = 300 << 20  # bytes of memory that one case may add
MESSAGE: Final = 2_000  # characters of an error
_CHUNK: Final = 20_000  # cases of one process
_SHARED: Final = 4  # numbers: the case at hand, when it began, how many gave a value, and a documented error
_WAIT: Final = 0.05

Case = Callable[[random.Random], object]
"""Makes one case and reads it: returns where it gives a value, raises a documented error where it is refused."""


@dataclass(frozen=True)
class Target:
    """What reads one kind of file.

    Attributes:
        kind: what it reads, as a line of docs/reliability.md names it.
        prepare: makes the honest files that cases are changed from, in a folder of its own; gives what runs a case.
        cases: of the long form.
        sample: cases of the short form.
        errors: those that are documented.
        seconds: CPU time that a case may take.
        resident: bytes of memory that a case may add.
        one_line: whether its errors are promised to be one line of printable text.
    """

    kind: str
    prepare: Callable[[Path], Case]
    cases: int
    sample: int
    errors: tuple[type[BaseException], ...] = (ValueError, OSError)
    seconds: float = 1.0
    resident: int = RESIDENT
    one_line: bool = True


@dataclass
class Count:
    """How the cases of a target ended.

    Attributes:
        values: those that gave a value.
        refused: those that ended in a documented error.
        faults: all others: case, kind and what was seen.
        seconds: CPU time of all.
    """

    values: int = 0
    refused: int = 0
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return self.values + self.refused + len(self.faults)

    def kinds(self) -> Counter[str]:
        return Counter(kind for _, kind, _ in self.faults)


class Canary:
    """Notes and prevents what no file may cause: a process, a connection, a library, a file changed outside the folder.

    An audit hook cannot be taken out again: it lives in a process of its own, and only acts while it is watching.
    """

    RUNS: Final = frozenset(
        ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
         "os.startfile", "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
         "urllib.Request", "ctypes.dlopen", "pickle.find_class", "webbrowser.open", "os.putenv")
    )  # fmt: skip
    CHANGES: Final = frozenset(
        ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
         "os.chown", "shutil.rmtree", "shutil.copyfile", "shutil.move", "os.utime", "os.setxattr")
    )  # fmt: skip
    WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.join(os.path.realpath(folder), "")
        self.seen: list[str] = []
        self.watching = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "open":
            refused = bool(arguments[2] & self.WRITES) and not self._are_inside(arguments[:1])
        else:
            refused = event in self.RUNS or (event in self.CHANGES and not self._are_inside(arguments))
        if refused:
            self.seen.append(f"{event} {arguments!r:.200}")
            raise PermissionError(f"the canary refuses {event}")

    def _are_inside(self, arguments: Sequence[Any]) -> bool:
        names = [os.fsdecode(path) for path in arguments if isinstance(path, (str, bytes, os.PathLike))]
        # of a link that is made or removed it is the place of the link that counts
        real = [os.path.join(os.path.realpath(os.path.dirname(name) or "."), os.path.basename(name)) for name in names]
        return all(path.startswith(self.folder) for path in real)


def fault_of(target: Target, error: BaseException) -> tuple[str, str] | None:
    """Kind and text of what is wrong with an error, None for a documented one."""
    text = f"{type(error).__name__}: {error}"
    cause: BaseException | None = error
    for _ in range(16):
        if cause is None:
            break
        # FFmpeg says that it "cannot allocate memory" for sizes that it refuses itself, which is as it should be
        if type(cause) is MemoryError or "can't allocate memory" in str(cause) or "bad_alloc" in str(cause):
            return "over its memory", text[:500]
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, AssertionError) or not isinstance(error, target.errors):
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = "" if where is None else f" at {where.tb_frame.f_code.co_qualname}:{where.tb_lineno}"
        return "another error", f"{text[:400]}{place}"
    said = str(error)
    if target.one_line and (not said.isprintable() or len(said) > MESSAGE):
        return "not one short line", ascii(text)[:500]
    return None


def run_case(target: Target, case: Case, number: int, canary: Canary) -> tuple[bool, str, str]:
    """Whether a case gave a value; and kind and text of its fault, empty where there is none."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    canary.seen.clear()
    value, fault = False, None
    chance = random.Random(number)
    canary.watching = True
    try:
        case(chance)
        value = True
    except BaseException as error:  # whatever is raised is what is looked at
        canary.watching = False
        fault = fault_of(target, error)
    canary.watching = False
    if canary.seen:
        fault = "touched what it must not", "; ".join(canary.seen[:3])
    elif (
        fault is None and (more := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before << 10) > target.resident
    ):
        fault = "over its memory", f"{more >> 20} MB"
    elif fault is None and (spent := time.process_time() - begun) > target.seconds:
        fault = "over its time", f"{spent:.2f} s"
    return value, *(fault or ("", ""))


def _warm(case: Case) -> None:
    """Run some cases before anybody looks: what is imported at its first use is no fault of a file."""
    for number in range(8):
        with suppress(Exception):
            case(random.Random(f"warm {number}"))


def _limit() -> None:
    """Two gigabytes more than this process has now, and no file larger than one."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit := pages * resource.getpagesize() + MEMORY, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _work(target: Target, folder: Path, numbers: range, state: memoryview[float], report: int) -> None:
    """The cases of one process: what is wrong goes through a pipe, the counts through shared memory."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with its parent
    faulthandler.disable()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)  # decoders print what they think of a file
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    os.chdir(folder)
    os.environ["LIT_DISTILL_CACHE"] = str(folder / "cache")
    tempfile.tempdir = str(folder)
    case = target.prepare(folder)
    canary = Canary(folder)
    _warm(case)
    _limit()
    for number in numbers:
        state[0], state[1] = number, time.monotonic()  # each of them at once: the other process reads them meanwhile
        value, kind, text = run_case(target, case, number, canary)
        if kind:
            os.write(report, json.dumps([number, kind, text]).encode() + b"\n")
        else:
            state[2 if value else 3] += 1
    state[0] = numbers.stop


class _Process:
    """A forked process at its cases."""

    def __init__(self, target: Target, scratch: Path, numbers: range, seconds: float) -> None:
        self.target, self.numbers, self.seconds = target, numbers, seconds
        self.folder = Path(tempfile.mkdtemp(dir=scratch))
        self._state = memoryview(mmap.mmap(-1, 8 * _SHARED)).cast("d")
        self._state[0], self._state[1] = numbers.start, time.monotonic() + 60  # a minute for its honest files
        self._read, write = os.pipe()
        self.process = os.fork()
        if not self.process:
            code = 1
            try:
                _work(target, self.folder, numbers, self._state, write)
                code = 0
            except BaseException as error:
                os.write(write, json.dumps([-1, "no honest files", repr(error)[:500]]).encode() + b"\n")
            finally:
                os._exit(code)
        os.close(write)
        os.set_blocking(self._read, False)
        self._text = b""

    def poll(self, count: Count) -> range | None:
        """What is left to do once it has ended, None as long as it runs."""
        self._receive()
        hangs = time.monotonic() - self._state[1] > self.seconds
        if hangs:
            os.kill(self.process, signal.SIGKILL)
        ended, status, usage = os.wait4(self.process, 0 if hangs else os.WNOHANG)
        if not ended:
            return None
        self._receive()
        os.close(self._read)
        number, values, refused = (int(self._state[place]) for place in (0, 2, 3))
        count.values, count.refused = count.values + values, count.refused + refused
        count.seconds += usage.ru_utime + usage.ru_stime
        count.faults += [(int(n), str(kind), str(text)) for n, kind, text in map(json.loads, self._text.splitlines())]
        if number == self.numbers.stop:
            return range(0)
        if count.faults and count.faults[-1][1] == "no honest files":
            raise RuntimeError(f"{self.target.kind}: {count.faults[-1][2]}")
        kind = "hangs" if hangs else "ends the process"
        count.faults.append((number, kind, f"exit code {os.waitstatus_to_exitcode(status)}"))
        return range(number + 1, self.numbers.stop)

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while part := os.read(self._read, 1 << 16):
                self._text += part


def fuzz(
    targets: Iterable[tuple[Target, range]], scratch: Path, *, processes: int = 2, patience: float = 20.0
) -> dict[str, Count]:
    """Run cases of targets in processes side by side.

    Args:
        targets: with the numbers of the cases of each.
        scratch: an empty folder, in memory if there is one.
        processes: how many at a time.
        patience: seconds without an end of a case, above ten times its limit of CPU time, after which it hangs.

    Returns:
        How they ended, by kind.
    """
    chosen = list(targets)
    counts = {target.kind: Count() for target, _ in chosen}
    waiting = [
        (target, range(first, min(first + _CHUNK, numbers.stop)))
        for target, numbers in chosen
        for first in range(numbers.start, numbers.stop, _CHUNK)
    ][::-1]
    running: list[_Process] = []
    while waiting or running:
        while waiting and len(running) < processes:
            target, numbers = waiting.pop()
            running.append(_Process(target, scratch, numbers, seconds=10 * target.seconds + patience))
        select.select([process._read for process in running], [], [], _WAIT)
        for process in list(running):
            left = process.poll(counts[process.target.kind])
            if left is not None:
                running.remove(process)
                if left:
                    waiting.append((process.target, left))
    return counts


class Loopback:
    """A port that nobody has a reason to connect to: its address stands in many cases, connections are counted."""

    def __init__(self) -> None:
        # Several runs on one machine share the port, so that a case is the same in all.
        self._socket = socket.create_server(("127.0.0.1", PORT), backlog=64, reuse_port=True)
        self._socket.setblocking(False)

    def hits(self) -> int:
        """How many connected since the last time."""
        found = 0
        with suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                found += 1
        return found

    def close(self) -> None:
        self._socket.close()


def shared_memory() -> str | None:
    """A folder in memory, if there is one: cases write many small files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def replay(target: Target, number: int) -> None:
    """Run one case in this process, and let its error through."""
    with tempfile.TemporaryDirectory(dir=shared_memory()) as name:
        os.chdir(name)
        os.environ["LIT_DISTILL_CACHE"] = os.path.join(name, "cache")
        case = target.prepare(Path(name))
        _warm(case)
        print(repr(case(random.Random(number)))[:2000])


def main(arguments: Sequence[str]) -> None:
    """`<kind> <number>` runs one case, `<kind> <first>-<last>` many."""
    from faults.fuzzing.targets import TARGETS

    kind, wanted = arguments
    chosen = [target for target in TARGETS if kind in target.kind]
    if "-" not in wanted:
        replay(chosen[0], int(wanted))
        return
    first, last = map(int, wanted.split("-"))
    with tempfile.TemporaryDirectory(dir=shared_memory()) as name, closing(Loopback()) as loopback:
        for found, count in fuzz([(target, range(first, last)) for target in chosen], Path(name)).items():
            print(f"{found}: {count.values} values, {count.refused} refused, {count.seconds:.1f} s, "
                  f"{1000 * count.seconds / max(1, count.tried):.2f} ms a case, {dict(count.kinds())}")  # fmt: skip
            shown: Counter[str] = Counter()
            for case, fault, text in sorted(count.faults):
                shown[key := f"{fault} {text[:40]}"] += 1
                if shown[key] <= 2:
                    print(f"    {case}: {fault}: {text}")
        print("loopback hits", loopback.hits())


if __name__ == "__main__":
    main(sys.argv[1:])
