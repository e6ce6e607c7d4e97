"""`inputs`: models of other frame counts and sizes, fed from one batch; what is deployed sees what it saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lit_distill import DistillModule, LossTerm
from lit_distill.composer import LossComposer
from lit_distill.data import InputView, ViewsBatch
from lit_distill.inference import predict as predict_command
from lit_distill.inference import test as test_command
from lit_distill.losses import FitNetLoss
from lit_distill.models import PPTSMv2
from lit_distill.runs.opened import load_run, load_student
from lit_distill.terms import aligned_in_time
from lit_distill.training.fit import build_module
from lit_distill.training.train import run as train
from run_folders import CLASSES, VIDEOS, composed, video_overrides, video_root, write_run

SEEN: dict[nn.Module, Tensor] = {}


class Seen(nn.Module):
    """Logits of a mean, and, outside of the module, what it was given: the preflight restores attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_forward_pre_hook(lambda module, args: SEEN.update({module: args[0]}))

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.fc(clips.mean(dim=(1, 3, 4)))
        return logits


def module(**inputs: Any) -> DistillModule:
    return DistillModule(
        {"Student": Seen(), "Teacher": Seen()}, frozen=["Teacher"], inputs=inputs,
        losses={"kd": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))},
    )  # fmt: skip


def test_each_model_sees_its_view_of_one_batch() -> None:
    group = module(Student={"num_frames": 2, "size": 8})
    clips = torch.rand(2, 8, 3, 16, 16)
    group.build((clips, torch.zeros(2, dtype=torch.long)))
    models: Any = group.models
    assert torch.equal(SEEN[models["Teacher"]], clips)
    assert torch.equal(SEEN[models["Student"]], InputView(num_frames=2, size=8)(clips))
    assert torch.equal(group(clips), models["Student"](InputView(num_frames=2, size=8)(clips)))


def test_unknown_models_and_views_are_told() -> None:
    with pytest.raises(ValueError, match=r"inputs names \['Peer'\], but the models are \['Student', 'Teacher'\]"):
        module(Peer={"size": 8})
    group = module(Student={"num_frames": 9})
    with pytest.raises(ValueError, match="num_frames=9 of clips of 8 frames"):
        group.build((torch.rand(2, 8, 3, 16, 16), torch.zeros(2, dtype=torch.long)))


# Features of other numbers of frames -------------------------------------------------------------------------------


def test_teacher_features_are_averaged_over_the_time_of_each_student_frame() -> None:
    teacher = torch.rand(2 * 8, 5, 3, 3)
    student, aligned = aligned_in_time(torch.zeros(2 * 2, 4, 3, 3), teacher)
    assert isinstance(aligned, Tensor)
    assert isinstance(student, Tensor)
    assert student.shape == (4, 4, 3, 3)
    torch.testing.assert_close(aligned[1], teacher[4:8].mean(dim=0))
    torch.testing.assert_close(aligned[2], teacher[8:12].mean(dim=0))


def test_times_that_do_not_divide_are_adaptive_within_each_clip() -> None:
    teacher = torch.rand(2 * 5, 4)
    _, aligned = aligned_in_time(torch.zeros(2 * 3, 4), teacher, clips=2)
    for clip in range(2):
        wanted = F.adaptive_avg_pool1d(teacher[5 * clip : 5 * clip + 5].T[None], 3)[0].T
        assert isinstance(aligned, Tensor)
        torch.testing.assert_close(aligned[3 * clip : 3 * clip + 3], wanted)
    with pytest.raises(ValueError, match=r"10 and 6 rows are no whole numbers of frames .* is not known"):
        aligned_in_time(torch.zeros(6, 4), teacher)
    with pytest.raises(ValueError, match=r"10 and 6 rows are no whole numbers of frames for each clip \(4 clips\)"):
        aligned_in_time(torch.zeros(6, 4), teacher, clips=4)
    with pytest.raises(ValueError, match="a list of as many references on both sides"):
        aligned_in_time([torch.zeros(6, 4)], teacher)


def test_the_longer_side_is_averaged_and_equal_ones_are_left_alone() -> None:
    long, short = torch.rand(8, 3), torch.rand(4, 3)
    ours, theirs = aligned_in_time([long, short], [short, short])
    torch.testing.assert_close(ours[0], long.reshape(4, 2, 3).mean(dim=1))
    assert ours[1] is short
    assert theirs[0] is short


def test_a_term_aligns_before_its_loss_is_sized_and_its_gradient_arrives() -> None:
    torch.manual_seed(0)
    student, teacher = (PPTSMv2(3, t, scale=0.25, depths=(1, 1, 1, 1), class_expand=16) for t in (3, 6))
    pair = ("Student.stages.1", "Teacher.stages.1")
    models = {"Student": student, "Teacher": teacher}
    clips, target = torch.rand(2, 6, 3, 32, 32), torch.tensor([0, 2])
    view = InputView(num_frames=3)

    def run(name: str, inputs: Tensor) -> Any:
        return models[name](view(inputs) if name == "Student" else inputs)

    composer = LossComposer({"hint": LossTerm(FitNetLoss(), pair=pair, align_time=True)})
    composer.build(models, clips, target, run=run)
    with composer.capture(models) as signals:
        for name in models:
            run(name, clips)
    ours, theirs = signals[pair[0]], signals[pair[1]]
    result = composer(signals, target)
    wanted = composer.losses["hint"](ours, theirs.detach().unflatten(0, (6, 2)).mean(dim=1))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(result.total, wanted)
    result.total.backward()  # type: ignore[no-untyped-call]
    assert student.stages[1][0].pw_conv.conv.weight.grad.abs().sum() > 0  # type: ignore[index]
    plain = LossComposer({"hint": LossTerm(FitNetLoss(), pair=pair)})
    with pytest.raises(ValueError, match=r"term 'hint' .*of one batch size"):
        plain.build(models, clips, target, run=run)


# A run of its own --------------------------------------------------------------------------------------------------


def smaller(root: Path) -> list[str]:
    return [
        *video_overrides(root), "+inputs.Student.num_frames=3", "+inputs.Student.size=20",
        "models.Student.num_frames=3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_root(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def stored(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", smaller(root))


class Logits(LightningModule):
    """What the module in training gives in evaluation, by its own hooks and the data module's."""

    def __init__(self, trained: DistillModule, name: str) -> None:
        super().__init__()
        self.trained, self.name, self.seen = trained.eval(), name, []  # type: ignore[var-annotated]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self.trained.run_models(batch[0], evaluate=True, views=isinstance(batch, ViewsBatch))
        self.seen.append(outputs[self.name].log_softmax(1))


@pytest.mark.parametrize(
    ("views", "name"),
    [
        ("center", "Student"),
        ("dense", "Teacher"),
        # the views are cut before any model has its own input
        pytest.param("center", "Teacher", marks=pytest.mark.slow),
        pytest.param("dense", "Student", marks=pytest.mark.slow),
    ],
)
def test_predict_and_test_say_what_evaluation_says(
    root: Path, stored: Path, tmp_path: Path, name: str, views: Any
) -> None:
    run = load_run(stored)
    trained = build_module(composed("train", *smaller(root), f"run_dir={tmp_path}"))
    trained.models[name].load_state_dict(run.model(name).state_dict())
    evaluation = Logits(trained, name)
    Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False).test(
        evaluation, datamodule=run.data(views=views), verbose=False
    )
    wanted = torch.cat(evaluation.seen)  # log-probabilities

    output = tmp_path / "out.jsonl"
    overrides = [f"run={stored}", f"model={name}", f"views={views}"]
    predict_command.run(
        composed("predict", "num_workers=0", *overrides, f"input={root}/test.txt", f"output={output}", "topk=9")
    )
    rows = [json.loads(line)["top"] for line in output.read_text().splitlines()]
    scores = torch.tensor([[{t["class"]: t["score"] for t in row}[label] for label in range(3)] for row in rows])
    torch.testing.assert_close(scores, wanted.exp(), rtol=1e-4, atol=1e-6)
    report = test_command.run(composed("test", *overrides, "trainer=cpu", f"output={tmp_path}/test.json"))
    target = torch.arange(len(VIDEOS)) % 3
    assert report["top1"] == pytest.approx(float((wanted.argmax(1) == target).float().mean()))
    assert report["loss"] == pytest.approx(float(F.nll_loss(wanted, target)), rel=1e-4)


def test_the_card_and_the_exported_file_tell_and_take_what_the_student_sees(
    root: Path, stored: Path, tmp_path: Path
) -> None:
    assert json.loads((stored / "student.json").read_text())["input"] == {"num_frames": 3, "size": 20}
    for source in (stored, stored / "student.safetensors"):
        preprocess: Any = load_student(source).preprocess
        assert preprocess.input_shape == (3, 3, 20, 20)
        assert preprocess.frames == 3
        assert preprocess(root / "0.mp4").shape == (1, 3, 3, 20, 20)
    assert load_run(stored).preprocess(model="Teacher").input_shape == (4, 3, 28, 28)
    pytest.importorskip("onnxruntime")
    from lit_distill.inference import export

    file = export.run(composed("export", f"run={stored}", f"output={tmp_path / 'small.onnx'}", f"data.root={root}"))
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["input_shape"] == ["batch", 3, 3, 20, 20]
    assert card["input"] == {"num_frames": 3, "size": 20}
    rows: list[list[float]] = []
    for weights in (f"weights={file}", f"run={stored}"):
        output = tmp_path / f"{len(rows)}.jsonl"
        overrides = [weights, f"input={root}/test.txt", f"output={output}", "num_workers=0"]
        predict_command.run(composed("predict", *overrides))
        rows.append([top["score"] for line in output.read_text().splitlines() for top in json.loads(line)["top"]])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3, abs=1e-5)
    assert len(rows[0]) == len(CLASSES) * len(VIDEOS)


def test_the_experiment_leaves_a_student_of_its_own_input(tmp_path: Path) -> None:
    config = composed(
        "train", "experiment=smaller_input_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1",
        f"data.root={tmp_path}", "callbacks.progress=null", "doctor=false", f"run_dir={tmp_path / 'run'}",
        "+data.mix={_target_: lit_distill.data.Mixup}",
    )  # fmt: skip
    results = train(config)
    assert "train/attention" in results["final"]
    preprocess: Any = load_student(tmp_path / "run" / "student.safetensors").preprocess
    assert preprocess.input_shape == (3, 3, 24, 24)
