"""Shows that each protection is held by a test: takes it out, runs the tests that name it, and expects them red.

python tests/faults/mutate.py [name …] [--list] [--jobs 2]

A mutation is an entry of tests/faults/mutations/*.toml (README.md there). The project itself is never changed: a
mutation is one file that replaces another in an overlay of symbolic links.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = Path(__file__).with_name("mutations")
SECONDS = 300.0
_LINKED = ("src", "conf", "tests", "docs", "examples", "benchmarks", "README.md", "pyproject.toml")
_CONFIGS = Path("src/lit_distill/conf")
_KILLED, _SURVIVED, _BROKEN = "killed", "SURVIVED", "BROKEN"


@dataclass(frozen=True)
class Mutation:
    """One protection taken out.

    Attributes:
        name: what no longer holds.
        file: relative to the project.
        old: text that stands in it exactly once.
        new: text instead of it.
        tests: arguments for pytest, such as ``tests/faults/test_x.py::test_y``; one of them must fail.
        seconds: time limit; a test that hangs without its protection is killed by it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    seconds: float = SECONDS

    def mutated(self) -> str:
        """The file's text without the protection.

        Raises:
            ValueError: ``old`` does not stand there once, or what results is no program.
        """
        text = (ROOT / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: old stands {text.count(self.old)} times in {self.file}, expected once")
        changed = text.replace(self.old, self.new)
        if changed == text:
            raise ValueError(f"{self.name}: new is old")
        try:
            if self.file.endswith(".py"):
                ast.parse(changed)
            elif self.file.endswith((".yaml", ".yml")):
                yaml.safe_load(changed)
        except (SyntaxError, yaml.YAMLError) as error:
            raise ValueError(f"{self.name}: {self.file} does not parse any more: {error}") from error
        return changed


@dataclass(frozen=True)
class Outcome:
    """How the tests of one mutation ended."""

    mutation: Mutation
    state: str
    seconds: float
    detail: str


def read_mutations(folder: Path = MUTATIONS) -> list[Mutation]:
    """All mutations of a folder, in the order of their files.

    Raises:
        ValueError: an entry lacks a key, has one too many, or shares its name with another.
    """
    found: list[Mutation] = []
    for file in sorted(folder.glob("*.toml")):
        entries: list[dict[str, Any]] = tomllib.loads(file.read_text(encoding="utf-8")).get("mutation", [])
        for entry in entries:
            try:
                mutation = Mutation(**{**entry, "tests": tuple(entry["tests"])})
            except (KeyError, TypeError) as error:
                raise ValueError(f"{file.name}: {entry.get('name', '?')}: {error}") from error
            if not mutation.tests or any(mutation.name == other.name for other in found):
                raise ValueError(f"{file.name}: {mutation.name}: names are told once, with tests")
            found.append(mutation)
    return found


def overlay(folder: Path, file: str | None = None, text: str = "") -> Path:
    """A tree of symbolic links to the project, real only along the way to ``file``, which holds ``text``."""
    folder.mkdir()
    for name in _LINKED:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    if file is None:
        return folder
    _make_real(folder, Path(file).parent)
    (folder / file).unlink()
    (folder / file).write_text(text, encoding="utf-8")
    if file.startswith("conf/"):  # the package has a link to the configs, which would lead out of this tree
        _make_real(folder, _CONFIGS.parent)
        (folder / _CONFIGS).unlink()
        (folder / _CONFIGS).symlink_to(folder / "conf")
    return folder


def _make_real(folder: Path, way: Path) -> None:
    """Folders instead of links along a way, with links to what is in them."""
    place = folder
    for part in way.parts:
        place = place / part
        if not place.is_symlink():
            continue
        source = place.resolve()
        place.unlink()
        place.mkdir()
        for child in source.iterdir():
            if child.name != "__pycache__":
                (place / child.name).symlink_to(child)


def run_tests(tests: Sequence[str], tree: Path, seconds: float) -> tuple[int | None, str]:
    """Pytest's exit code on ``tests`` with the package of ``tree``, None past the time; and the end of its output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "LIT_DISTILL_MUTATED": str(tree),  # a test that starts programs lets them inherit PYTHONPATH, or uses this
    }
    environment.pop("LIT_DISTILL_FAULTS_REPORT", None)  # figures of a broken program are none
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID"):
        environment.pop(name, None)  # the server of tests around these has imported the whole program
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", "--rootdir", str(tree)]
    command = [sys.executable, "-m", "pytest", *options, "-o", f"pythonpath={tree / 'tests'}", *tests]
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the session that it was started in, with all its children
        process.communicate()
        return None, "past its time"
    lines = [line for line in output.splitlines() if line.strip()]
    return process.returncode, lines[-1] if lines else ""


def is_imported_from(tree: Path) -> bool:
    """Whether a program started with the overlay imports the package from it, and not from an installation."""
    code = "import lit_distill; print(lit_distill.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    shown = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    return Path(shown.stdout.strip()).is_relative_to(tree)


def judge(mutation: Mutation, scratch: Path) -> Outcome:
    """Run the tests of one mutation on the program without its protection."""
    started = time.monotonic()
    try:
        text = mutation.mutated()
    except (ValueError, OSError) as error:
        return Outcome(mutation, _BROKEN, 0.0, str(error))
    tree = overlay(Path(tempfile.mkdtemp(dir=scratch)) / "tree", mutation.file, text)
    code, last = run_tests(mutation.tests, tree, mutation.seconds)
    shutil.rmtree(tree.parent)
    # 1: tests failed. 2 to 5: nothing was collected, or a usage error, which shows nothing. Past its time: it hangs.
    state = _KILLED if code in (1, None) else _SURVIVED if code == 0 else _BROKEN
    if code == 1 and " failed" not in last and "error" in last:  # an error while a fixture was made is a red test too
        state = _KILLED
    return Outcome(mutation, state, time.monotonic() - started, last)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations; 0 if the tests are green as they are, and each mutation turns its own red."""
    parser = argparse.ArgumentParser(prog="python tests/faults/mutate.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutations whose name contains one of these; all by default")
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time, 1 or 2")
    given = parser.parse_args(arguments)
    chosen = [m for m in read_mutations() if not given.names or any(name in m.name for name in given.names)]
    if given.list:
        print("\n".join(f"{m.name}: {m.file}" for m in chosen))
        return 0
    if not chosen:
        print("error: no mutation has such a name", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        scratch = Path(folder)
        plain = overlay(scratch / "plain")
        if not is_imported_from(plain):
            print("error: lit_distill is not imported from the overlay: PYTHONPATH has no effect", file=sys.stderr)
            return 1
        tests = sorted({test for m in chosen for test in m.tests})
        print(f"{len(chosen)} mutations; first their {len(tests)} tests on the program as it is", flush=True)
        code, last = run_tests(tests, plain, SECONDS + sum(m.seconds for m in chosen))
        if code != 0:
            print(f"error: the tests must be green before anything is taken out: {last}", file=sys.stderr)
            return 1
        with ThreadPoolExecutor(max_workers=max(1, min(2, given.jobs))) as pool:
            outcomes = []
            for outcome in pool.map(lambda mutation: judge(mutation, scratch), chosen):
                outcomes.append(outcome)
                print(f"{outcome.state:9} {outcome.seconds:6.1f} s  {outcome.mutation.name}", flush=True)
                if outcome.state != _KILLED:
                    print(f"          {outcome.detail}", flush=True)
    killed = sum(outcome.state == _KILLED for outcome in outcomes)
    print(f"killed {killed} / {len(outcomes)}")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
