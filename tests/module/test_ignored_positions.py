"""A term that averages over padding or void positions warns, once; others do not."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossTerm
from lit_distill.losses import KDLoss

TEXT = r"% of the target's positions are "


class Tokens(nn.Module):
    """(B, T, 4) to logits (B, T, 5), or pixels (B, 4, H, W) to (B, 5, H, W)."""

    def __init__(self, pixels: bool = False) -> None:
        super().__init__()
        self.body: nn.Module = nn.Conv2d(4, 6, 1) if pixels else nn.Linear(4, 6)
        self.head: nn.Module = nn.Conv2d(6, 5, 1) if pixels else nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


class TokenLoss(nn.CrossEntropyLoss):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().forward(logits.flatten(0, 1), target.flatten())


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean()


def made(pixels: bool, pair: tuple[str, str], ignore: int = -100, **more: Any) -> DistillModule:
    ce = nn.CrossEntropyLoss(ignore_index=ignore) if pixels else TokenLoss(ignore_index=ignore)
    return DistillModule(
        {"Student": Tokens(pixels), "Teacher": Tokens(pixels)},
        {"ce": LossTerm(ce, pair=("Student", "GroundTruth")), "kd": LossTerm(kd, pair=pair)},
        **{"frozen": ["Teacher"], "optimizer": partial(torch.optim.SGD, lr=0.1), "metrics": None, **more},
    )


def batches(pixels: bool, value: int | None, samples: int = 4) -> DataLoader[Any]:
    x = torch.randn(samples, 4, 3, 3) if pixels else torch.randn(samples, 6, 4)
    y = torch.randint(5, (samples, 3, 3) if pixels else (samples, 6))
    if value is not None:
        y[samples // 2 :, -1] = value  # not of the example batch, unless there are but two samples
    return DataLoader(TensorDataset(x, y), batch_size=samples)


def fit(module: LightningModule, loader: DataLoader[Any]) -> None:
    Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader)  # fmt: skip


@pytest.mark.parametrize("samples", [2, 4])
@pytest.mark.parametrize("pair", [("Student", "Teacher"), ("Student.body", "Teacher.body")], ids=["logits", "features"])
@pytest.mark.parametrize(("pixels", "value"), [(False, -100), (False, -1), (True, 255), (True, -1), (True, -100)])
def test_padding_that_counts_is_said_once(pixels: bool, value: int, pair: Any, samples: int) -> None:
    with pytest.warns(
        UserWarning, match=f"{TEXT}{value}, no class, but the term 'kd' .on {pair[0]}. averages"
    ) as found:
        fit(made(pixels, pair, ignore=value), batches(pixels, value, samples))
    assert len([one for one in found if "positions" in str(one.message)]) == 1


@pytest.mark.parametrize("case", ["no padding", "a class of that number", "pooled", "labels of samples"])
def test_nothing_is_said_where_nothing_is_ignored(case: str) -> None:
    module = made(pixels=True, pair=("Student", "Teacher"))
    loader = batches(pixels=True, value=None)
    if case == "pooled":
        module = made(pixels=True, pair=("Student", "Teacher"), ignore=255)
        module.composer.terms["kd"] = LossTerm(kd, pair=("Student", "Teacher"), target="GroundTruth")
        module.composer.terms["kd"].loss = lambda s, t, y: kd(s, t)
    elif case == "a class of that number":
        loader = batches(pixels=True, value=4)
    elif case == "labels of samples":
        module = DistillModule(
            {"Student": nn.Linear(4, 5)},
            {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
            optimizer=partial(torch.optim.SGD, lr=0.1),
        )
        loader = DataLoader(TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, -100, 2])), batch_size=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{TEXT}")
        fit(module, loader)


def test_void_of_bytes_needs_no_loss_that_names_it() -> None:
    """255 is no class of five."""
    term = LossTerm(kd, pair=("Student", "Teacher"))
    ce = LossTerm(lambda s, y: nn.functional.cross_entropy(s, y, ignore_index=255), pair=("Student", "GroundTruth"))
    module = DistillModule(
        {"Student": Tokens(True), "Teacher": Tokens(True)},
        {"ce": ce, "kd": term},
        frozen=["Teacher"],
        optimizer=partial(torch.optim.SGD, lr=0.1),
        metrics=None,
    )
    with pytest.warns(UserWarning, match=f"{TEXT}255, no class"):
        fit(module, batches(pixels=True, value=255, samples=2))


@pytest.mark.parametrize("target", ["depths", "an image", "many labels"])
def test_numbers_that_are_no_classes_are_no_void(target: str) -> None:
    """Two channels, such as a mean and a variance, for whole numbers; and labels of a sample beside its tokens."""
    labels = {
        "depths": torch.randint(0, 4000, (2, 6, 6)).index_fill(1, torch.tensor([0]), 255),
        "an image": torch.randint(0, 250, (2, 6, 6)).index_fill(1, torch.tensor([0]), 255).to(torch.uint8),
        "many labels": torch.tensor([[-1, 0, 1, 1]] * 2),
    }[target]
    models = {name: nn.Conv2d(3, 2, 1) if labels.ndim == 3 else nn.Linear(4, 7) for name in ("Student", "Teacher")}
    module = DistillModule(models, {"kd": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))}, frozen=["Teacher"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{TEXT}")
        module.build((torch.randn(2, 3, 6, 6) if labels.ndim == 3 else torch.randn(2, 5, 4), labels))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.fc(inputs["x"])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("entry", "mask", "said"),
    [
        ("attention_mask", [1, 1, 0, 0], "50 % of the positions of Batch.0.attention_mask"),
        ("decoder_attention_mask", [1.0, 1.0, 1.0, 0.0], "25 % of the positions"),
        ("src_key_padding_mask", [False, False, False, True], "25 % of .* mask='the opposite of Batch.0.src_key_padd"),
        ("mask", [True, True, True, False], "25 % of the positions of Batch.0.mask"),
        ("attention_mask", [1, 1, 1, 1], None),
        ("special_tokens_mask", [1, 0, 0, 0], None),
        ("global_attention_mask", [1, 0, 0, 0], None),
        ("attention_mask", [1.0, 0.5, 0.0, 0.0], None),
    ],
)
def test_a_mask_of_the_models_that_a_term_does_not_see(entry: str, mask: list[Any], said: str | None) -> None:
    def built(**given: Any) -> None:
        kd_of_tokens = LossTerm(KDLoss(class_dim=-1), pair=("Student", "Teacher"), **given)
        module = DistillModule({"Student": Masked(), "Teacher": Masked()}, {"kd": kd_of_tokens}, frozen=["Teacher"])
        module.build(({"x": torch.randn(2, 4, 4), entry: torch.tensor([mask] * 2)}, torch.tensor([0, 1])))

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        built()
    texts = [str(each.message) for each in found]
    assert [re.search(said or "", text) is not None for text in texts] == [True] * (said is not None), texts
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(mask=f"Batch.0.{entry}")


@pytest.mark.parametrize(("labels", "counts"), [([1, 2, -100, -100], False), ([1, 2, 0, 0], True)])
def test_labels_of_what_a_mask_leaves_out_count(labels: list[int], counts: bool) -> None:
    ce = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))
    inputs = {"x": torch.randn(2, 4, 4), "attention_mask": torch.tensor([[1, 1, 0, 0]] * 2)}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        DistillModule({"Student": Masked()}, {"ce": ce}).build((inputs, torch.tensor([labels] * 2)))
    assert bool(found) is counts


class Yours(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Tokens()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return TokenLoss()(self.net(batch[0]), batch[1])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Yours):
    pass


def test_the_mixin_says_it_in_its_preflight() -> None:
    losses = {"kd": LossTerm(KDLoss(), pair=("Student", "Teacher"))}
    module = Distilled().distill(Tokens(), student="net", losses=losses)
    with pytest.warns(UserWarning, match=f"{TEXT}-100"):
        fit(module, batches(pixels=False, value=-100, samples=2))
