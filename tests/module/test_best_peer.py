"""`student=best`: the deployed student is the candidate of the highest validation top-1, in every file of the run."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lit_distill import DistillModule, LossTerm
from lit_distill._command.command import conf_dir
from lit_distill._module.metrics import TopKAccuracy
from lit_distill.checkpoints import read_checkpoint
from lit_distill.models.identity import state_of
from lit_distill.runs.opened import load_run
from lit_distill.training.train import run as train

PEERS = ["Student", "Peer1", "Peer2"]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def loader() -> DataLoader[Any]:
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(dim=1)), batch_size=8)


def module(learning: str, **arguments: Any) -> DistillModule:
    """Peers of which one learns from the labels, the others hardly."""
    torch.manual_seed(3)
    losses = {
        name: LossTerm(nn.CrossEntropyLoss(), pair=(name, "GroundTruth"), weight=1.0 if name == learning else 1e-6)
        for name in PEERS
    }
    optimizer = partial(torch.optim.SGD, lr=0.3)
    return DistillModule({name: net() for name in PEERS}, losses, optimizer=optimizer, **arguments)


def trainer(*callbacks: Callback, epochs: int = 3) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )  # fmt: skip


@pytest.mark.parametrize("learning", PEERS)
def test_the_best_candidate_becomes_the_student(learning: str, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "best", monitor="val/best/top1", mode="max", enable_version_counter=False)
    group = module(learning, student="best")
    fit = trainer(best)
    fit.fit(group, loader(), loader())

    figures = fit.callback_metrics
    top1 = {name: float(figures[f"val/{name}/top1"]) for name in PEERS}
    assert max(top1, key=lambda name: top1[name]) == learning
    assert group.student == learning
    assert figures["val/best/top1"] == top1[learning] > 0.7
    assert figures["val/best/top5"] == figures[f"val/{learning}/top5"]
    x = torch.randn(5, 4)
    assert torch.equal(group(x), group.models[learning](x))
    stored = read_checkpoint(tmp_path / "best.ckpt")
    assert stored["lit_distill"]["student"] == learning
    assert stored["lit_distill"]["figures"]["val/best/top1"] == pytest.approx(
        float(cast("torch.Tensor", best.best_model_score))
    )


def test_only_candidates_are_chosen_and_the_first_of_equal_ones() -> None:
    group = module("Peer1", student="best", candidates=["Peer2", "Student"])
    assert group.student == "Peer2"
    for name in ("Student", "Peer1"):
        group.models[name].load_state_dict(group.models["Peer2"].state_dict())
    trainer().validate(group, loader(), verbose=False)
    assert group.student == "Peer2"
    group = module("Peer1", student="best", candidates=["Peer2", "Student"])
    trainer().fit(group, loader(), loader())
    assert group.student != "Peer1"


class Seen(Callback):
    """The student as training begins."""

    name = ""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.name = pl_module.student


def test_resuming_knows_the_student_before_the_next_validation(tmp_path: Path) -> None:
    whole, part, rest = (module("Peer2", student="best") for _ in range(3))
    first, begun, resumed = trainer(epochs=4), trainer(epochs=2), trainer(seen := Seen(), epochs=4)
    first.fit(whole, loader(), loader())
    begun.fit(part, loader(), loader())
    begun.save_checkpoint(tmp_path / "half.ckpt")
    assert part.student == "Peer2"
    resumed.fit(rest, loader(), loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert seen.name == "Peer2"
    assert rest.student == whole.student
    for key, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[key], value), key
    assert {k: float(v) for k, v in resumed.callback_metrics.items()} == {
        k: float(v) for k, v in first.callback_metrics.items()
    }


def test_a_run_deploys_the_best_peer_and_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [
            "experiment=dml_group_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", f"data.root={tmp_path}",
            "callbacks.progress=null", "candidates=[Peer2,Student,Peer1]", "doctor=false", f"run_dir={folder}",
            "preset.lr=0.01", "trainer.max_epochs=3",
        ])  # fmt: skip
    results = train(config)

    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/best/top1"]]
    scores = [{name: float(row[f"val/{name}/top1"]) for name in ("Peer2", "Student", "Peer1")} for row in rows]
    assert [max(score.values()) for score in scores] == [float(row["val/best/top1"]) for row in rows]
    best = max(scores, key=lambda score: max(score.values()))  # the first epoch of equal ones, as the checkpoint
    chosen = max(best, key=lambda name: best[name])
    assert results["student"] == json.loads((folder / "results.json").read_text())["student"] == chosen
    assert results["best"]["val/best/top1"] == best[chosen]
    card = json.loads((folder / "student.json").read_text())
    assert card["name"] == chosen
    assert set(card["teachers"]) == set(PEERS) - {chosen}
    deployed = load_file(folder / "student.safetensors")
    stored = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert deployed.keys() == state_of(stored, chosen).keys()
    assert all(torch.equal(value, state_of(stored, chosen)[key]) for key, value in deployed.items())
    assert any(
        not torch.equal(deployed[k], state_of(stored, other)[k]) for other in {*PEERS} - {chosen} for k in deployed
    )
    screen = capsys.readouterr().out
    assert "experiment=kd_pptsmv2 model@models.Teacher=pptsmv2 models.Teacher.pretrained=" in screen
    assert next(line for line in screen.splitlines() if "student, best of 3" in line).split()[1] == chosen

    assert load_run(folder).student == chosen
    (folder / "results.json").unlink()  # as where it was killed
    assert load_run(folder).student == chosen
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="student=best, and has neither finished nor"):
        load_run(folder)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'Teacher' names no model"):
        module("Student", student="best", candidates=["Student", "Teacher"])
    with pytest.raises(ValueError, match="'Peer1' is frozen; the best is chosen among models that learn"):
        module("Student", student="best", candidates=["Student", "Peer1"], frozen=["Peer1"])
    with pytest.raises(ValueError, match=r"candidates=\['Peer1'\] go with student=best, got student=None"):
        module("Student", candidates=["Peer1"])
    with pytest.raises(ValueError, match="a list of different names of models, got \\['Student', 'Student'\\]"):
        module("Student", student="best", candidates=["Student", "Student"])
    assert module("Student", student="best", frozen=["Peer1"]).candidates == ("Student", "Peer2")
    agree = LossTerm(nn.MSELoss(), pair=("Student", "Peer1"))
    group = module("Student", student="best", val_losses={"agree": agree})
    unlabelled = DataLoader(TensorDataset(torch.zeros(8, 4)), collate_fn=lambda rows: (torch.stack(rows[0]), None))
    with pytest.raises(ValueError, match=r"student=best is chosen by validation top-1, and \['Student', .* have none"):
        trainer().fit(group, loader(), unlabelled)


@pytest.mark.parametrize(
    ("metrics", "got"),
    [
        (None, "none for Student"),
        (lambda: MetricCollection({"top5": TopKAccuracy(k=5)}), r"MetricCollection of \['top5'\] for Student"),
        (lambda: MetricCollection({"top1": TopKAccuracy(k=1)}, prefix="of_"), r"\['of_top1'\]"),
        (lambda: TopKAccuracy(k=1), "TopKAccuracy for Student"),
    ],
)
def test_metrics_that_choose_no_student_are_told_before_training(metrics: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"student=best .* with 'top1', got .*{got}"):
        module("Student", student="best", metrics=metrics)
    own = module("Peer1", student="best", metrics=lambda: MetricCollection({"top1": TopKAccuracy(k=1)}))
    assert own.candidates == tuple(PEERS)
    module("Student", metrics=metrics)
