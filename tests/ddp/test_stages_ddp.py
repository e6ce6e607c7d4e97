"""Stages on two processes: both go through all of them, and after a signal go on in the same one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_distill.checkpoints import read_checkpoint
from lit_distill.models.identity import state_of, state_sha256


def train(folder: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lit_distill.train", "experiment=fitnet_stages_pptsmv2", "data=moving_digits_tiny",
         "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2", "data.batch_size=4",
         "trainer.log_every_n_steps=1", "checkpoint_every_n_steps=1", "doctor=false", "resume=auto",
         f"hydra.run.dir={folder}"],
        env={**os.environ, "LIT_DISTILL_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_go_through_all_stages_and_go_on_in_the_same_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = train(whole, tmp_path)
    text = process.communicate(timeout=500)[0]
    assert process.returncode == 0, text
    for number, name in enumerate(("teacher", "hint", "kd"), 1):
        assert text.count(f"stage {number} of 3: {name}") == 1
    trained = state_of(read_checkpoint(whole / "stages" / "1_teacher" / "checkpoints" / "last.ckpt"), "Teacher")
    card = json.loads((whole / "student.json").read_text())
    assert card["teachers"]["Teacher"]["sha256"] == state_sha256(trained)

    process = train(parts, tmp_path)
    deadline = time.monotonic() + 300
    while not (parts / "stages" / "2_hint" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 143, text
    results = json.loads((parts / "results.json").read_text())
    assert (results["interrupted"], list(results["stages"])) == ("SIGTERM", ["teacher", "hint"])

    process = train(parts, tmp_path)
    text = process.communicate(timeout=500)[0]
    assert process.returncode == 0, text
    assert "stage 2, from step" in text
    assert "stage 1 of 3" not in text
    for file in ("metrics.csv", "student.safetensors", "stages/2_hint/metrics.csv"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
