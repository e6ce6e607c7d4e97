from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_distill import DistillModule, LossTerm
from lit_distill.checkpoints import read_checkpoint
from lit_distill.losses import KDLoss
from lit_distill.models import Ensemble, PPTSMv2
from lit_distill.models.ensemble import Mode
from lit_distill.optim import paddle_momentum
from lit_distill.runs.opened import load_run
from lit_distill.training.train import run
from run_folders import composed

MODES: tuple[Mode, ...] = get_args(Mode)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Says(nn.Module):
    """A member that gives the same logits to every sample, or a row a sample."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.expand(len(x), -1)


def members(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(4, 3) for _ in range(count)]


def by_hand(logits: list[Tensor], weights: list[float], mode: Mode) -> Tensor:
    """Probabilities sample by sample, in double precision."""
    rows = []
    for sample in range(len(logits[0])):
        z = [row[sample].double() for row in logits]
        if mode == "logits":
            rows.append(torch.stack([w * row for w, row in zip(weights, z, strict=True)]).sum(0).softmax(0))
            continue
        p = [row.softmax(0) for row in z]
        trust = list(weights)
        if mode == "confidence":
            trust = [w * float(torch.exp((q * q.log()).sum()).detach()) for w, q in zip(weights, p, strict=True)]
        rows.append(torch.stack([w / sum(trust) * q for w, q in zip(trust, p, strict=True)]).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 2.0]])
def test_answers_are_those_by_hand(mode: Mode, weights: list[float] | None) -> None:
    parts = members(3)
    ensemble = Ensemble(parts, weights=weights, mode=mode)
    shares = [w / sum(weights) for w in weights] if weights else [1 / 3] * 3
    wanted = by_hand([part(X) for part in parts], shares, mode)
    torch.testing.assert_close(ensemble(X).double().softmax(1), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_equal_members_answer_as_one(mode: Mode) -> None:
    one = members(1)[0]
    answer = Ensemble([one, one, one], mode=mode, weights=[1, 7, 2])(X)
    torch.testing.assert_close(answer.softmax(1), one(X).softmax(1))
    if mode == "logits":
        torch.testing.assert_close(answer, one(X))


def test_who_is_sure_of_a_sample_is_listened_to_there() -> None:
    sure_of_first = Says([20.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    sure_of_second = Says([0.0, 0.0, 0.0], [0.0, 0.0, 20.0])
    both = torch.zeros(2, 4)
    averaged = Ensemble([sure_of_first, sure_of_second], mode="probabilities")(both).exp()
    trusted = Ensemble([sure_of_first, sure_of_second], mode="confidence")(both).exp()
    # one of three classes: exp(-log 3) against exp(0), so 1/4 to 3/4
    torch.testing.assert_close(averaged[:, 0], torch.tensor([0.5 + 0.5 / 3, 0.5 / 3]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trusted[:, 0], torch.tensor([0.75 + 0.25 / 3, 0.25 / 3]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_extreme_logits_and_half_precision_stay_finite(mode: Mode) -> None:
    ensemble = Ensemble([Says([1e4, -1e4, 0.0]), Says([-1e4, 1e4, 0.0])], mode=mode)
    assert ensemble(X).isfinite().all()
    halves = Ensemble([Says([3.0, 1.0, 0.0]).half(), Says([0.0, 1.0, 3.0]).half()], mode=mode)
    for part in halves.members.values():
        assert isinstance(part, Says)
        part.rows = part.rows.half()
    answer = halves(X)
    assert answer.dtype == torch.float32
    assert answer.isfinite().all()


def test_a_frozen_ensemble_teaches_and_its_members_are_tapped() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.body(x).tanh())
            return y

    torch.manual_seed(0)
    teacher = Ensemble({"first": Net(), "second": Net()})
    module = DistillModule(
        {"Student": Net(), "Teacher": teacher}, frozen=["Teacher"],
        losses={
            "kd": LossTerm(KDLoss(), pair=("Student", "Teacher")),
            "hint": LossTerm(nn.MSELoss(), pair=("Student.fc:input", "Teacher.members.second.fc:input")),
        },
    )  # fmt: skip
    with module.composer.capture(module.named) as signals:
        module.run_models(X, signals)
    result = module.composer(signals)
    second = teacher.members["second"]
    assert isinstance(second, Net)
    student = module.models["Student"]
    assert isinstance(student, Net)
    hint = nn.functional.mse_loss(student.body(X).tanh(), second.body(X).tanh())
    torch.testing.assert_close(result.unweighted["hint"], hint.detach())
    result.total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in teacher.parameters())
    module.train()
    assert not any(part.training for part in teacher.modules())


def test_members_keep_their_parameter_groups() -> None:
    def network() -> PPTSMv2:
        return PPTSMv2(3, 4, scale=0.25, depths=(1, 1, 1, 1), class_expand=16)

    alone = paddle_momentum({"A": network()}, lr=0.1).param_groups
    both = paddle_momentum({"Teacher": Ensemble({"a": network(), "b": network()})}, lr=0.1).param_groups
    assert [g["lr"] for g in both] == 2 * [g["lr"] for g in alone]
    assert both[0]["name"] == "Teacher/a/weights"


def test_a_member_sees_its_own_input() -> None:
    class Shape(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[float(n) for n in x.shape[1:]]])

    ensemble = Ensemble({"a": Shape(), "b": Shape()}, inputs={"b": {"num_frames": 2, "size": 4}})
    assert ensemble(torch.zeros(1, 8, 3, 16, 16)).tolist() == [[5.0, 3.0, 10.0, 10.0]]


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="mode is one of logits, probabilities, confidence, got 'mean'"):
        Ensemble(members(2), mode="mean")  # type: ignore[arg-type]
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], {"0": 1.0, "2": 1.0}, [1.0, 1.0, 1.0], [1.0, float("inf")]):
        with pytest.raises(ValueError, match=r"weights are a number above 0 for each of \['0', '1'\]"):
            Ensemble(members(2), weights=weights)
    with pytest.raises(ValueError, match="needs members"):
        Ensemble({})
    with pytest.raises(ValueError, match="no member: a name without dots"):
        Ensemble({"a.b": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"inputs names \['c'\], which are no members"):
        Ensemble(members(2), inputs={"c": {"size": 4}})
    with pytest.raises(ValueError, match=r"answers differ in shape: \{'0': \(6, 3\), '1': \(6, 2\)\}"):
        Ensemble([nn.Linear(4, 3), nn.Linear(4, 2)])(X)


# From several weights files ----------------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path: Path) -> DictConfig:
    """KD from a frozen ensemble of two trained networks."""
    files = {name: tmp_path / f"{name}.safetensors" for name in ("first", "second")}
    config = composed(
        "train", *overrides(tmp_path), *(f"models.Teacher.members.{n}.pretrained={f}" for n, f in files.items())
    )
    for seed, (name, file) in enumerate(files.items()):
        torch.manual_seed(seed)
        save_file(instantiate({**config.models.Teacher.members[name], "pretrained": None}).state_dict(), file)
    return config


def overrides(folder: Path) -> list[str]:
    return [
        "experiment=ensemble_pptsmv2", "teacher=frozen", "data=moving_digits_tiny", "trainer=cpu",
        f"data.root={folder}", "trainer.max_epochs=1", "callbacks.progress=null", "doctor=false",
        f"run_dir={folder / 'run'}", "+models.Teacher.mode=confidence",
    ]  # fmt: skip


def test_a_run_learns_from_several_weights_files(experiment: DictConfig, tmp_path: Path, capsys: Any) -> None:
    results = run(experiment)
    printed = " ".join(capsys.readouterr().out.split())
    for name in ("first", "second"):
        assert f"Teacher.members.{name}: {tmp_path / name}.safetensors" in printed
    assert "val/Teacher/top1" in results["final"]
    folder = tmp_path / "run"
    stored = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert not any(key.startswith("models.Teacher") for key in stored["state_dict"])
    record = stored["lit_distill"]["frozen_records"]["Teacher"]
    assert record["parts"]["members.second"]["loaded_from"] == str(tmp_path / "second.safetensors")

    teacher = load_run(folder).model("Teacher")
    assert isinstance(teacher, Ensemble)
    assert teacher.mode == "confidence"
    for name in ("first", "second"):
        wanted, found = load_file(tmp_path / f"{name}.safetensors"), teacher.members[name].state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    changed = {key: value + 1 if value.is_floating_point() else value for key, value in wanted.items()}
    save_file(changed, tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match=r"second\.safetensors has changed since .* was trained"):
        load_run(folder).model("Teacher")


def test_a_frozen_member_without_weights_is_named(tmp_path: Path) -> None:
    config = composed("train", *overrides(tmp_path), "models.Teacher.members.first.pretrained=a.safetensors")
    with pytest.raises(ValueError, match=r"no weights: give models\.Teacher\.members\.second\.pretrained=<file> \("):
        run(config)
