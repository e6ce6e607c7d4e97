"""What is exported does what the trained network does, or is not written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from lit_distill._command.command import conf_dir
from lit_distill.inference import benchmark, export, predict
from lit_distill.inference.exported import load_program
from lit_distill.inference.onnx_files import OnnxNetwork, quantize_onnx, write_onnx
from lit_distill.models.identity import state_sha256
from lit_distill.runs.opened import load_run, load_student
from lit_distill.training import train

pytest.importorskip("onnxruntime")


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch whose network is no longer the random one."""
    folder = tmp_path_factory.mktemp("export")
    train.run(
        composed(
            "train", "experiment=baseline_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1",
            f"data.root={folder / 'data'}", f"run_dir={folder / 'run'}",
        )
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module", autouse=True)
def written_once() -> Iterator[None]:
    """Four CPU seconds for each ONNX file: the same weights give the same one."""
    files: dict[tuple[str, torch.Size], bytes] = {}

    def write_once(network: nn.Module, example: Tensor, file: Path) -> None:
        key = state_sha256(network.state_dict()), example.shape[1:]
        if key in files:
            file.write_bytes(files[key])
        else:
            write_onnx(network, example, file)
            files[key] = file.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        for module in (export, benchmark):
            patch.setattr(module, "write_onnx", write_once)
        yield


def exported(run: Path, *overrides: str) -> Path:
    return export.run(composed("export", f"run={run}", "data.num_workers=0", *overrides))


@pytest.fixture(scope="module")
def onnx_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(run, f"output={tmp_path_factory.mktemp('onnx') / 'student.onnx'}", "check_samples=5")


@pytest.fixture(scope="module")
def program(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(run, "format=torch_export", f"output={tmp_path_factory.mktemp('program') / 'student.pt2'}")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_onnx_file_gives_the_networks_logits_for_any_batch(run: Path, onnx_file: Path, batch: int) -> None:
    clips = torch.randn(batch, 4, 3, 32, 32)
    with torch.inference_mode():
        expected = load_student(run)(clips)
    assert torch.allclose(OnnxNetwork(onnx_file)(clips), expected, atol=1e-4 * float(expected.abs().max()))


def test_the_card_tells_what_the_file_is_where_it_comes_from_and_what_was_compared(run: Path, onnx_file: Path) -> None:
    card = json.loads(onnx_file.with_name("student.json").read_text())
    trained = json.loads((run / "student.json").read_text())
    assert card["weights"] == "student.onnx"
    assert card["sha256"] != trained["sha256"] == card["exported"]["from_sha256"]
    assert card["exported"]["check"]["samples"] == 5
    assert 0 <= card["exported"]["check"]["difference"] <= 1e-4
    assert card["input_shape"] == ["batch", 4, 3, 32, 32]
    assert card["class_names"] == trained["class_names"]
    assert load_run(onnx_file).num_classes == 8


def test_safetensors_hold_the_fused_network_and_load_as_a_student(run: Path, tmp_path: Path) -> None:
    file = exported(run, "format=safetensors", f"output={tmp_path / 'student.safetensors'}")
    clips = torch.randn(2, 4, 3, 32, 32)
    small, large = load_student(file), load_student(run)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(small(clips), large(clips), atol=1e-5, rtol=1e-4)


def test_a_torch_export_program_runs_without_the_library(run: Path, program: Path) -> None:
    clips = torch.randn(3, 4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.export.load(program).module()(clips), load_student(run)(clips), atol=1e-5, rtol=1e-4
        )


def test_a_program_is_loaded_by_those_who_trust_it_only(run: Path, program: Path, tmp_path: Path) -> None:
    file = shutil.copytree(program.parent, tmp_path / "program") / program.name
    clip = next(run.parent.rglob("*.mp4"))
    arguments = [f"weights={file}", f"input={clip}", f"output={tmp_path / 'p.jsonl'}", "num_workers=0", "topk=1"]
    with pytest.raises(ValueError, match=r"can run what is hidden in it. .* --allow torch\.export\.load"):
        predict.run(composed("predict", *arguments))
    assert predict.run(composed("predict", *arguments, "allow=[torch.export.load]")) == 0
    predict.run(composed("predict", f"run={run}", *arguments[1:2], f"output={tmp_path / 'r.jsonl'}", "topk=1"))
    told, wanted = (json.loads((tmp_path / name).read_text())["top"][0] for name in ("p.jsonl", "r.jsonl"))
    assert told["name"] == wanted["name"]
    assert told["score"] == pytest.approx(wanted["score"], abs=1e-5)
    file.write_bytes(b"no program")
    with pytest.raises(ValueError, match=r"student\.pt2 is not the file that its card describes"):
        predict.run(composed("predict", *arguments, "allow=[torch.export.load]"))
    with pytest.raises(ValueError, match=r"student\.pt2 is no torch\.export program"):
        load_program(file)


def test_formats_stand_side_by_side_and_another_checkpoint_is_told(run: Path) -> None:
    fused = exported(run, "format=safetensors", "check_samples=3")
    float_file, int8_file = (
        exported(run, *more, "checkpoint=last", "check_samples=3", "calibration_samples=2", "max_drop=1")
        for more in ([], ["int8=true"])
    )
    cards = {file: json.loads(file.with_suffix(".json").read_text()) for file in (fused, float_file, int8_file)}
    assert len({file.with_suffix(".json") for file in cards} | {run / "student.json"}) == 4
    assert [card["exported"]["from"] for card in cards.values()] == ["student.safetensors", "last.ckpt", "last.ckpt"]
    assert ["figures" in card for card in cards.values()] == [True, False, False]


def test_a_batch_of_one_is_checked_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(format: str, network: nn.Module, example: Tensor, file: Path) -> object:
        file.write_bytes(b"written")

        def run_it(batch: Tensor) -> Tensor:
            sizes.append(len(batch))
            logits: Tensor = network(batch)
            return logits

        return run_it

    monkeypatch.setattr(export, "_write", counting)
    exported(run, f"output={tmp_path / 'student.onnx'}", "check_samples=4")
    assert sizes == [1, 3]


def test_int8_is_judged_beside_the_float_network(run: Path, tmp_path: Path) -> None:
    file = exported(run, "int8=true", f"output={tmp_path / 's.onnx'}", "calibration_samples=8", "max_drop=1")
    facts = json.loads((tmp_path / "s.json").read_text())["exported"]["int8"]
    assert facts["calibration_samples"] == 8
    assert facts["accuracy_samples"] == 16
    assert 0 <= facts["val/top1_int8"] <= 1
    clips = torch.randn(2, 4, 3, 32, 32)
    with torch.inference_mode():
        whole = load_student(run)(clips)
    assert torch.linalg.norm(OnnxNetwork(file)(clips) - whole) < 0.5 * torch.linalg.norm(whole)


def test_files_of_ones_own_serve_where_the_data_is_not_at_hand(run: Path, tmp_path: Path) -> None:
    videos = sorted(run.parent.rglob("*.mp4"))[:3]
    (tmp_path / "videos").mkdir()
    for video in videos:
        (tmp_path / "videos" / video.name).write_bytes(video.read_bytes())
    exported(run, "format=safetensors", f"output={tmp_path / 'student.safetensors'}", f"input={tmp_path / 'videos'}")
    assert json.loads((tmp_path / "student.json").read_text())["exported"]["check"]["samples"] == 3


def off_by_one_percent(format: str, network: nn.Module, example: Tensor, file: Path) -> object:
    file.write_bytes(b"written")
    return lambda batch: network(batch) * 1.01


def gives_nan(format: str, network: nn.Module, example: Tensor, file: Path) -> object:
    file.write_bytes(b"written")
    return lambda batch: network(batch) * float("nan")


@pytest.mark.parametrize("writer", [off_by_one_percent, gives_nan])
def test_nothing_is_written_that_does_something_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: object
) -> None:
    monkeypatch.setattr(export, "_write", writer)
    with pytest.raises(ValueError, match=r"differs from the trained one: logits by .* nothing was written"):
        exported(run, f"output={tmp_path / 'student.onnx'}")
    assert list(tmp_path.iterdir()) == []


def test_int8_that_loses_accuracy_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([(0.9, 16), (0.5, 16)])
    monkeypatch.setattr(export, "top1", lambda *_: next(scores))
    with pytest.raises(ValueError, match=r"int8 loses too much: top-1 90.00 % as trained, 50.00 % in int8"):
        exported(run, "int8=true", f"output={tmp_path / 's.onnx'}", "calibration_samples=2")
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_another_file_is_not_replaced(run: Path) -> None:
    before = (run / "student.json").read_bytes()
    with pytest.raises(ValueError, match="is the card of another file: choose another name"):
        exported(run, f"output={run / 'student.onnx'}")
    assert (run / "student.json").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=tflite"], "format is one of onnx, torch_export, safetensors, got 'tflite'"),
        (["int8=true", "format=safetensors"], "int8=true is for format=onnx"),
        (["check_samples=0"], "check_samples must be at least 1, got 0"),
        (["tolerance=0"], "tolerance must be above 0"),
        (["output=student.bin"], "output of format=onnx ends in .onnx, got student.bin"),
        (["named=Techer"], "has no model 'Techer': it has Student"),
    ],
)
def test_wrong_arguments_are_named(run: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exported(run, *overrides)


def test_a_file_that_is_no_onnx_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"a\.onnx is no ONNX model that can be run here"):
        OnnxNetwork(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"no ONNX file at .*b\.onnx"):
        OnnxNetwork(tmp_path / "b.onnx")


def test_inputs_of_another_shape_are_named(tmp_path: Path) -> None:
    write_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.zeros(2, 3, 2, 2), tmp_path / "a.onnx")
    network = OnnxNetwork(tmp_path / "a.onnx", threads=1)
    assert network(torch.zeros(7, 3, 2, 2)).shape == (7, 3)
    with pytest.raises(ValueError, match=r"takes batches of .*, got \(7, 3, 4, 4\)"):
        network(torch.zeros(7, 3, 4, 4))
    with pytest.raises(ValueError, match="at least one calibration batch"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", [])


def test_a_network_that_no_exporter_takes_is_named(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else x.flip(0)

    with pytest.raises(ValueError, match="Branching can't be exported to ONNX: "):
        write_onnx(Branching(), torch.ones(2, 3), tmp_path / "a.onnx")
