"""The wheel holds the package and its configs, and runs an experiment from an empty folder without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def wheel_of(folder: Path, *options: str) -> Path:
    """A wheel of the checkout: by way of a source archive, unless options say otherwise."""
    subprocess.run(
        [sys.executable, "-m", "build", *options, "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow  # the wheel of the source archive is looked through below
def test_the_wheel_of_the_checkout_has_the_files_of_that_of_the_source_archive(tmp_path: Path) -> None:
    wheels = wheel_of(tmp_path / "dist", "--wheel"), wheel_of(tmp_path / "source")
    with zipfile.ZipFile(wheels[0]) as archive, zipfile.ZipFile(wheels[1]) as other:
        assert sorted(archive.namelist()) == sorted(other.namelist())


def test_the_wheel_runs_from_an_empty_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel_of(tmp_path / "dist")) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"lit_distill/{name}" for name in shipped} <= names
    assert {"lit_distill/py.typed", "lit_distill/conf/__init__.py"} <= names
    weights = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/lit_distill/models/shipped").glob("*.*")}
    assert {name for name in names if name.startswith("lit_distill/models/shipped/")} == weights
    assert {
        "lit_distill/models/shipped/digits_pptsmv2.safetensors",
        "lit_distill/models/shipped/digits_pptsmv2.json",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]

    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "LIT_DISTILL_CACHE": str(tmp_path / "cache")}
    where = subprocess.run(
        [sys.executable, "-c", "import lit_distill._command.command as c; print(c.conf_dir())"],
        cwd=empty, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()) == tmp_path / "site" / "lit_distill" / "conf"
    result = subprocess.run(
        [sys.executable, "-m", "lit_distill.train", "experiment=baseline_pptsmv2", "data=moving_digits_tiny",
         "trainer=cpu", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "+trainer.limit_val_batches=1"],
        cwd=empty, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (run,) = (empty / "runs" / "baseline_pptsmv2").iterdir()
    assert (run / "student.safetensors").is_file()
