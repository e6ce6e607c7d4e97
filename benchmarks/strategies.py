"""Does it help here? The comparison of README.md, by `python -m lit_distill.compare` on the embedded data.

`python benchmarks/strategies.py` trains what is not trained yet (its runs are in runs/compare: some hours of two cores
the first time) and writes benchmarks/compare/ and the table of both READMEs; `--table` writes the table alone, from
benchmarks/compare/compare.json as it is. `--plain FILE` writes the plain student's accuracies of a compare.json into
the package: what `train` compares a run's student with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results import write_table

from lit_distill.comparison.table import table
from lit_distill.runs.artifacts import write_json
from lit_distill.training.plain import FILE as PLAIN
from lit_distill.training.plain import plain_of

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "compare"
ARGUMENTS = [
    "experiments=[baseline,dml,kd,self,rkd,dist,overhaul,dkd]", "seeds=10", "trainer=cpu", "jobs=2",
    "teacher.overrides=['data.labelled_share=1','data.unlabelled_share=null']", "output=benchmarks/compare",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the table alone, train nothing")
    parser.add_argument(
        "--plain", metavar="FILE", type=Path, help="keep the reference of a compare.json, train nothing"
    )
    asked = parser.parse_args()
    if asked.plain is not None:
        write_json(PLAIN, plain_of(json.loads(asked.plain.read_text())))
        return
    if not asked.table:
        code = subprocess.run(
            [sys.executable, "-m", "lit_distill.compare", *ARGUMENTS], cwd=ROOT, check=False
        ).returncode
        if code not in (0, 3):  # 3: some runs are missing, which the table says
            sys.exit(code)
    record = json.loads((OUTPUT / "compare.json").read_text())
    for page in ("README.md", "README.zh.md"):
        write_table(ROOT / page, "compare", table(record))


if __name__ == "__main__":
    main()
