from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_distill import LossTerm
from lit_distill._command.command import conf_dir
from lit_distill.composer import LossComposer
from lit_distill.losses import BeYourOwnTeacherLoss, Example, be_your_own_teacher_loss
from lit_distill.models import PPTSMv2
from lit_distill.training.train import run
from losses.cases import Case
from losses.checks import check_all, gradients, labels, logits
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip

CASES = [Case(BeYourOwnTeacherLoss, "own stages")]

CLIPS, FRAMES, CLASSES = 4, 3, 5
STAGES = [logits(CLIPS * FRAMES, 4, 8, 8, seed=1, scale=1.0), logits(CLIPS * FRAMES, 6, 4, 4, seed=2, scale=1.0)]
LAST, LOGITS = logits(CLIPS * FRAMES, 8, 2, 2, seed=3, scale=1.0), logits(CLIPS, CLASSES, seed=4)
TARGET = labels(CLIPS, CLASSES)
EXAMPLE = Example(STAGES, [LAST, LOGITS], TARGET)


def of_paper(
    heads: list[Tensor], embeddings: list[Tensor], deepest: Tensor, embedding: Tensor, target: Tensor,
    alpha: float, temperature: float, hint: float,
) -> Tensor:  # fmt: skip
    """As in the paper, with the divergence by torch and the labels' part by torch."""
    total = torch.zeros((), dtype=deepest.dtype)
    for z, f in zip(heads, embeddings, strict=True):
        soft = F.kl_div(F.log_softmax(z / temperature, 1), F.softmax(deepest / temperature, 1), reduction="batchmean")
        total = total + (1 - alpha) * F.cross_entropy(z, target) + alpha * soft
        total = total + hint * torch.linalg.vector_norm(f - embedding, dim=1).square().mean()
    return total


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("alpha", "temperature", "hint"), [(0.3, 3.0, 1e-4), (0.0, 1.0, 0.0), (1.0, 2.0, 0.5)])
def test_is_the_papers_formula(alpha: float, temperature: float, hint: float, mixed: bool) -> None:
    heads, embeddings = [logits(6, 4, seed=s) for s in (1, 2)], [logits(18, 7, seed=s) for s in (3, 4)]
    deepest, embedding = logits(6, 4, seed=5), logits(18, 7, seed=6)
    target = logits(6, 4, seed=7).softmax(1) if mixed else labels(6, 4)

    def ours(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return be_your_own_teacher_loss(
            [a, b], [c, d], deepest, embedding, target, alpha=alpha, temperature=temperature, hint=hint
        )

    def theirs(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return of_paper([a, b], [c, d], deepest, embedding, target, alpha, temperature, hint)

    torch.testing.assert_close(gradients(ours, *heads, *embeddings), gradients(theirs, *heads, *embeddings))


def test_a_head_that_knows_what_the_deepest_knows_has_only_the_labels_to_learn() -> None:
    value = be_your_own_teacher_loss([LOGITS], [LAST[:, :, 0, 0]], LOGITS, LAST[:, :, 0, 0], TARGET, hint=1.0)
    torch.testing.assert_close(value, 0.7 * F.cross_entropy(LOGITS, TARGET))


def test_the_module_is_the_function_of_its_heads() -> None:
    loss = built(BeYourOwnTeacherLoss, EXAMPLE).eval()
    both = [head(stage, CLIPS) for head, stage in zip(loss.heads, STAGES, strict=True)]
    wanted = of_paper([z for z, _ in both], [f for _, f in both], LOGITS, LAST.mean(dim=(2, 3)), TARGET, 0.3, 3.0, 1e-4)
    torch.testing.assert_close(loss(STAGES, [LAST, LOGITS], TARGET), wanted)


def test_a_head_ends_at_the_last_maps_size_and_averages_its_frames() -> None:
    loss = built(BeYourOwnTeacherLoss, EXAMPLE).eval()
    for number, stage in enumerate(STAGES):
        head = loss.get_submodule(f"heads.{number}")
        assert head.get_submodule("bottleneck")(stage).shape == LAST.shape
        z, f = head(stage, CLIPS)
        assert f.shape == LAST.shape[:2]
        frames = head.get_submodule("fc")(f).reshape(CLIPS, FRAMES, CLASSES)
        torch.testing.assert_close(z, frames.mean(dim=1))


def test_the_deepest_teaches_and_does_not_learn() -> None:
    loss = built(BeYourOwnTeacherLoss, EXAMPLE)
    stages, second = [x.clone().requires_grad_() for x in STAGES], [x.clone().requires_grad_() for x in (LAST, LOGITS)]
    loss(stages, second, TARGET).backward()
    assert all(stage.grad is not None and stage.grad.abs().sum() > 0 for stage in stages)
    assert all(signal.grad is None for signal in second)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_holds_to_the_checks() -> None:
    head, deepest = (logits(6, CLASSES, seed=seed) for seed in (5, 6))
    check_all(lambda s, t, y: be_your_own_teacher_loss([s], [s], t, t, y), head, deepest, labels(6, CLASSES))


def test_sizes_itself_once_and_round_trips() -> None:
    check_build_is_idempotent(BeYourOwnTeacherLoss, EXAMPLE)
    check_state_dict_round_trip(BeYourOwnTeacherLoss, EXAMPLE, lambda loss: loss(STAGES, [LAST, LOGITS], TARGET))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_are_judged_in_single(dtype: torch.dtype) -> None:
    example = Example([s.float() for s in STAGES], [LAST.float(), LOGITS.float()], TARGET)
    loss = built(BeYourOwnTeacherLoss, example).eval()
    value = loss([s.to(dtype) for s in STAGES], [LAST.to(dtype), LOGITS.to(dtype)], TARGET)
    assert value.dtype == torch.float32
    wanted = loss([s.to(dtype).float() for s in STAGES], [LAST.to(dtype).float(), LOGITS.to(dtype).float()], TARGET)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def test_trains_the_early_stages_of_a_network_through_its_taps() -> None:
    torch.manual_seed(0)
    network = PPTSMv2(CLASSES, FRAMES, scale=0.25, depths=(1, 1, 1, 1), class_expand=16)
    stages = [f"Student.stages.{number}" for number in range(3)]
    term = LossTerm(BeYourOwnTeacherLoss(), pair=(stages, ["Student.stages.3", "Student"]), target="GroundTruth")
    composer = LossComposer({"own": term})
    clips = torch.randn(CLIPS, FRAMES, 3, 32, 32)
    composer.build({"Student": network}, clips, TARGET)
    with composer.capture({"Student": network}) as signals:
        network(clips)
    composer(signals, TARGET).total.backward()  # type: ignore[no-untyped-call]
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None and "stages" in name}
    assert reached == {"0", "1", "2"}
    assert network.fc.weight.grad is None
    assert all(p.grad is not None for p in composer.parameters())


def test_the_heads_are_thrown_away_after_training(tmp_path: Path) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [
            "experiment=be_your_own_teacher_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", f"data.root={tmp_path}",
            "trainer.max_epochs=1", "callbacks.progress=null", "doctor=false", f"run_dir={tmp_path / 'run'}",
        ])  # fmt: skip
    run(config)
    data, preset = config.data, config.preset
    bare = PPTSMv2(
        data.num_classes, data.num_frames, scale=preset.student_scale, depths=preset.student_depths,
        class_expand=preset.student_expand,
    )  # fmt: skip
    bare.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"), strict=True)
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any("heads.2.fc.weight" in key for key in stored), "a resumed run has its heads"


def test_says_what_is_wrong() -> None:
    loss = BeYourOwnTeacherLoss()
    with pytest.raises(RuntimeError, match="no parameters yet"):
        loss(STAGES, [LAST, LOGITS], TARGET)
    loss = built(BeYourOwnTeacherLoss, EXAMPLE)
    with pytest.raises(ValueError, match=r"then the last map .* and logits"):
        loss(STAGES, LAST, TARGET)
    with pytest.raises(ValueError, match="maps of the same N, a whole number of frames for each of B clips"):
        loss(STAGES, [LAST, LOGITS[:3][[0, 1, 2, 2, 2]]], TARGET)
    with pytest.raises(ValueError, match="was built for 2 stages, got 1"):
        loss(STAGES[:1], [LAST, LOGITS], TARGET)
    with pytest.raises(ValueError, match=r"was built for \(channels, last channels, classes\)"):
        loss.build(Example(STAGES[:1], [LAST, LOGITS], TARGET))
    with pytest.raises(ValueError, match="expects class indices"):
        loss(STAGES, [LAST, LOGITS], TARGET[:2])
    with pytest.raises(ValueError, match=r"alpha must be a number from 0 to 1, got 1\.5"):
        BeYourOwnTeacherLoss(alpha=1.5)
    with pytest.raises(ValueError, match="NaN"):
        loss(STAGES, [LAST, LOGITS * torch.nan], TARGET)
    assert "temperature=3.0" in repr(loss)
    assert isinstance(loss, nn.Module)
