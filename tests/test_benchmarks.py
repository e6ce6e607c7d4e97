"""`make benchmarks`: every program is in it and wrote its section of RESULTS.md, and a missing peer stops none."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
RESULTS = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules `run` and `results` as the programs import them."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("run", "results"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = ModuleType("programs")
    found.run, found.results = import_module("run"), import_module("results")  # type: ignore[attr-defined]
    yield found
    for name in ("run", "results"):
        sys.modules.pop(name, None)


def test_each_program_that_writes_a_section_is_listed(programs: Any) -> None:
    writers = {
        path.name for path in FOLDER.glob("*.py")
        if path.name != "results.py" and re.search(r"\bwrite_(section|table)\(", path.read_text(encoding="utf-8"))
    }  # fmt: skip
    every = [*programs.run.BENCHMARKS.values(), *programs.run.APART.values()]
    assert writers == {benchmark.command.split()[0] for benchmark in every}
    for benchmark in every:
        assert f"python benchmarks/{benchmark.command}" in programs.run.listed()


def test_each_section_was_written_by_the_command_that_makes_it_anew(programs: Any) -> None:
    sections = re.findall(
        r"^<!-- (.+): begin -->\n## (.+)\n\n(.+)\n\n(?s:.+?)^<!-- (.+): end -->$", RESULTS, re.MULTILINE
    )
    assert RESULTS.count("<!--") == 2 * len(sections)
    assert sorted(name for name, *_ in sections) == sorted(programs.run.BENCHMARKS)
    for name, heading, made_by, end in sections:
        assert (heading, end) == (name, name)
        command = re.escape(f"python benchmarks/{programs.run.BENCHMARKS[name].command}")
        machine = r"on \d+ CPU cores \(\w+\),.* torch \d+\.\d+.*, \d{4}-\d\d-\d\d"
        assert re.fullmatch(f"`{command}( --paddle-python …)?` {machine}", made_by)


def test_a_section_names_command_machine_versions_and_day_and_leaves_others_alone(
    programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "RESULTS.md"
    file.write_text("# Benchmarks\n\n<!-- b: begin -->\nkept\n<!-- b: end -->\n")
    monkeypatch.setattr(programs.results, "RESULTS", file)
    for figure in ("first", "second"):
        programs.results.write_section("a", "python a.py", [figure], beside=["lightning", "no_such_module"])
    text = file.read_text()
    assert "<!-- b: begin -->\nkept\n<!-- b: end -->" in text
    assert "first" not in text
    assert text.count("## a") == 1
    made_by = r"`python a\.py` on \d+ CPU cores \(\w+\), Python 3\S+, torch \d\S+, lightning \d\S+, \d{4}-\d\d-\d\d"
    assert re.search(f"## a\n\n{made_by}\n\nsecond\n", text)


def test_a_missing_peer_is_left_out_with_the_reason_or_leaves_the_section_as_it_is(
    programs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = {"there": lambda: import_module("json"), "gone": lambda: import_module("no_such_module")}
    parser, missing = programs.results.parser("", quick="little"), programs.results.missing
    for given in ([], ["--quick"], ["--quick", "--whole"]):
        absent = missing(probes, parser.parse_args(given))
        assert programs.results.left_out(absent) == ["gone is left out: No module named 'no_such_module'", ""]
    assert missing({"there": probes["there"]}, parser.parse_args(["--whole"])) == {}
    with pytest.raises(SystemExit) as end:
        missing(probes, parser.parse_args(["--whole"]))
    assert end.value.code == programs.results.LEFT_AS_IT_IS
    assert "gone is left out: No module named 'no_such_module'" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1])
def test_the_run_goes_on_and_tells_what_became_of_each(
    code: int, programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "import sys; print('decord is left out: why', file=sys.stderr); sys.exit(3)"
    for name, text in {
        "left": said,
        "broken": f"raise SystemExit({code})",
        "good": "import sys; print(sys.argv)",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    benchmarks = {name: programs.run.Benchmark(f"{name}.py --rounds 1", 1) for name in ("left", "broken", "good")}
    monkeypatch.setattr(programs.run, "HERE", tmp_path)
    monkeypatch.setattr(programs.run, "BENCHMARKS", benchmarks)
    assert programs.run.main([]) == code
    out = capfd.readouterr().out
    assert "'--rounds', '1', '--whole']" in out  # the last ran, to the end
    assert re.search(r"left +left as it was .*\n +decord is left out: why\n", out)
    assert re.search(r"broken +FAILED \(1\)" if code else r"broken +written", out)
    assert re.search(r"good +written", out)


@pytest.mark.slow  # 13 CPU seconds
def test_a_quick_run_of_the_overhead_measures_and_writes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--quick", "--only", "overhead"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| two layers |")]
    assert len(rows) in (2, 3)  # with torchdistill or without
    assert all(float(ms) > 0 for row in rows for ms in re.findall(r"\| ([\d.]+) ms \(", row))
    assert (FOLDER / "RESULTS.md").read_text(encoding="utf-8") == RESULTS
