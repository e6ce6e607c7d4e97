"""Padding and void count in no term: each path equals a loop by hand over the rows that count, in loss and gradient."""

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
from torch.utils.data import DataLoader

from lit_distill import DistillModule, LossComposer, LossTerm
from lit_distill.losses import DKDLoss, FitNetLoss, KDLoss, RegressionLoss, RKDLoss

BATCH, TOKENS, CLASSES = 3, 5, 4
MASK = torch.arange(TOKENS) < torch.tensor([5, 2, 3])[:, None]
KD_T = 2.0


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(5))


class Given(nn.Module):
    """Gives what it holds."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())

    def forward(self, x: Any = None) -> Tensor:
        return self.value * 1.0


def value_and_gradient(
    term: LossTerm, student: Tensor, teacher: Tensor, target: Tensor | None, **batch: Tensor
) -> tuple[Tensor, Tensor]:
    models = {"Student": Given(student), "Teacher": Given(teacher)}
    composer = LossComposer({"term": term})
    composer.build(models, None, target, batch=batch)
    with composer.capture(models) as signals:
        for model in models.values():
            model()
    total = composer(signals, target, batch=batch).total
    torch.autograd.backward(total)
    gradient = models["Student"].value.grad
    assert gradient is not None
    return total.detach(), gradient


def by_hand(loss: Callable[..., Tensor], student: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    value = loss(leaf, *rest)
    torch.autograd.backward(value)
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    log_s, log_t = F.log_softmax(student / KD_T, -1), F.log_softmax(teacher / KD_T, -1)
    return F.kl_div(log_s, log_t, log_target=True, reduction="batchmean") * KD_T**2


def rows_of(x: Tensor, mask: Tensor) -> Tensor:
    """One by one, as slow as it is plain."""
    places = [tuple(place) for place in mask.nonzero().tolist()]
    last = x.movedim(1, -1) if x.ndim == 4 else x
    return torch.stack([last[place] for place in places])


def of_rows(loss: Callable[..., Tensor], mask: Tensor) -> Callable[..., Tensor]:
    return lambda *given: loss(*(rows_of(x, mask) for x in given))


ROW_LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], bool]] = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), F.cross_entropy, True),
    "KDLoss": (KDLoss(temperature=KD_T), kd, False),
    "MSELoss": (nn.MSELoss(), F.mse_loss, False),
    "a function": (lambda s, t: (s - t).abs().mean(), F.l1_loss, False),
}


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_token_classification_by_the_attention_mask(name: str) -> None:
    loss, plain, takes_labels = ROW_LOSSES[name]
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    target = labels(BATCH, TOKENS)
    term = LossTerm(loss, ("Student", "GroundTruth" if takes_labels else "Teacher"), mask="Batch.attention_mask")
    found = value_and_gradient(term, student, teacher, target, attention_mask=MASK.long())
    expected = by_hand(of_rows(plain, MASK), student, target if takes_labels else teacher)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not found[1][~MASK].any()


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_masked_language_models_by_ignored_labels(name: str) -> None:
    loss, plain, takes_labels = ROW_LOSSES[name]
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    target = labels(BATCH, TOKENS).masked_fill(~MASK, -100)
    term = LossTerm(loss, ("Student", "GroundTruth" if takes_labels else "Teacher"), ignore_index=-100)
    found = value_and_gradient(term, student, teacher, target)
    expected = by_hand(of_rows(plain, MASK), student, target if takes_labels else teacher)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ROW_LOSSES)
def test_causal_language_models_by_a_shift(name: str, masked: bool) -> None:
    loss, plain, takes_labels = ROW_LOSSES[name]
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    target = labels(BATCH, TOKENS).masked_fill(~MASK, -100) if masked else labels(BATCH, TOKENS)
    given = {"mask": "Batch.attention_mask", "ignore_index": [-100]} if masked else {}
    pair = ("Student", "GroundTruth" if takes_labels else "Batch.logits")
    term = LossTerm(loss, pair, shift=True, **given)  # type: ignore[arg-type]
    batch = {"logits": teacher, **({"attention_mask": MASK} if masked else {})}
    found = value_and_gradient(term, student, teacher, target, **batch)

    def loop(logits: Tensor) -> Tensor:
        pairs = [
            (logits[b, t], target[b, t + 1] if takes_labels else teacher[b, t])
            for b in range(BATCH)
            for t in range(TOKENS - 1)
            if MASK[b, t + 1] or not masked
        ]
        return plain(torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs]))

    torch.testing.assert_close(found, by_hand(loop, student), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ROW_LOSSES)
def test_segmentation_with_void(name: str) -> None:
    loss, plain, takes_labels = ROW_LOSSES[name]
    loss = KDLoss(temperature=KD_T, class_dim=1) if name == "KDLoss" else loss
    student, teacher = (drawn(2, CLASSES, 4, 4, seed=seed) for seed in (1, 2))  # as many classes as pixels a side
    void = drawn(2, 4, 4, seed=3) < 0
    target = labels(2, 4, 4).masked_fill(void, 255)
    term = LossTerm(loss, ("Student", "GroundTruth" if takes_labels else "Teacher"), ignore_index=255)
    found = value_and_gradient(term, student, teacher, target)
    expected = by_hand(of_rows(plain, ~void), student, target if takes_labels else teacher)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_labels_of_a_loss_with_a_mask_may_be_none() -> None:
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    target = labels(BATCH, TOKENS)
    term = LossTerm(DKDLoss(warmup_epochs=0), ("Student", "Teacher"), target="GroundTruth", ignore_index=-100)
    found = value_and_gradient(term, student, teacher, target.masked_fill(~MASK, -100))
    expected = by_hand(of_rows(DKDLoss(warmup_epochs=0), MASK), student, teacher, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_mask_is_brought_to_the_size_of_a_map() -> None:
    student, teacher = (drawn(2, 6, 2, 2, seed=seed) for seed in (1, 2))
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    target[0, :2, :2] = 255  # a place as a whole
    target[1, 2:, 2] = 255  # half of one
    target[1, 0, 0] = 255
    counts = torch.ones(2, 2, 2, dtype=torch.bool)
    counts[0, 0, 0] = False
    for loss in (nn.MSELoss(), RegressionLoss(projector=None, distance="cosine")):
        found = value_and_gradient(LossTerm(loss, ("Student", "Teacher"), ignore_index=255), student, teacher, target)
        plain = F.mse_loss if isinstance(loss, nn.MSELoss) else lambda s, t: (1 - F.cosine_similarity(s, t)).mean()
        expected = by_hand(of_rows(plain, counts), student, teacher)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_tokens_of_a_cross_entropy_need_no_mask() -> None:
    student, target = drawn(BATCH, TOKENS, CLASSES, seed=1), labels(BATCH, TOKENS).masked_fill(~MASK, -100)
    found = value_and_gradient(LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth")), student, student, target)
    expected = by_hand(of_rows(F.cross_entropy, MASK), student, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_mask_of_samples_serves_any_loss() -> None:
    student, teacher, mask = drawn(4, 6, seed=1), drawn(4, 6, seed=2), torch.tensor([True, True, False, True])
    term = LossTerm(RKDLoss(), ("Student", "Teacher"), mask="Batch.clean")
    found = value_and_gradient(term, student, teacher, None, clean=mask)
    torch.testing.assert_close(found, by_hand(of_rows(RKDLoss(), mask), student, teacher), rtol=1e-6, atol=1e-6)


def test_weights_of_rows_are_for_losses_with_a_mask() -> None:
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    weights = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(0))
    found = value_and_gradient(
        LossTerm(KDLoss(), ("Student", "Teacher"), mask="Batch.w"), student, teacher, None, w=weights
    )
    torch.testing.assert_close(found[0], KDLoss()(student, teacher, mask=weights))
    with pytest.raises(ValueError, match="a mask of weights other than 0 and 1 needs a loss that has an argument mask"):
        value_and_gradient(
            LossTerm(nn.MSELoss(), ("Student", "Teacher"), mask="Batch.w"), student, teacher, None, w=weights
        )


@pytest.mark.parametrize("loss", [nn.MSELoss(), KDLoss()])
def test_no_position_that_counts_is_no_loss(loss: nn.Module) -> None:
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    models = {"Student": Given(student), "Teacher": Given(teacher)}
    composer = LossComposer({"term": LossTerm(loss, ("Student", "Teacher"), ignore_index=-100)})
    with composer.capture(models) as signals:
        [model() for model in models.values()]
    result = composer(signals, torch.full((BATCH, TOKENS), -100))
    torch.autograd.backward(result.total)
    assert result.total == 0
    assert [int(count) for count in result.samples] == [0]  # type: ignore[arg-type]
    assert not models["Student"].value.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"loss": nn.MSELoss(), "mask": "Batch.short"},
            r"term 'term': the mask \(3, 3\) does not fit a signal \(3, 5,",
        ),
        (
            {"loss": KDLoss(), "mask": "Batch.short"},
            r"expects a mask of the signal's leading dimensions \(3, 5\).*3, 3",
        ),
        ({"loss": FitNetLoss(), "mask": "Batch.mask"}, r"FitNetLoss has no argument mask and cannot leave positions"),
        ({"loss": nn.MSELoss(), "mask": "Batch.none"}, r"'Batch.none': a dict of .* has no part 'none'"),
        ({"loss": nn.MSELoss(), "mask": "Batch.short", "ignore_index": 0}, r"has not the positions of the labels"),
    ],
)
def test_what_does_not_fit_is_said(given: dict[str, Any], words: str) -> None:
    student, teacher = (drawn(BATCH, TOKENS, CLASSES, seed=seed) for seed in (1, 2))
    term = LossComposer({"term": {"pair": ("Student", "Teacher"), **given}}).terms["term"]
    with pytest.raises(ValueError, match=words):
        value_and_gradient(term, student, teacher, labels(BATCH, TOKENS), short=MASK[:, 2:], mask=MASK)


def test_an_ignored_label_is_a_whole_number() -> None:
    with pytest.raises(ValueError, match="ignore_index is a label such as -100, or a list of them, got 'x'"):
        LossTerm(nn.MSELoss(), ("Student", "Teacher"), ignore_index="x")  # type: ignore[arg-type]


def test_the_mean_of_an_epoch_is_that_of_its_tokens_and_nothing_warns() -> None:
    torch.manual_seed(0)
    batches = []
    for count in (1, 5):
        target = labels(2, TOKENS)
        target[:, count:] = -100
        batches.append((torch.randn(2, TOKENS, 6), target))
    student, teacher = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)
    module = DistillModule(
        {"Student": student, "Teacher": teacher},
        {
            "ce": LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth"), ignore_index=-100),
            "kd": LossTerm(KDLoss(temperature=KD_T), ("Student", "Teacher"), ignore_index=-100),
        },
        frozen=["Teacher"],
        optimizer=partial(torch.optim.SGD, lr=0.0),
        metrics=None,
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader, loader)
    assert not [str(w.message) for w in caught if "positions" in str(w.message)]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    counts = y != -100
    for stage in ("train", "val"):
        for name, expected in {
            "ce": F.cross_entropy(student(x)[counts], y[counts]),
            "kd": kd(student(x)[counts], teacher(x)[counts]),
        }.items():
            found = trainer.callback_metrics[f"{stage}/{name}"]
            torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_class_that_no_token_has_is_refused_before_training() -> None:
    ce = LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth"), ignore_index=99)
    module = DistillModule({"Student": nn.Linear(6, CLASSES)}, {"ce": ce})
    target = labels(2, TOKENS)
    target[0, 0] = 99
    module.build((torch.randn(2, TOKENS, 6), target))
    target[0, 1] = CLASSES
    with pytest.raises(ValueError, match="Student gives 4 classes but the data has 5"):
        module.build((torch.randn(2, TOKENS, 6), target))
