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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel_of(folder / "dist")) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(site: Path, cwd: Path, *arguments: str) -> str:
    """What a fresh interpreter prints that finds the wheel's package, and no checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "LIT_DISTILL_CACHE": str(cwd / "cache")}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)) for path in found}


def test_the_wheel_has_the_package_and_composes_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    names = files(site)
    assert {f"lit_distill/{name}" for name in files(ROOT / "src" / "lit_distill")} <= names
    assert {f"lit_distill/conf/{name}" for name in files(ROOT / "conf") if name.endswith(".yaml")} <= names
    assert {"lit_distill/py.typed", "lit_distill/conf/__init__.py"} <= names
    weights = files(ROOT / "src/lit_distill/models/shipped")
    assert {"digits_pptsmv2.safetensors", "digits_pptsmv2.json"} <= weights
    assert files(site / "lit_distill/models/shipped") == weights
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]
    where = python(site, tmp_path, "-c", "import lit_distill._command.command as c; print(c.conf_dir())")
    assert Path(where.strip()) == site / "lit_distill" / "conf"
    shown = python(site, tmp_path, "-m", "lit_distill.train", "experiment=baseline_pptsmv2", "--cfg", "job")
    assert "lit_distill.models.PPTSMv2" in shown


@pytest.mark.slow  # of the package's files, which are all there, other tests train
def test_the_wheel_runs_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    python(
        site, tmp_path, "-m", "lit_distill.train", "experiment=baseline_pptsmv2", "data=moving_digits_tiny",
        "trainer=cpu", "trainer.max_epochs=1",
    )  # fmt: skip
    (run,) = (tmp_path / "runs" / "baseline_pptsmv2").iterdir()
    assert (run / "student.safetensors").is_file()
