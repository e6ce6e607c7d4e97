"""LossTerm and LossComposer: what is summed, what is detached, and how errors read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lit_distill import LossComposer, LossTerm
from lit_distill.losses.base import Example, SizedLoss


class Adapter(SizedLoss):
    """A loss sized from an example: a linear map from the student's width to the teacher's."""

    def __init__(self) -> None:
        super().__init__()
        self.map: nn.Linear | None = None
        self.builds = 0

    @property
    def is_built(self) -> bool:
        return self.map is not None

    def build(self, example: Example) -> None:
        assert isinstance(example.student, Tensor)
        assert isinstance(example.teacher, Tensor)
        if self.map is None:
            self.map = nn.Linear(example.student.shape[1], example.teacher.shape[1])
            self.builds += 1
        self.example = example

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.require_built()
        assert self.map is not None
        return nn.functional.mse_loss(self.map(student), teacher)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "Student": nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
        "Teacher": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
    }


def step(composer: LossComposer, models: dict[str, nn.Module], x: Tensor, y: Tensor | None = None, epoch: float = 0.0):  # type: ignore[no-untyped-def]
    with composer.capture(models) as signals:
        for model in models.values():
            model(x)
    return composer(signals, y, epoch=epoch)


def test_total_is_the_weighted_sum_of_the_terms(models: dict[str, nn.Module]) -> None:
    composer = LossComposer(
        {
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": {"loss": nn.MSELoss(), "pair": ["Student", "Teacher"], "weight": 0.25},
        }
    )
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    result = step(composer, models, x, y)
    ce = nn.functional.cross_entropy(models["Student"](x), y)
    mse = nn.functional.mse_loss(models["Student"](x), models["Teacher"](x))
    torch.testing.assert_close(result.total, ce + 0.25 * mse)
    torch.testing.assert_close(result.unweighted["mse"], mse.detach())
    torch.testing.assert_close(sum(result.weighted.values()), result.total.detach())


def test_the_second_of_a_pair_gets_no_gradient_unless_both_learn(models: dict[str, nn.Module]) -> None:
    class Mutual(nn.MSELoss):
        teaches_both = True

    x = torch.randn(5, 4)
    for loss, detach, expected in ((nn.MSELoss(), None, False), (nn.MSELoss(), False, True), (Mutual(), None, True)):
        for model in models.values():
            model.zero_grad()
        composer = LossComposer({"mse": LossTerm(loss, pair=("Student", "Teacher"), detach=detach)})
        step(composer, models, x).total.backward()
        assert all(p.grad is not None for p in models["Student"].parameters())
        assert all((p.grad is not None) is expected for p in models["Teacher"].parameters())


def test_lists_of_references_and_a_target_reach_the_loss(models: dict[str, nn.Module]) -> None:
    seen: list[object] = []

    def loss(student: Sequence[Tensor], teacher: Tensor, target: Sequence[Tensor]) -> Tensor:
        seen.append([[tuple(t.shape) for t in student], tuple(teacher.shape), [tuple(t.shape) for t in target]])
        return student[0].sum()

    term = LossTerm(loss, pair=(["Student.2", "Student.2:input"], "Teacher.0"), target=["SampleIndex", "GroundTruth"])
    composer = LossComposer({"spy": term})
    with composer.capture(models) as signals:
        for model in models.values():
            model(torch.randn(5, 4))
    composer(signals, torch.zeros(5), index=torch.arange(5))
    assert seen == [[[(5, 3), (5, 6)], (5, 8), [(5,), (5,)]]]


def test_a_weight_may_be_a_schedule_of_the_epoch(models: dict[str, nn.Module]) -> None:
    composer = LossComposer(
        {"mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=lambda epoch: epoch / 10)}
    )
    x = torch.randn(5, 4)
    assert step(composer, models, x, epoch=0.0).total == 0
    early, late = step(composer, models, x, epoch=2.5), step(composer, models, x, epoch=5.0)
    assert early.weights.tolist() == [0.25]
    torch.testing.assert_close(late.total, 2 * early.total)


def test_a_loss_learns_the_epoch(models: dict[str, nn.Module]) -> None:
    class WarmUp(nn.MSELoss):
        def set_epoch(self, epoch: float) -> None:
            self.epoch = epoch

    loss = WarmUp()
    step(LossComposer({"mse": LossTerm(loss, pair=("Student", "Teacher"))}), models, torch.randn(5, 4), epoch=3.5)
    assert loss.epoch == 3.5


def test_build_sizes_losses_clones_taps_and_leaves_no_trace(models: dict[str, nn.Module]) -> None:
    adapter = Adapter()
    composer = LossComposer({"hint": LossTerm(adapter, pair=("Student.0", "Teacher.0"))})
    models["Teacher"].eval()
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"term 'hint': 'Student.0' was changed in place"):
        step(composer, models, x)
    composer.build(models, x, dataset_size=7)
    composer.build(models, x, dataset_size=7)
    assert adapter.builds == 1
    assert adapter.example.dataset_size == 7
    assert adapter.example.student_modules == (models["Student"].get_submodule("0"),)
    assert models["Student"].training
    assert not models["Teacher"].training
    assert adapter.map is not None
    assert adapter.map.training
    assert all(p.grad is None for p in adapter.parameters())
    result = step(composer, models, x)
    result.total.backward()
    assert all(p.grad is not None for p in adapter.parameters())
    assert {name for name, _ in composer.named_parameters()} == {"losses.hint.map.weight", "losses.hint.map.bias"}


def test_an_unbuilt_loss_says_what_to_call(models: dict[str, nn.Module]) -> None:
    composer = LossComposer({"hint": LossTerm(Adapter(), pair=("Student.2", "Teacher.2"))})
    with pytest.raises(ValueError, match=r"term 'hint' .*composer\.build"):
        step(composer, models, torch.randn(2, 4))


def test_shape_mismatch_names_the_term_both_references_and_both_shapes(models: dict[str, nn.Module]) -> None:
    composer = LossComposer({"kl": LossTerm(nn.KLDivLoss(), pair=("Student.0", "Teacher.0"))})
    models["Student"].register_module("1", nn.ReLU())
    with pytest.raises(ValueError, match=r"term 'kl' \(KLDivLoss\) on Student\.0 \(5, 6\), Teacher\.0 \(5, 8\)"):
        step(composer, models, torch.randn(5, 4))


def test_a_loss_that_gives_no_single_number_is_named(models: dict[str, nn.Module]) -> None:
    composer = LossComposer({"mse": LossTerm(nn.MSELoss(reduction="none"), pair=("Student", "Teacher"))})
    with pytest.raises(ValueError, match=r"term 'mse' .* must give one number, got \(5, 3\)"):
        step(composer, models, torch.randn(5, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": nn.MSELoss(), "pair": ["Student"]}, "pair must be two references"),
        ({"loss": nn.MSELoss(), "pair": "Student"}, "pair must be two references"),
        ({"loss": nn.MSELoss(), "pair": ["GroundTruth", "Student"]}, "the first of a pair must learn"),
        ({"loss": nn.MSELoss(), "pair": ["Student", "Teacher"], "weight": float("nan")}, "weight must be"),
        ({"loss": nn.MSELoss(), "pair": ["Student", "Teacher"], "weight": "0.5"}, "weight must be.*got '0.5'"),
        ({"loss": "kd", "pair": ["Student", "Teacher"]}, "must be a callable"),
        ({"loss": nn.MSELoss(), "pair": ["Student", []]}, "names nothing"),
        ({"loss": nn.MSELoss(), "pairs": ["Student", "Teacher"]}, "unknown keys"),
        ({"pair": ["Student", "Teacher"]}, "missing keys"),
    ],
)
def test_malformed_terms_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"term 'bad': .*{message}"):
        LossComposer({"bad": arguments})


def test_no_terms_and_unusable_names_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one term"):
        LossComposer({})
    for name in ("a.b", "keys", "pop"):
        with pytest.raises(ValueError, match="cannot name a term"):
            LossComposer({name: LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))})


def test_check_names_the_term_of_a_wrong_reference(models: dict[str, nn.Module]) -> None:
    composer = LossComposer({"mse": LossTerm(nn.MSELoss(), pair=("Student.7", "Teacher"))})
    with pytest.raises(ValueError, match=r"term 'mse': 'Student\.7' names no submodule of Student"):
        composer.check(models)


def test_what_was_evaluated_in_inference_mode_can_be_trained() -> None:
    student, x = nn.Linear(4, 3), torch.randn(8, 4)
    composer = LossComposer({"mse": LossTerm(nn.MSELoss(), pair=("Student", "GroundTruth"), weight=0.5)})

    def total() -> Tensor:
        with composer.capture({"Student": student}) as signals:
            student(x)
        return composer(signals, torch.zeros(8, 3)).total

    with torch.inference_mode():
        evaluated = total()
    trained = total()
    trained.backward()  # type: ignore[no-untyped-call]
    assert trained.item() == evaluated.item()
