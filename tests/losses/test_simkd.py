from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import Example, SimKD, simkd_loss
from lit_distill.models import PPTSMResNet, PPTSMv2, SimKDStudent, load_weights
from lit_distill.optim import paddle_momentum
from losses import checks
from losses.cases import Case

CASES = [Case(SimKD, "equal map")]

CLASSES, FRAMES = 5, 4
VIDEO = torch.randn(2, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_higher_map_is_averaged_to_the_others_size() -> None:
    low, high = checks.logits(2, 3, 4, 5), checks.logits(2, 3, 8, 6, seed=1)
    expected = nn.functional.mse_loss(low, nn.functional.adaptive_avg_pool2d(high, (4, 5)))
    torch.testing.assert_close(simkd_loss(low, high), expected)
    torch.testing.assert_close(simkd_loss(high, low), expected)


def test_the_function_is_held_to_every_check() -> None:
    student, teacher = checks.logits(3, 4, 4, 4, seed=0), checks.logits(3, 4, 2, 2, seed=1)
    checks.check_all(simkd_loss, student, teacher, wrt=(0, 1))
    checks.check_zero_when_equal(SimKD(), student)
    checks.check_shapes_named(simkd_loss, student, teacher[:, :2])
    checks.check_shapes_named(simkd_loss, student, teacher.flatten(1))


def student_and_teacher() -> tuple[SimKDStudent, PPTSMResNet]:
    torch.manual_seed(0)
    network = PPTSMv2(CLASSES, FRAMES, scale=0.125, class_expand=24)
    return SimKDStudent(network), PPTSMResNet(18, CLASSES, FRAMES, width=0.125)


def sized() -> tuple[SimKDStudent, PPTSMResNet]:
    student, teacher = student_and_teacher()
    maps = [torch.zeros(2, 128, 1, 1), torch.zeros(2, teacher.fc.in_features, 1, 1)]
    models = nn.ModuleDict({"Student": student, "Teacher": teacher})
    SimKD().build(Example(maps[0], maps[1], student_modules=(student.projector,), models=dict(models.items())))
    return student, teacher


def test_before_the_example_batch_it_is_the_plain_network() -> None:
    student, _ = student_and_teacher()
    plain = PPTSMv2(CLASSES, FRAMES, scale=0.125, class_expand=24)
    plain.load_state_dict({k.removeprefix("network."): v for k, v in student.state_dict().items()})
    assert not student.is_sized
    torch.testing.assert_close(student.eval()(VIDEO), plain.eval()(VIDEO))


def test_logits_are_the_teachers_classifier_on_projected_features() -> None:
    student, teacher = sized()
    student.eval()
    projected: list[Tensor] = []
    student.projector.register_forward_hook(lambda module, inputs, output: projected.append(output))
    logits = student(VIDEO)
    embedding = projected[0].mean(dim=(2, 3)).reshape(2, FRAMES, -1).mean(dim=1)
    torch.testing.assert_close(logits, teacher.fc(embedding))
    assert len(student.projector) == 9
    assert (projected[0] >= 0).all()


def test_the_classifier_is_the_teachers_and_belongs_to_it() -> None:
    student, teacher = sized()
    assert isinstance(student.classifier, nn.Linear)
    assert student.classifier.weight is teacher.fc.weight
    assert student.classifier is not teacher.fc, "a tap on the teacher's classifier must not see the student's calls"
    named = {id(p) for group in student.parameter_groups() for p in group.params}
    assert named == {id(p) for p in student.parameters()} - {id(p) for p in teacher.fc.parameters()}
    optimizer = paddle_momentum({"Student": student, "Teacher": teacher}, lr=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(teacher.fc.weight)] == pytest.approx(0.5), "the teacher's own rule, its classifier learns faster"


def test_the_weights_stand_alone(tmp_path: Path) -> None:
    student, _ = sized()
    alone, _ = student_and_teacher()
    alone.load_state_dict(student.state_dict())
    torch.testing.assert_close(alone.eval()(VIDEO), student.eval()(VIDEO))
    for file, state in (
        ("student.safetensors", student.state_dict()),
        ("run.ckpt", {f"models.Student.{name}": value for name, value in student.state_dict().items()}),
    ):
        save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
        read, _ = student_and_teacher()
        assert load_weights(read, tmp_path / file).complete
        torch.testing.assert_close(read.eval()(VIDEO), student(VIDEO))
    twin = copy.deepcopy(student)
    torch.testing.assert_close(twin(VIDEO), student(VIDEO))


def test_the_network_keeps_no_layer_that_learns_nothing() -> None:
    student, _ = sized()
    student(VIDEO).sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert not any(name.startswith("network.last_conv") for name in student.state_dict())


def trained(frozen: bool, epochs: int = 1) -> DistillModule:
    student, teacher = student_and_teacher()
    losses = {"simkd": LossTerm(SimKD(), pair=("Student.network.pool.projector", "Teacher.stages.3"))}
    if not frozen:
        losses["ce_teacher"] = LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth"))
    module = DistillModule(
        models={"Student": student, "Teacher": teacher},
        frozen=["Teacher"] if frozen else [],
        losses=losses,
        val_losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
        optimizer=partial(torch.optim.SGD, lr=0.01),
    )
    data = TensorDataset(torch.cat([VIDEO, VIDEO.flip(1)]), torch.arange(4))
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=2), DataLoader(data, batch_size=2))
    return module


@pytest.mark.parametrize("frozen", [True, False])
def test_training_moves_the_student_and_validates_what_is_deployed(frozen: bool) -> None:
    before = student_and_teacher()[1].state_dict()
    module = trained(frozen)
    student, teacher = module.models["Student"], module.models["Teacher"]
    assert isinstance(student, SimKDStudent)
    assert student.is_sized
    assert torch.equal(student.state_dict()["network.fc.weight"], teacher.state_dict()["fc.weight"])
    assert torch.equal(before["fc.weight"], teacher.state_dict()["fc.weight"]) == frozen
    videos = torch.cat([VIDEO, VIDEO.flip(1)])
    expected = nn.functional.cross_entropy(student.eval()(videos), torch.arange(4)).item()
    assert float(module.trainer.callback_metrics["val/ce"]) == pytest.approx(expected, rel=1e-4)
    assert sum(name.startswith("models.Student.network.fc") for name in module.state_dict()) == 2


def test_a_torchvision_network_as_student_and_teacher() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    student, teacher = SimKDStudent(resnet18(num_classes=3), pool="avgpool", without=()), resnet18(num_classes=3)
    module = DistillModule(
        models={"Student": student, "Teacher": teacher},
        frozen=["Teacher"],
        losses={"simkd": LossTerm(SimKD(), pair=("Student.network.avgpool.projector", "Teacher.layer4"))},
    )
    images = torch.randn(2, 3, 32, 32)
    module.build((images, torch.tensor([0, 2])))
    state = {name: value.clone() for name, value in student.state_dict().items()}
    module.build((images, torch.tensor([0, 2])))
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert student.projector[6].out_channels == 512
    assert student(images).shape == (2, 3)


def test_errors_say_what_came() -> None:
    student, teacher = student_and_teacher()
    models = {"Student": student, "Teacher": teacher}
    maps = torch.zeros(2, 128, 1, 1), torch.zeros(2, 64, 1, 1)
    taps = (student.projector,)
    with pytest.raises(ValueError, match=r"projector of a SimKDStudent .*\(2, 128, 1, 1\).*\(2, 64, 1, 1\)"):
        SimKD().build(Example(*maps))
    with pytest.raises(ValueError, match=r"classifier='Teacher.head' names no module"):
        SimKD(classifier="Teacher.head").build(Example(*maps, student_modules=taps, models=models))
    with pytest.raises(ValueError, match=r"must be an nn\.Linear, it is Sequential"):
        SimKD(classifier="Teacher.stem").build(Example(*maps, student_modules=taps, models=models))
    with pytest.raises(ValueError, match=r"takes 64 features, but the teacher's map \(2, 32, 1, 1\)"):
        SimKD().build(Example(maps[0], torch.zeros(2, 32, 1, 1), student_modules=taps, models=models))
    with pytest.raises(ValueError, match="7 classes, the student's 5"):
        student.reuse(nn.Linear(64, 7), in_channels=128)
    with pytest.raises(ValueError, match="has no module \\['avgpool'\\]"):
        SimKDStudent(PPTSMv2(CLASSES, FRAMES, scale=0.125), pool="avgpool")
    with pytest.raises(ValueError, match="factor"):
        SimKDStudent(PPTSMv2(CLASSES, FRAMES, scale=0.125), factor=0)
    with pytest.raises(ValueError, match="one reference each"):
        SimKD()([maps[0]], [maps[1]])
    with pytest.raises(ValueError, match=r"such as 'Teacher.fc', got 'fc'"):
        SimKD(classifier="fc")
