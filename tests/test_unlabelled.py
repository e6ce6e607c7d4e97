"""Terms on batches whose samples partly have no label: on the labelled ones, or on all."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill import DistillModule, LossComposer, LossTerm
from lit_distill.losses import CRDLoss, DKDLoss, KDLoss, WSLDLoss
from lit_distill.losses.base import LabelRule, labelled_rows

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
PARTLY = torch.tensor([2, -1, 0, -1, 1, -1])
NONE = torch.full((6,), -1)


def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"Student": nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "Teacher": nn.Linear(4, 3)}


def composed(
    terms: dict[str, LossTerm], target: Tensor, models: dict[str, nn.Module] | None = None, **more: Any
) -> Any:
    models = nets() if models is None else models
    composer = LossComposer(terms, unlabelled=True)
    with composer.capture(models) as signals:
        outputs = {name: model(X) for name, model in models.items()}
    return composer(signals, target, **more), outputs, models


def ce() -> LossTerm:
    return LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))


def soft(target: Tensor) -> Tensor:
    return F.one_hot(target.clamp_min(0), 3) * (target >= 0).float()[:, None]


@pytest.mark.parametrize("form", [lambda t: t, soft], ids=["indices", "probabilities"])
def test_labels_teach_the_labelled_alone_and_teachers_all(form: Any) -> None:
    result, outputs, _ = composed({"ce": ce(), "kd": LossTerm(KDLoss(), pair=("Student", "Teacher"))}, form(PARTLY))
    rows = [0, 2, 4]
    torch.testing.assert_close(result.unweighted["ce"], F.cross_entropy(outputs["Student"][rows], PARTLY[rows]))
    torch.testing.assert_close(result.unweighted["kd"], KDLoss()(outputs["Student"], outputs["Teacher"]))
    assert torch.autograd.grad(result.total, outputs["Student"])[0].ne(0).any(dim=1).all()


def test_what_has_no_label_gets_no_gradient_of_a_term_on_labels() -> None:
    result, outputs, _ = composed({"ce": ce()}, PARTLY)
    gradient = torch.autograd.grad(result.total, outputs["Student"])[0]
    assert torch.equal(gradient.abs().sum(dim=1) > 0, PARTLY >= 0)


@pytest.mark.parametrize("form", [lambda t: t, soft], ids=["indices", "probabilities"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_batch_without_labels_is_zero_and_reaches_every_parameter(form: Any, loss: nn.Module) -> None:
    term = LossTerm(loss, pair=("Student", "GroundTruth"))
    result, _, models = composed({"ce": term}, form(NONE))
    assert result.total.item() == 0.0
    torch.autograd.backward(result.total)
    for parameter in models["Student"].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_infinite_logits_of_a_batch_without_labels_do_not_matter() -> None:
    composer = LossComposer({"ce": ce()}, unlabelled=True)
    model = nn.Linear(4, 3)
    with composer.capture({"Student": model}) as signals:
        model(X * torch.inf)
    assert composer(signals, NONE).total.item() == 0.0


@pytest.mark.parametrize("loss", [DKDLoss(warmup_epochs=0), WSLDLoss()], ids=["dkd", "wsld"])
def test_losses_that_look_at_labels_see_the_labelled_alone(loss: nn.Module) -> None:
    term = LossTerm(loss, pair=("Student", "Teacher"), target="GroundTruth")
    result, outputs, _ = composed({"term": term}, PARTLY)
    rows = [0, 2, 4]
    expected = loss(outputs["Student"][rows], outputs["Teacher"].detach()[rows], PARTLY[rows])
    torch.testing.assert_close(result.total, expected)
    assert composed({"term": term}, NONE)[0].total.item() == 0.0


def test_a_loss_with_parameters_reaches_them_without_labels() -> None:
    """DDP waits for a gradient of each."""
    models = nets()
    index = torch.arange(6)
    term = LossTerm(CRDLoss(), pair=("Student.0", "Teacher"), target=["SampleIndex", "GroundTruth"])
    composer = LossComposer({"crd": term}, unlabelled=True)
    composer.build(models, X, PARTLY, index=index, dataset_size=8)
    with composer.capture(models) as signals:
        for model in models.values():
            model(X)
    torch.autograd.backward(composer(signals, NONE, index=index).total)
    parameters = list(composer.parameters())
    assert parameters
    assert all(parameter.grad is not None for parameter in parameters)


def test_a_signal_without_a_row_a_sample_is_refused() -> None:
    composer = LossComposer({"ce": LossTerm(F.cross_entropy, pair=("Student", "GroundTruth"))}, unlabelled=True)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(2, 3))  # frames become rows
    with composer.capture({"Student": model}) as signals:
        model(X.view(6, 2, 2))
    with pytest.raises(ValueError, match=r"term 'ce': .* a row for each of the 6 samples, got \(12, 3\)"):
        composer(signals, PARTLY)


def test_without_being_told_a_missing_label_is_an_error() -> None:
    composer = LossComposer({"ce": ce()})
    model = nn.Linear(4, 3)
    with composer.capture({"Student": model}) as signals:
        model(X)
    with pytest.raises(ValueError, match=r"term 'ce' .*[Tt]arget -1"):
        composer(signals, PARTLY)


def test_all_labelled_is_as_ever() -> None:
    assert labelled_rows(torch.tensor([0, 1])) is None
    assert labelled_rows(torch.eye(2)) is None
    target = torch.tensor([2, 1, 0, 1, 1, 0])
    told = composed({"ce": ce()}, target)[0].total
    composer, models = LossComposer({"ce": ce()}), nets()
    with composer.capture(models) as signals:
        models["Student"](X), models["Teacher"](X)
    assert torch.equal(composer(signals, target).total, told)


def test_a_module_is_told_by_its_data_or_by_hand() -> None:
    class Data:
        has_unlabelled = True

    def module(**more: Any) -> DistillModule:
        return DistillModule(
            {"Student": nn.Linear(4, 3)}, {"ce": ce()}, optimizer=partial(torch.optim.SGD, lr=1), **more
        )

    told = module()
    assert not told.composer.unlabelled
    told.expect_labels_of(Data())
    assert told.composer.unlabelled
    assert module(unlabelled=True).composer.unlabelled
    batch = X, PARTLY
    told.build(batch)
    assert told.composer.terms["ce"].needs_labels


BCE = nn.BCEWithLogitsLoss()
VOID = torch.full((4, 4), 255)


@pytest.mark.parametrize(
    ("target", "loss", "labelled"),
    [
        (torch.tensor([[[0, 0]], [[-1, 2]], [[-1, -1]]]), nn.CrossEntropyLoss(ignore_index=-1), [0, 1]),  # masks
        (torch.zeros(3, 4, 4, dtype=torch.long), nn.CrossEntropyLoss(), [0, 1, 2]),  # of pure background
        (torch.stack([VOID, VOID * 0, VOID]), nn.CrossEntropyLoss(ignore_index=255), [1]),
        (torch.stack([VOID, VOID * 0, VOID]), partial(F.cross_entropy, ignore_index=255), [1]),
        (torch.stack([VOID, VOID * 0]), nn.CrossEntropyLoss(), [0, 1]),  # a class, as nobody says otherwise
        (torch.stack([VOID, VOID * 0]).to(torch.uint8), nn.CrossEntropyLoss(ignore_index=255), [1]),
        (torch.tensor([[2], [-1], [0]]), nn.CrossEntropyLoss(), [0, 2]),
        (torch.tensor([[1, -100], [-100, -100]]), nn.CrossEntropyLoss(), [0]),
        (torch.tensor([[0, 0, 0], [0, 1, 1]]), BCE, [0, 1]),
        (torch.tensor([[0.0, 0, 0], [0, 1, 1]]), BCE, [0, 1]),
        (torch.tensor([[0.0, 0, 0], [0, 1, 0]]), BCE, [0, 1]),
        (torch.tensor([[0.0, 0, 0], [0, 1, 0]]), F.binary_cross_entropy_with_logits, [0, 1]),
        (torch.tensor([[0.0, 0, 0], [0, 1, 0], [-1, -1, -1]]), lambda s, t: s.sum() * 0, [0, 1]),
        (torch.tensor([[0.0, 0, 0], [0.3, 0.7, 0]]), lambda s, t: s.sum() * 0, [1]),  # mixed probabilities
        (torch.tensor([[0.0, 0, 0], [torch.nan] * 3]), BCE, [0]),
        (torch.tensor([0.0, 1.0, -1.0, -0.5]), BCE, [0, 1, 3]),
        (torch.tensor([[0.0], [1.0], [-1.0]]), BCE, [0, 1]),
        (torch.tensor([-1.0, 1.0, torch.nan]), nn.SoftMarginLoss(), [0, 1]),
        (torch.tensor([True, False]), BCE, [0, 1]),
    ],
)
def test_which_samples_have_a_label(target: Tensor, loss: Any, labelled: list[int]) -> None:
    rows = labelled_rows(target, LabelRule.of(loss))
    assert (list(range(len(target))) if rows is None else rows.tolist()) == labelled


def test_a_batch_of_pure_background_teaches() -> None:
    torch.manual_seed(0)
    models = {"Student": nn.Conv2d(1, 3, 1)}
    composer = LossComposer({"ce": ce()}, unlabelled=True)
    with composer.capture(models) as signals:
        output = models["Student"](torch.randn(3, 1, 4, 4))
    target = torch.zeros(3, 4, 4, dtype=torch.long)
    torch.testing.assert_close(composer(signals, target).total, F.cross_entropy(output, target))


def test_terms_of_one_composer_read_the_target_each_in_its_way() -> None:
    target = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
    terms = {"ce": ce(), "bce": LossTerm(BCE, pair=("Student", "GroundTruth"))}
    result, outputs, _ = composed(terms, target)
    rows = [1, 3, 5]
    torch.testing.assert_close(result.unweighted["ce"], F.cross_entropy(outputs["Student"][rows], target[rows]))
    torch.testing.assert_close(result.unweighted["bce"], BCE(outputs["Student"], target))
    assert result.samples == (3, None)


def test_a_function_says_of_other_data_which_samples_have_a_label() -> None:
    composer = LossComposer({"ce": ce()}, unlabelled=lambda target: target != 2)
    models = nets()
    with composer.capture(models) as signals:
        output = models["Student"](X)
        models["Teacher"](X)
    target = torch.tensor([2, 0, 1, 2, 0, 1])
    rows = [1, 2, 4, 5]
    torch.testing.assert_close(composer(signals, target).total, F.cross_entropy(output[rows], target[rows]))
    composer = LossComposer({"ce": ce()}, unlabelled=lambda target: target)
    with composer.capture(models) as signals:
        models["Student"](X), models["Teacher"](X)
    with pytest.raises(ValueError, match="unlabelled: the function must give one boolean for each of the 6 samples"):
        composer(signals, target)


def test_a_target_that_is_no_tensor_is_refused_by_name() -> None:
    composer = LossComposer({"ce": ce()}, unlabelled=True)
    models = nets()
    with composer.capture(models) as signals:
        models["Student"](X), models["Teacher"](X)
    with pytest.raises(ValueError, match="'GroundTruth' gives a dict, not a tensor"):
        composer(signals, {"labels": PARTLY})
