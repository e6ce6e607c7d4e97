"""Custom losses are read by their graphs: one class, probabilities for logits, what a value is the mean of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossComposer, LossTerm
from lit_distill._terms.graph import activates, mean_of, teaches
from lit_distill.losses import KDLoss

BOTH, LABELLED = ("Student", "Teacher"), ("Student", "GroundTruth")


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean")


def tokens(logits: Tensor, labels: Tensor, **given: Any) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **given)


def module(losses: dict[str, LossTerm], student: nn.Module, teacher: nn.Module | None = None) -> DistillModule:
    models = {"Student": student, **({} if teacher is None else {"Teacher": teacher})}
    sgd = partial(torch.optim.SGD, lr=0.0)
    return DistillModule(models, losses, frozen=list(models)[1:], optimizer=sgd, metrics=None)


@pytest.mark.parametrize(
    "loss", [kl, lambda s, t: F.cross_entropy(s, t.softmax(1)), lambda s, t: -(t.softmax(1) * s.log_softmax(-1)).mean()]
)
def test_a_softmax_over_one_class_teaches_nobody(loss: Callable[..., Tensor]) -> None:
    one = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=r"term 'kd' .*teaches nobody.*softmax of one logit"):
        module({"kd": LossTerm(loss, pair=BOTH)}, one, nn.Linear(4, 1)).build((torch.randn(2, 4), torch.ones(2, 1)))
    module({"kd": LossTerm(loss, pair=BOTH)}, nn.Linear(4, 2), nn.Linear(4, 2)).build((torch.randn(2, 4), None))


def test_what_is_over_one_entry_is_found_in_any_place() -> None:
    x, none = torch.randn(2, 1, 3, requires_grad=True), torch.zeros(2, dtype=torch.long)
    assert not teaches(x.softmax(1).square().sum(), x)
    assert teaches(x.softmax(-1).square().sum(), x)
    assert not teaches(F.multi_margin_loss(x[..., 0], none), x)
    assert teaches((x.softmax(1) + x).sum(), x), "another part of the loss teaches"
    assert teaches((x.sum() * torch.zeros(1, requires_grad=True).softmax(0)).sum(), x), "the weight of one layer"


class Ending(nn.Module):
    def __init__(self, last: Callable[[Tensor], Tensor], training: bool = True) -> None:
        super().__init__()
        self.fc, self.last, self.too = nn.Linear(4, 3), last, training

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(x)) if self.too or not self.training else self.fc(x)


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, 3).float()


softmax = partial(torch.softmax, dim=1)


@pytest.mark.parametrize(
    ("loss", "pair", "last", "who"),
    [
        (lambda x, y: F.cross_entropy(x, y), LABELLED, softmax, "Student"),
        (lambda x, y: F.binary_cross_entropy_with_logits(x, one_hot(y)), LABELLED, torch.sigmoid, "Student"),
        (lambda x, y: -(x[torch.arange(2), y] - x.logsumexp(1)).mean(), LABELLED, softmax, "Student"),
        (kl, BOTH, softmax, "Teacher"),
    ],
)  # fmt: skip
def test_probabilities_where_an_own_loss_takes_the_softmax(
    loss: Callable[..., Tensor], pair: tuple[str, str], last: Callable[[Tensor], Tensor], who: str
) -> None:
    ending, plain = Ending(last), Ending(lambda x: x)
    models = (ending, None) if pair == LABELLED else (plain, ending)
    with pytest.warns(UserWarning, match=rf"term 'own' .*'{who}' \(2, 3\) does not fit"):
        module({"own": LossTerm(loss, pair=pair)}, *models).build((torch.randn(2, 4), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("loss", "pair", "last"),
    [
        (lambda x, y: F.nll_loss(x.log(), y), LABELLED, softmax),
        (lambda x, y: F.binary_cross_entropy(x, one_hot(y)), LABELLED, torch.sigmoid),
        (lambda s, t: F.kl_div(s.log_softmax(1), t, reduction="batchmean"), BOTH, softmax),
        (kl, BOTH, partial(torch.log_softmax, dim=1)),
    ],
)
def test_probabilities_that_an_own_loss_takes_as_such(
    loss: Callable[..., Tensor], pair: tuple[str, str], last: Callable[[Tensor], Tensor]
) -> None:
    models = (Ending(last), None) if pair == LABELLED else (Ending(lambda x: x), Ending(last))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module({"own": LossTerm(loss, pair=pair)}, *models).build((torch.randn(2, 4), torch.tensor([0, 1])))


def test_a_softmax_of_eval_mode_alone_is_said_to_be_one() -> None:
    ce = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=LABELLED)}
    with pytest.warns(UserWarning, match="does not fit.*in eval mode alone"):
        module(ce, Ending(softmax, training=False)).build((torch.randn(2, 4), torch.tensor([0, 1])))
    with pytest.warns(UserWarning, match="to its loss$"):
        module(ce, Ending(softmax)).build((torch.randn(2, 4), torch.tensor([0, 1])))


def test_a_scaled_or_reshaped_softmax_is_one() -> None:
    x = torch.randn(2, 5, 3, requires_grad=True)
    assert activates((x / 4).flatten(0, 1).log_softmax(-1).sum(), x)
    assert activates((x - x.max()).logsumexp(-1).sum(), x)
    assert not activates(x.exp().softmax(-1).sum(), x)


torch.manual_seed(0)
X, Y = torch.randn(6, 5, 4), torch.randint(0, 3, (6, 5))
Y[3:, 1:] = -100
WEIGHT = torch.tensor([1.0, 2.0, 3.0])
weighted = partial(tokens, weight=WEIGHT)


@pytest.mark.parametrize("preflight", [True, False])
@pytest.mark.parametrize(
    ("loss", "same"),
    [
        (lambda x, y: tokens(x, y), tokens),
        (nn.CrossEntropyLoss(), tokens),
        (lambda x, y: F.cross_entropy(x.transpose(1, 2), y, label_smoothing=0.1), partial(tokens, label_smoothing=0.1)),
        (weighted, weighted),
    ],
)  # fmt: skip
def test_means_of_an_epoch_are_over_tokens(loss: Any, same: Callable[..., Tensor], preflight: bool) -> None:
    made = module({"ce": LossTerm(loss, pair=LABELLED)}, nn.Linear(4, 3))
    made._preflight = preflight
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(made, loader, loader)
    whole = float(same(made(X).detach(), Y))
    assert float(trainer.callback_metrics["val/ce"]) == pytest.approx(whole, rel=1e-5)
    assert float(trainer.callback_metrics["train/ce"]) == pytest.approx(whole, rel=1e-5)


def test_terms_of_validation_alone_are_read_as_well() -> None:
    made = DistillModule(
        {"Student": nn.Linear(4, 3)},
        {"ce": LossTerm(tokens, pair=LABELLED)},
        val_losses={
            "own": LossTerm(weighted, pair=LABELLED),
            "share": LossTerm(lambda x, y: torch.tensor((x.argmax(-1) == y).float().numpy().mean()), pair=LABELLED),
        },
    )
    made.build((X[:2], Y[:2]))
    assert list(made.val_composer.means) == ["own"]
    assert made.val_composer.means["own"].of_labels(Y[3:]) == WEIGHT[Y[3:, 0]].sum()


def test_what_is_no_mean_over_the_labels_has_none() -> None:
    logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
    assert mean_of(F.cross_entropy(logits, labels, reduction="sum"), labels) is None
    assert mean_of(F.cross_entropy(logits[:1], labels[:1]), labels) is None
    assert mean_of(F.cross_entropy(logits, labels) + F.cross_entropy(-logits, labels), labels) is None
    assert mean_of(logits.mean(), labels) is None


def test_a_composer_of_its_own_says_what_padding_counts() -> None:
    kd = LossTerm(KDLoss(class_dim=-1), pair=BOTH)
    models = {"Student": nn.Linear(4, 3), "Teacher": nn.Linear(4, 3)}
    ignores = LossTerm(lambda x, y: tokens(x, y, ignore_index=0), pair=LABELLED)
    with pytest.warns(UserWarning, match="positions are 0, no class, but the term 'kd'"):
        LossComposer({"kd": kd, "ce": ignores}).build(models, X, torch.tensor([[1, 2, 1, 0, 0]] * 6))
