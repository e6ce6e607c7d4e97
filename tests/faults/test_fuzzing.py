"""Files of others, changed at random: each is a value or a documented error, within its limits, and touches nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from .fuzzing.changes import PORT
from .fuzzing.harness import Case, Count, Loopback, Target, fuzz, shared_memory
from .fuzzing.targets import TARGETS
from .report import report

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and audit are of Linux")
PROCESSES = 2


@pytest.fixture
def scratch() -> Iterator[Path]:
    with TemporaryDirectory(dir=shared_memory()) as folder:
        yield Path(folder)


def check(scratch: Path, wanted: dict[str, range]) -> None:
    """Run cases of each target, count them, and expect no fault."""
    with closing(Loopback()) as loopback:
        counts = fuzz([(target, wanted[target.kind]) for target in TARGETS], scratch, processes=PROCESSES)
        hits = loopback.hits()
    for kind, count in counts.items():
        print(f"{kind}: {count.values} values, {count.refused} refused, {count.seconds:.0f} s, {count.faults[:9]}")
        report(f"fuzzed: {kind}", tried=count.tried, survived=count.tried - len(count.faults), lost=len(count.faults))
    assert {kind: count.faults[:9] for kind, count in counts.items() if count.faults} == {}
    assert hits == 0
    assert {kind: count.tried for kind, count in counts.items()} == {kind: len(cases) for kind, cases in wanted.items()}
    always = {target.kind for target in TARGETS if target.kind.startswith("indexes")}
    for kind, count in counts.items():
        assert count.values, f"{kind}: no case was admitted, so that nothing behind the first check was tried"
        assert count.refused or kind in always, f"{kind}: no case was refused"


def test_a_sample_of_each_kind(scratch: Path) -> None:
    check(scratch, {target.kind: range(target.sample) for target in TARGETS})


@pytest.mark.slow
def test_a_million_cases(scratch: Path) -> None:
    wanted = {target.kind: range(target.sample, target.sample + target.cases) for target in TARGETS}
    assert sum(map(len, wanted.values())) >= 1_000_000
    check(scratch, wanted)


def connects() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", PORT))


def allocates() -> None:
    try:
        bytearray(5 << 30)
    except MemoryError as error:
        raise ValueError("the file is damaged") from error


def spins() -> None:
    until = time.process_time() + 0.4
    while time.process_time() < until:
        pass


def refuses(text: str) -> Callable[[], None]:
    def act() -> None:
        raise ValueError(text)

    return act


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "a process": (lambda: subprocess.run(["true"], check=False), "touched what it must not"),
    "a shell": (lambda: os.system("true"), "touched what it must not"),
    "another program": (lambda: os.execv("/bin/true", ["true"]), "touched what it must not"),
    "a spawned program": (lambda: os.posix_spawn("/bin/true", ["true"], {}), "touched what it must not"),
    "a connection": (connects, "touched what it must not"),
    "a library": (lambda: ctypes.CDLL("libm.so.6"), "touched what it must not"),
    "a file outside": (lambda: Path("../outside").write_text("x"), "touched what it must not"),
    "a file outside by a link": (lambda: Path("up/outside").write_text("x"), "touched what it must not"),
    "a file removed outside": (lambda: Path("../canary").unlink(), "touched what it must not"),
    "a file renamed outside": (lambda: Path("inside").rename("../outside"), "touched what it must not"),
    "a crash": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "ends the process"),
    "an exit": (lambda: os._exit(0), "ends the process"),
    "a hang": (lambda: time.sleep(600), "hangs"),
    "seconds": (spins, "over its time"),
    "memory": (lambda: bytearray(b"x") * (400 << 20), "over its memory"),
    "memory beyond the limit": (allocates, "over its memory"),
    "an error that is not documented": (lambda: dict[str, int]()["a"], "another error"),
    "lines": (refuses("a\nb"), "not one short line"),
    "escapes": (refuses("\x1b[2J"), "not one short line"),
    "a long text": (refuses("x" * 9999), "not one short line"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_it_bites(name: str, scratch: Path) -> None:
    """A reader that does it in one case of five: that case alone is counted, the others go on."""
    act, kind = BROKEN[name]
    (scratch / "canary").write_text("here")

    def prepare(folder: Path) -> Case:
        (folder / "inside").write_text("x")
        (folder / "up").symlink_to("..")
        numbers = iter(range(-8, 5))

        def case(chance: Random) -> object:
            number = next(numbers)
            if chance.random() == Random(2).random():
                return act()
            with suppress(FileNotFoundError):
                (folder / "own").unlink()
            (folder / "own").write_text("x")
            return number

        return case

    target = Target("broken", prepare, 5, 5, seconds=0.2, errors=(ValueError,))
    found: Count = fuzz([(target, range(5))], scratch, processes=1, patience=1.0)["broken"]
    assert [number for number, _, _ in found.faults] == [2]
    assert found.faults[0][1] in kind.split("|")
    assert found.values == 4
