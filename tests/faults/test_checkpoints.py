"""The last good checkpoint always loads: writers are killed and starved, files damaged, each for real."""

from __future__ import annotations

import collections
import errno
import fractions
import json
import os
import random
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import processes
from faults import tiny
from faults.report import report
from lit_distill import SafeCheckpointIO
from lit_distill._files import atomic_file, write_text
from lit_distill.checkpoints import CheckpointError, read_checkpoint, readable_checkpoints, write_checkpoint
from lit_distill.loggers import MetricsCSV
from lit_distill.models.state_files import read_state
from lit_distill.runs.artifacts import write_json, write_student

NOBODY = 65534


def content(step: int = 1, *, size: int = 10) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    state = {f"layer{i}.weight": torch.randn(size, i + 1, generator=generator) for i in range(6)}
    return {"state_dict": state, "global_step": step, "pytorch-lightning_version": "2.6.0", "floats": [0.5, 1.5]}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def deaths(folder: Path, number: int) -> dict[str, dict[str, int]]:
    given = ["-m", "faults.dying_writers", str(folder), str(number)]
    ended = processes.run(given, cwd=Path(__file__).parents[1], timeout=1200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    counts: dict[str, dict[str, int]] = json.loads(ended.stdout.splitlines()[-1])
    return counts


@pytest.fixture(scope="module", params=[16, pytest.param(1500, marks=pytest.mark.slow)], ids=["some", "many"])
def died(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    return deaths(tmp_path_factory.mktemp("deaths") / "x", request.param)


def test_a_kill_at_any_byte_leaves_the_last_checkpoint(died: dict[str, dict[str, int]]) -> None:
    counts = died["bytes_written"]
    report("checkpoints: SIGKILL at a write offset", tried=counts["tried"], survived=counts["survived"])
    assert counts["killed"] == counts["survived"] == counts["tried"]
    assert counts["left"] > 1, "a killed writer leaves its temporary file"
    assert counts["after"] == 1, "the next writer removes it"


def test_a_kill_around_any_call_leaves_the_old_or_the_new(died: dict[str, dict[str, int]]) -> None:
    counts = died["calls"]
    report("checkpoints: SIGKILL before and after each call", tried=counts["tried"], survived=counts["survived"])
    assert counts["tried"] == counts["survived"] == 10  # open, fsync, rename, open and fsync of the folder


def test_a_file_too_large_is_an_error_that_leaves_nothing(died: dict[str, dict[str, int]]) -> None:
    counts = died["limit"]
    report("checkpoints: no room after k bytes (EFBIG)", tried=counts["tried"], survived=counts["survived"])
    assert counts["survived"] == counts["tried"]


def test_at_no_moment_of_a_run_is_there_no_good_checkpoint(died: dict[str, dict[str, int]]) -> None:
    counts = died["run"]
    report("checkpoints: SIGKILL at each call of a run's savings", tried=counts["tried"], survived=counts["survived"])
    assert counts["tried"] == counts["chosen"] == counts["survived"]
    assert counts["damaged"] == 0
    assert counts["stood"] == counts["calls"] > 50


# ---------------------------------------------------------------- no room, no permission


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB, which only who may mount one gets.

    Others see what these tests show where it is injected: EFBIG at every size in dying_writers.py, EIO below.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k,mode=777", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # as on Windows; no other system lets a test fill a disk that is not the user's own
        pytest.skip("no mount command here")
    if mounted.returncode:  # not root: a mount within a namespace would be invisible to the test's own process
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, *, leave: int = 0) -> None:
    """Leave so many bytes, to the page, on a disk."""
    (disk / "filler").unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(max(0, free - leave)))


def test_a_full_disk_leaves_the_last_checkpoint(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    write_checkpoint(content(1, size=300), path)
    old, survived = path.read_bytes(), 0
    rooms = list(range(0, len(old) - 4096, 4096))
    for room in rooms:
        fill(small_disk, leave=room)
        with pytest.raises(
            OSError, match=r"cannot write .*last\.ckpt: No space left on device; .* untouched"
        ) as caught:
            write_checkpoint(content(2, size=300), path)
        survived += (
            caught.value.errno == errno.ENOSPC
            and path.read_bytes() == old
            and equal(read_checkpoint(path), content(1, size=300))
            and sorted(os.listdir(small_disk)) == ["filler", "last.ckpt"]
        )
    report("checkpoints: full disk (ENOSPC on a tmpfs)", tried=len(rooms), survived=survived)
    assert survived == len(rooms) > 5
    (small_disk / "filler").unlink()
    write_checkpoint(content(2, size=300), path)
    assert read_checkpoint(path)["global_step"] == 2


class FailsOnce:
    """A file of which one write fails, as of a disk on which room is made meanwhile."""

    def __init__(self, file: BinaryIO, *, after: int) -> None:
        self._file, self._left = file, after
        self.name = file.name

    def write(self, data: bytes) -> int:
        self._left -= 1
        if self._left == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def test_one_write_that_fails_is_enough_to_leave_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    for after in (0, 1, 5, 20):

        @contextmanager
        def failing(path: Path, after: int = after) -> Iterator[FailsOnce]:
            with atomic_file(path) as file:
                yield FailsOnce(file, after=after)

        with monkeypatch.context() as patch:
            patch.setattr("lit_distill.checkpoints.atomic_file", failing)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                write_checkpoint(content(2), path)
        assert os.listdir(tmp_path) == ["last.ckpt"]
        assert equal(read_checkpoint(path), content(1))


def test_a_full_disk_leaves_the_other_files_of_a_run(small_disk: Path) -> None:
    log = MetricsCSV(small_disk)
    log.log_metrics({"train/loss": 1.0}, step=1)
    log.log_metrics({"train/loss": 0.5}, step=2)  # writes the row before
    write_json(small_disk / "results.json", {"a": 1})
    write_student(small_disk, {"weight": torch.ones(3)}, {})
    old = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    fill(small_disk)
    written = small_disk / "metrics.csv"
    tries: dict[str, Callable[[], object]] = {
        "results.json": lambda: write_json(small_disk / "results.json", {"a": "b" * 9000}),
        "student.safetensors": lambda: write_student(small_disk, {"weight": torch.ones(9000)}, {}),
        "metrics.csv": lambda: [log.log_metrics({"train/loss": float(i)}, step=i) for i in range(3, 2000)],
        "config.yaml": lambda: write_text(small_disk / "config.yaml", "a: 1\n"),
    }
    for name, write in tries.items():
        with pytest.raises(OSError, match=rf"cannot write .*{name}: No space left"):
            write()
    now = {path.name: path.read_bytes() for path in small_disk.iterdir() if path.name != "filler"}
    assert now.pop("metrics.csv").startswith(old.pop("metrics.csv"))
    assert now == old
    rows = written.read_text()
    assert rows.endswith("\n"), "no row is cut"
    report("artefacts: full disk", tried=len(tries), survived=len(tries))


class Fill(Callback):
    """Fills the disk before an epoch's end and makes room again before another's."""

    def __init__(self, disk: Path, *, full: int, free: int = -1) -> None:
        self.disk, self.full, self.free = disk, full, free

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.full:
            fill(self.disk)
        if trainer.current_epoch == self.free:
            (self.disk / "filler").unlink()


def saver(disk: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=disk, filename="{epoch}", save_on_train_epoch_end=True)


def test_by_default_a_run_ends_where_it_cannot_save(small_disk: Path) -> None:
    fit = tiny.trainer(small_disk, max_epochs=3, enable_checkpointing=True, callbacks=[Fill(small_disk, full=1), saver(small_disk)])  # fmt: skip  # noqa: E501
    with pytest.raises(OSError, match="No space left on device"):
        fit.fit(tiny.module(), tiny.loader())
    assert [path.name for path in readable_checkpoints(small_disk)] == ["epoch=0.ckpt"]


def test_on_error_warn_trains_on_tells_each_time_and_deletes_nothing(small_disk: Path) -> None:
    fit = tiny.trainer(
        small_disk, max_epochs=5, enable_checkpointing=True, plugins=[SafeCheckpointIO(on_error="warn")],
        callbacks=[Fill(small_disk, full=2, free=4), saver(small_disk)],
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        fit.fit(tiny.module(), tiny.loader())
    told = [str(w.message) for w in caught if "NO CHECKPOINT WRITTEN" in str(w.message)]
    assert [text.split(",")[0] for text in told] == [f"NO CHECKPOINT WRITTEN ({n} in a row)" for n in (1, 2)]
    assert all("No space left on device" in text for text in told)
    assert sorted(path.name for path in readable_checkpoints(small_disk)) == ["epoch=1.ckpt", "epoch=4.ckpt"]


def test_no_permission_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = folder / "last.ckpt"
    write_checkpoint(content(1), path)
    folder.chmod(0o555)
    os.chmod(path, 0o444)
    try:
        if os.geteuid():
            with pytest.raises(PermissionError, match=r"cannot write .*last\.ckpt: Permission denied; .* untouched"):
                write_checkpoint(content(2), path)
        else:  # root may write anywhere: another user tries
            code = (
                "import os, sys, torch\n"
                "from lit_distill.checkpoints import write_checkpoint\n"
                f"os.chdir(sys.argv[1]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
                "try: write_checkpoint({'state_dict': {}}, 'last.ckpt')\n"
                "except PermissionError as error: print(error)\n"
            )
            program = tmp_path / "nobody.py"
            program.write_text(code)
            ended = processes.run([program, folder])
            assert ended.returncode == 0, ended.stderr
            assert "cannot write last.ckpt: Permission denied; the file that stood there is untouched" in ended.stdout
        assert equal(read_checkpoint(path), content(1))
        assert os.listdir(folder) == ["last.ckpt"]
    finally:
        folder.chmod(0o755)
    report("checkpoints: no permission (EACCES)", tried=1, survived=1)


def test_an_input_output_error_of_fsync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # which no file system here gives for the asking

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_checkpoint(content(2), path)
    assert equal(read_checkpoint(path), content(1))
    assert os.listdir(tmp_path) == ["last.ckpt"]
    report("checkpoints: EIO while synchronising", tried=1, survived=1)


def test_two_writers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    values = {
        "a path": Path("x"), "a fraction": fractions.Fraction(1, 2), "a module": torch.nn.Linear(1, 1),
        "an array's number": np.float64(1.0), "an array": np.zeros(2),
        "a function": os.getcwd, "a class": fractions.Fraction, "a text": "a", "a set": {1, 2},
        "a tuple": (1, (2.0, None)),
        "an OrderedDict": collections.OrderedDict(a=1), "a Counter": Counter("aab"), "a dtype": torch.float16,
        "a size": torch.Size([1]), "a device": torch.device("cpu"), "a bytes": b"abc", "a complex": 1j,
        "a parameter": torch.nn.Parameter(torch.ones(1)), "a defaultdict": collections.defaultdict(list),
        "a generator's state": torch.Generator().get_state(), "a bfloat16": torch.ones(1, dtype=torch.bfloat16),
    }  # fmt: skip
    held: list[str] = []
    for name, value in values.items():
        path.unlink(missing_ok=True)
        try:
            write_checkpoint({**content(), "callbacks": {"Mine": [value]}}, path)
        except CheckpointError as error:
            if "callbacks.Mine[0] is a " in str(error) and not path.exists():
                held.append(name)
        else:
            read_checkpoint(path)
    assert held == ["a path", "a fraction", "a module", "an array's number", "an array", "a function", "a class"]
    report("checkpoints: saved is readable under weights_only", tried=len(values), survived=len(values))


# ---------------------------------------------------------------- damaged files


def test_a_flipped_bit_is_told_and_never_loaded_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(), path)
    good, outcomes = path.read_bytes(), Counter[str]()
    for bit in random.Random(0).sample(range(8 * len(good)), 600):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            outcomes["same" if equal(read_checkpoint(path), content()) else "other"] += 1
        except CheckpointError as error:
            outcomes["told"] += "damaged" in str(error) or "refused" in str(error)
    report("checkpoints: a flipped bit is reported, or harmless padding", tried=600, survived=outcomes.total(), lost=0)
    assert outcomes["other"] == 0
    assert outcomes["told"] + outcomes["same"] == 600
    assert outcomes["told"] > 300


def test_a_flipped_bit_in_a_weights_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(content()["state_dict"], path)
    data = bytearray(path.read_bytes())
    values = content()["state_dict"]["layer5.weight"].numpy().tobytes()
    data[data.find(values) + 7] ^= 64
    path.write_bytes(data)
    assert not torch.equal(
        torch.load(path, weights_only=True)["layer5.weight"], content()["state_dict"]["layer5.weight"]
    )
    with pytest.raises(ValueError, match=r"teacher\.pth is damaged: the CRC-32"):
        read_state(path)


def test_a_cut_file_is_told_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(), path)
    good = path.read_bytes()
    lengths = [0, 1, 3, 4, *range(5, len(good), 29), len(good) - 1]
    told = 0
    for length in lengths:
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged: (it is empty|its end|it is no checkpoint)"):
            read_checkpoint(path)
        told += 1
    report("checkpoints: a cut file is reported", tried=len(lengths), survived=told)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda good: b"", "is damaged: it is empty"),
        (lambda good: good[: len(good) // 2], "is damaged: its end is missing"),
        (lambda good: b"<html>not found</html>" * 99, "is damaged: it is no checkpoint archive"),
        (lambda good: good.replace(content()["state_dict"]["layer5.weight"].numpy().tobytes()[:8], bytes(8)), "CRC-32"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_newest_readable_one_offered(
    tmp_path: Path, damage: Any, says: str
) -> None:
    for age, name in enumerate(("last", "damaged_too", "best", "older")):
        write_checkpoint(content(), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1e9 - age, 1e9 - age))
    for name in ("last", "damaged_too"):
        (tmp_path / f"{name}.ckpt").write_bytes(damage((tmp_path / f"{name}.ckpt").read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        tiny.trainer(tmp_path).fit(tiny.module(), tiny.loader(), ckpt_path=tmp_path / "last.ckpt")
    assert says in str(caught.value)
    assert str(caught.value).endswith(f"; the newest readable one beside it: ckpt_path={tmp_path}/best.ckpt")


def test_a_missing_checkpoint_and_weights_alone_say_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*; no other readable checkpoint is in"):
        read_checkpoint(tmp_path / "last.ckpt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"no state_dict; weights alone go to models\.<Name>\.pretrained"):
        read_checkpoint(tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match="local files"):
        read_checkpoint("s3://bucket/last.ckpt")


def test_a_cut_row_of_metrics_is_left_out_on_resuming(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.5\n2")
    log = MetricsCSV(tmp_path)
    log.log_metrics({"train/loss": 0.25}, step=3)
    log.finalize("success")
    assert log.path.read_text().split() == ["step,train/loss", "1,0.5", "3,0.25"]


def test_what_the_reader_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1), path)
    with pytest.raises(CheckpointError, match=r"could not be read back: it asks for .*bytearray.*state\.own\[0\] is a"):
        write_checkpoint({**content(2), "state": {"own": [bytearray(b"ab")]}}, path)
    assert equal(read_checkpoint(path), content(1))


def test_what_a_callback_keeps_may_have_many_entries(tmp_path: Path) -> None:
    """Of 6 MB, as that of 250,000 short ones; what reading costs is by entry."""
    kept = {"order": list(range(50_000)), "paths": [f"class/{number:0100}.mp4" for number in range(50_000)]}
    write_checkpoint({**content(1), "callbacks": kept}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["callbacks"] == kept
