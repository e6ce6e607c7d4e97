"""All benchmarks, one after another, each in a process of its own that writes its section of RESULTS.md.

`make benchmarks` runs this. Where a library to compare with is missing, the section is left as it is and the others go
on; `--partial` writes such sections without it. The exit code is 1 where a benchmark failed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from results import LEFT_AS_IT_IS

HERE = Path(__file__).resolve().parent


class Benchmark(NamedTuple):
    """A program of this folder with its options, its minutes on two quiet cores, what its figures stand beside."""

    command: str
    minutes: int
    beside: str = ""


BENCHMARKS = {
    "memory": Benchmark("memory.py", 1),
    "overhead": Benchmark("overhead.py", 6, "torchdistill"),
    "losses": Benchmark("losses.py", 5, "torchdistill"),
    "teacher cache": Benchmark("teacher_cache.py", 2),
    "pictures": Benchmark("pictures.py", 1),
    "loading": Benchmark("loading.py --rounds 3 --videos 4", 3),
    "decode, hard": Benchmark(
        "decode.py --content hard --rounds 3 --sizes 340x256 1280x720", 8, "decord, torchcodec, OpenCV"
    ),
    "decode, film": Benchmark("decode.py --content film --rounds 3 --sizes 340x256", 2, "decord, torchcodec, OpenCV"),
    "inference": Benchmark("inference.py --rounds 15 --threads 1 2", 5, "Paddle, by --paddle-python"),
}
"""By section of RESULTS.md, in the order in which they run."""

APART = {
    "compare": Benchmark("strategies.py", 75),
    "methods": Benchmark("methods.py", 30),
    "compile": Benchmark("compile.py", 15),
    "compiled experiments": Benchmark("compile_experiments.py", 20),
}
"""Too long for every time, by commands of their own: the tables of README.md and docs/chooser.md, and compile.md."""


def listed() -> str:
    """What there is, one line each."""
    rows = [("section", "minutes", "beside", "command")]
    for name, (command, minutes, beside) in (BENCHMARKS | APART).items():
        apart = " (apart)" if name in APART else ""
        rows.append((name + apart, str(minutes), beside or "-", f"python benchmarks/{command}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def run(benchmark: Benchmark, options: Sequence[str]) -> tuple[int, str]:
    """Exit code, and what was said on the error stream."""
    program, *given = shlex.split(benchmark.command)
    done = subprocess.run(
        [sys.executable, str(HERE / program), *given, *options], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != LEFT_AS_IT_IS:
        sys.stderr.write(done.stderr)
    return done.returncode, done.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, say what became of each, and return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--list", action="store_true", help="what there is, its minutes and what it stands beside")
    options.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="SECTION", help="these alone")
    options.add_argument("--quick", action="store_true", help="a short run of each; nothing is written")
    options.add_argument("--partial", action="store_true", help="write sections without the libraries that are missing")
    options.add_argument("--paddle-python", help="an interpreter that has paddlepaddle, for the section inference")
    asked = options.parse_args(arguments)
    if asked.list:
        print(listed())
        return 0
    common = ["--quick"] if asked.quick else [] if asked.partial else ["--whole"]
    outcomes: list[str] = []
    codes: list[int] = []
    for name in asked.only or BENCHMARKS:
        own = ["--paddle-python", asked.paddle_python] if asked.paddle_python and name == "inference" else []
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        code, said = run(BENCHMARKS[name], [*common, *own])
        codes.append(code)
        ended = {0: "ran" if asked.quick else "written", LEFT_AS_IT_IS: "left as it was"}
        minutes = (time.monotonic() - begun) / 60
        outcomes.append(f"{name:14} {ended.get(code, f'FAILED ({code})'):14} {minutes:5.1f} min")
        if code == LEFT_AS_IT_IS:
            outcomes += [f"{'':14} {line}" for line in said.strip().splitlines()]
    print("\n" + "\n".join(outcomes))
    if LEFT_AS_IT_IS in codes:
        print("What was left needs `pip install -e '.[benchmarks]'` (inference: --paddle-python), or --partial.")
    return int(any(code not in (0, LEFT_AS_IT_IS) for code in codes))


if __name__ == "__main__":
    sys.exit(main())
