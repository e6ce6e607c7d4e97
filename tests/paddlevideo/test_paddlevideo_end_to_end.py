"""A PaddleVideo user's whole way: .pdparams in, distilled for an epoch, exported, and a video classified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lit_distill._command.command import conf_dir
from lit_distill.data import MovingDigits
from lit_distill.models import PPTSMv2
from lit_distill.models.state_files import file_sha256
from lit_distill.training.train import run

WEIGHTS = Path(__file__).parents[1] / "golden" / "pdparams" / "tiny_p331_proto4.pdparams"
SIZES = ("scale=0.25", "depths=[1,1,2,1]", "class_expand=64")


def test_pdparams_are_loaded_distilled_exported_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    models = [
        f"models.{name}.{setting}" for name in ("Student", "Teacher") for setting in (*SIZES, f"pretrained={WEIGHTS}")
    ]
    data = ["data=moving_digits_tiny", "data.digits=[0,1,2,3,4]", "data.motions=[left,right]", "data.num_classes=10"]
    data += ["data.clips=[20,10,10]", "data.num_frames=8", "+data.batch_size=5"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(
            "train",
            ["experiment=kd_pptsmv2", "model@models.Teacher=pptsmv2", "trainer=cpu", "trainer.max_epochs=1",
             "preset.lr=0.0001", f"run_dir={folder}", *models, *data],
        )  # fmt: skip
    results = run(config)
    assert results["epochs"] == 1
    card = json.loads((folder / "student.json").read_text())
    assert card["initialised"]["loaded_sha256"] == file_sha256(WEIGHTS)
    assert card["teachers"]["Teacher"]["loaded_sha256"] == file_sha256(WEIGHTS)

    student = PPTSMv2(10, 8, scale=0.25, depths=(1, 1, 2, 1), class_expand=64)
    before = PPTSMv2(10, 8, scale=0.25, depths=(1, 1, 2, 1), class_expand=64, pretrained=WEIGHTS)
    student = instantiate({**card["model"], "pretrained": str(folder / "student.safetensors")}).eval()
    assert not torch.equal(student.fc.weight, before.fc.weight), "an epoch of distillation moved the weights"

    datamodule: MovingDigits = instantiate(card["data"])
    datamodule.setup("test")
    inputs, target, _ = datamodule.on_after_batch_transfer(next(iter(datamodule.test_dataloader())), 0)
    with torch.no_grad():
        trained = student(inputs)
        fused = student.reparameterize()(inputs)
    torch.testing.assert_close(fused, trained, rtol=1e-3, atol=1e-3)

    program = torch.export.export(student, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "student.pt2")
    exported = torch.export.load(tmp_path / "student.pt2").module()
    with torch.no_grad():
        probabilities = exported(inputs[:2]).softmax(dim=1)
    torch.testing.assert_close(probabilities, fused[:2].softmax(dim=1), rtol=1e-4, atol=1e-5)
    names = [card["class_names"][index] for index in probabilities.argmax(dim=1)]
    assert set(names) <= set(card["class_names"])
    assert len(target) == 5
