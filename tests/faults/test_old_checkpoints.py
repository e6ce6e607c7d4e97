"""Checkpoints of every release stay readable: loaded, judged and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from faults import tiny
from faults.report import report
from lit_distill import DistillModule
from lit_distill.checkpoints import read_checkpoint
from lit_distill.models import load_weights
from lit_distill.models.state_files import file_sha256

RELEASES = sorted((Path(__file__).parents[1] / "fixtures" / "checkpoints").iterdir())


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_a_release_is_read_and_resumed(folder: Path, tmp_path: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    card = json.loads((folder / "student.json").read_text())
    assert card["sha256"] == file_sha256(folder / "student.safetensors")
    for source in (folder / "student.safetensors", f"{folder / 'last.ckpt'}#Student"):
        student = tiny.net().eval()
        assert load_weights(student, source).complete
        torch.testing.assert_close(student(torch.ones(1, 4)).tolist(), expected["student_of_ones"])
    assert read_checkpoint(folder / "last.ckpt")["lit_distill"]["version"] == folder.name

    made = tiny.module()
    DistillModule.load_from_checkpoint(
        folder / "last.ckpt", models=made.named, losses=made.composer.terms, frozen=["Teacher"]
    )
    fit = tiny.trainer(tmp_path, max_epochs=3)
    fit.fit(tiny.module(), tiny.loader(), tiny.loader(), ckpt_path=folder / "last.ckpt")
    assert fit.global_step == expected["global_step"] // 2 * 3
    report("checkpoints of earlier releases: read and resumed", tried=1, survived=1)


def test_this_release_has_its_fixture() -> None:
    from lit_distill import __version__

    assert __version__ in [folder.name for folder in RELEASES], "run tests/fixtures/make_checkpoints.py and commit it"
