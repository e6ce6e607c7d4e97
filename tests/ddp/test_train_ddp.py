"""The train command over two processes, as on a machine with two devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_two_processes_train_and_leave_one_run_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIT_DISTILL_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "lit_distill.train", "experiment=dml_pptsmv2", "data=moving_digits_tiny",
         "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1", "data.batch_size=4"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (folder,) = (tmp_path / "runs" / "dml_pptsmv2").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == 4  # 32 clips, 2 processes of 4
    assert (folder / "student.safetensors").is_file()
    assert result.stdout.count("trained 4 steps") == 1
