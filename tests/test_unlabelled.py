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
from lit_distill.losses.base import labelled_rows

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
    with pytest.raises(ValueError, match=r"term 'ce': .* a row for each of the 6 samples, came \(12, 3\)"):
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
