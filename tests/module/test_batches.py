"""Batches of any form: mappings by keyword or key, entries as signals, and teachers that are columns of the data."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossComposer, LossTerm
from lit_distill._module.batches import keywords_of, unpack_batch
from lit_distill.losses import KDLoss

IDS = torch.arange(24).reshape(4, 6) % 7
BATCH = {
    "input_ids": IDS,
    "attention_mask": torch.ones(4, 6),
    "labels": torch.arange(4) % 3,
    "teacher_logits": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
}
CE = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))


class Words(nn.Module):
    """A network of the form of those of Hugging Face."""

    main_input_name = "input_ids"

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config, self.embed, self.head = config, nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        assert labels is None, "the target is no input"
        assert not kwargs
        assert attention_mask is not None
        hidden = (self.embed(input_ids) * attention_mask[..., None]).mean(1)
        return {"logits": self.head(hidden), "hidden": hidden}


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.embed(ids).mean(1))


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_models_of_hugging_face_take_what_their_forward_names(kind: type) -> None:
    module = DistillModule(
        {"Student": Words(), "Teacher": Words()},
        {
            "ce": CE,
            "kd": LossTerm(KDLoss(), ("Student", "Teacher")),
            "h": LossTerm(nn.MSELoss(), ("Student:hidden", "Teacher:hidden")),
        },
        frozen=["Teacher"],
    )
    batch = kind(BATCH)
    module.build(batch)
    inputs, target, index, entries = module.unpacked(batch)
    assert sorted(inputs) == ["attention_mask", "input_ids", "teacher_logits"]
    assert target is BATCH["labels"]
    assert index is None
    assert entries is batch
    assert torch.equal(module(inputs), module.models["Student"](IDS, BATCH["attention_mask"])["logits"])
    assert torch.equal(module.predict_step(batch, 0), module(inputs))


def test_a_decoder_is_given_the_target() -> None:
    class Decoder(Words):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
            assert labels is BATCH["labels"]
            return super().forward(input_ids, torch.ones_like(input_ids))

    module = DistillModule({"Student": Decoder(SimpleNamespace(is_encoder_decoder=True))}, {"ce": CE})
    module.build(BATCH)
    assert "labels" not in module.unpacked({**BATCH, "decoder_input_ids": IDS}).inputs


def test_a_plain_model_beside_one_of_hugging_face_takes_keywords() -> None:
    terms = {"ce": CE, "kd": LossTerm(KDLoss(), ("Student", "Teacher"))}
    with pytest.raises(ValueError, match=r"the forward of Student takes none of \['input_ids', .* batch={'inputs': "):
        DistillModule({"Student": Plain(), "Teacher": Words()}, terms, frozen=["Teacher"]).build(BATCH)


def trained(module: LightningModule, batches: Any) -> Trainer:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    return trainer


def test_a_column_teaches_without_a_teacher() -> None:
    """A whole training, with metrics; the loss is that by hand."""
    student = Words()
    module = DistillModule(
        {"Student": student},
        {"ce": CE, "kd": LossTerm(KDLoss(temperature=2.0), ("Student", "Batch.teacher_logits"), weight=0.5)},
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    trainer = trained(module, [BATCH])
    logits = student(IDS, BATCH["attention_mask"])["logits"]
    kd = KDLoss(temperature=2.0)(logits, BATCH["teacher_logits"])
    torch.testing.assert_close(trainer.callback_metrics["train/kd"], kd.detach(), rtol=1e-6, atol=1e-6)
    assert trainer.callback_metrics["val/Student/top1"] <= 1


def column(pair: tuple[str, str], batch: Any) -> DistillModule:
    module = DistillModule({"Student": nn.Linear(4, 3)}, {"ce": CE, "kd": LossTerm(KDLoss(), pair)})
    module.build(batch)
    return module


@pytest.mark.parametrize("entry", ["2", "teacher"])
def test_entries_of_tuples_are_items_or_those_of_the_mapping_behind(entry: str) -> None:
    logits = torch.randn(4, 3)
    rest: Any = logits if entry == "2" else {"teacher": logits}
    batch = (torch.randn(4, 4), torch.arange(4) % 3, rest)
    module = column(("Student", f"Batch.{entry}"), batch)
    inputs, target, index, entries = module.unpacked(batch)
    assert index is None
    with module.composer.capture(module.named) as signals:
        module.run_models(inputs, signals)
    result = module.composer(signals, target, index=index, batch=entries)
    torch.testing.assert_close(result.unweighted["kd"], KDLoss()(module(inputs), logits).detach())


def test_a_loader_of_three_tensors_teaches_by_the_third() -> None:
    data = TensorDataset(torch.randn(4, 4), torch.arange(4) % 3, torch.randn(4, 3))
    module = column(("Student", "Batch.2"), next(iter(DataLoader(data, batch_size=4))))
    assert module.composer.model_names == {"Student"}


def test_a_hook_may_give_entries() -> None:
    class Own(DistillModule):
        def unpack(self, batch: Any) -> tuple[Any, ...]:
            return batch[0], None, None, {"teacher": {"logits": batch[1]}}

    module = Own({"Student": nn.Linear(4, 3)}, {"kd": LossTerm(KDLoss(), ("Student", "Batch.teacher.logits"))})
    module.build([torch.randn(4, 4), torch.randn(4, 3)])


def test_parts_of_a_target_are_signals() -> None:
    module = DistillModule(
        {"Student": nn.Linear(4, 3)},
        {
            "ce": LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth:kind")),
            "mse": LossTerm(nn.MSELoss(), ("Student", "GroundTruth:depth.0")),
        },
        metrics=None,
    )
    module.build((torch.randn(4, 4), {"kind": torch.arange(4) % 3, "depth": [torch.randn(4, 3)]}))


@pytest.mark.parametrize("inputs", ["x", ["ids"]])
def test_the_entries_that_models_take_may_be_said(inputs: Any) -> None:
    batch = {"x": IDS, "ids": IDS, "y": torch.arange(4) % 3, "labels": None, "at": torch.arange(4)}
    keys = {"inputs": inputs, "target": "y", "index": "at"}
    module = DistillModule({"Student": Plain()}, {"ce": CE}, batch=keys)
    module.build(batch)
    found, target, index, _ = module.unpacked(batch)
    assert target is batch["y"]
    assert index is batch["at"]
    assert torch.equal(module.predict_step(batch, 0), module.models["Student"](IDS))
    assert torch.equal(module(found), module.models["Student"](IDS))


@pytest.mark.parametrize(
    ("batch", "given", "words"),
    [
        ({"x": IDS, "y": IDS}, {}, r"the batch is a mapping of \['x', 'y'\]: say what models take, as batch={'inputs'"),
        ({"x": IDS}, {"batch": {"inputs": "z"}}, r"batch names \['z'\], but this batch has \['x'\]"),
        ({"x": IDS, "label": 1, "target": 2}, {"batch": {"inputs": "x"}}, r"has \['label', 'target'\]: say which is"),
        ({"x": IDS}, {"batch": {"inputs": ["x"]}}, r"the forward of Student takes none of \['x'\] by keyword, its arg"),
        ((IDS, IDS, IDS, IDS), {}, r"got 4 items; override unpack\(\)"),
        ({"x": IDS}, {"batch": {"input": "x"}}, r"batch names the entries of a batch: inputs, target and index, got"),
        ({"x": IDS}, {"batch": {"inputs": [3]}}, r"an entry is named by its key, a string, got 3"),
    ],
)  # fmt: skip
def test_a_batch_of_another_form_says_what_to_write(batch: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DistillModule({"Student": Plain()}, {"ce": CE}, **given).build(batch)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: [x]], ids=["tensor", "tuple", "list"])
def test_inputs_alone_are_a_batch_without_labels(form: Callable[[Tensor], Any]) -> None:
    images = torch.randn(4, 5)
    unpacked = unpack_batch(form(images))
    assert unpacked.inputs is images
    assert (unpacked.target, unpacked.indices) == (None, None)
    module = DistillModule(
        {"Student": nn.Linear(5, 3), "Teacher": nn.Linear(5, 3)},
        {"mse": LossTerm(nn.MSELoss(), ("Student", "Teacher"))}, frozen=["Teacher"], metrics=None,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip
    fit = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(images), batch_size=2, collate_fn=lambda rows: form(torch.stack([row for (row,) in rows]))
    )
    fit.fit(module, loader, loader)
    assert fit.callback_metrics["val/mse"] > 0
    with pytest.raises(ValueError, match=r"'GroundTruth' is not in this batch"):
        DistillModule({"Student": nn.Linear(5, 3)}, {"ce": CE}).build(form(images))


def test_metrics_are_made_by_a_function() -> None:
    with pytest.raises(ValueError, match=r"metrics is a function that makes the metrics of a model, .* got a dict"):
        DistillModule({"Student": Plain()}, {"ce": CE}, metrics={})  # type: ignore[arg-type]


def test_an_entry_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'Batch.logit': a dict of input_ids, .* has no part 'logit'; its tensors are"
    ):
        DistillModule({"Student": Words()}, {"kd": LossTerm(KDLoss(), ("Student", "Batch.logit"))}).build(BATCH)
    with pytest.raises(ValueError, match=r"unpack gives \(inputs, target\), .*, got 1 items"):
        type("Own", (DistillModule,), {"unpack": lambda self, batch: (1,)})({"Student": Plain()}, {"ce": CE}).build(IDS)
    composer = LossComposer({"kd": LossTerm(nn.MSELoss(), ("Student", "Batch.t"))})
    with composer.capture({"Student": nn.Linear(4, 3)}) as signals:
        pass
    with pytest.raises(ValueError, match=r"'Batch.t': the composer was given no batch"):
        composer(signals)


def test_positions_of_samples_are_one_whole_number_each() -> None:
    assert unpack_batch((1, 2, IDS[:, 0])).indices is not None
    assert unpack_batch((1, 2, IDS)).indices is None
    assert unpack_batch((1, 2, IDS[:, 0], {"more": 1})).entries == {"more": 1}


def test_a_forward_that_names_nothing_takes_all() -> None:
    class Anything(nn.Module):
        def forward(self, **batch: Any) -> None: ...

    assert keywords_of("Student", Anything(), {"a": 1}) == {"a": 1}


class Own(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Words()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return nn.functional.cross_entropy(output["logits"], batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Own):
    pass


class Short(Words):
    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(input_ids, torch.ones_like(input_ids))


def test_a_module_that_exists_learns_from_mappings() -> None:
    module = Distilled().distill(
        Short(),
        student="net",
        losses={
            "kd": LossTerm(KDLoss(), ("Student", "Teacher")),
            "column": LossTerm(nn.MSELoss(), ("Student:logits", "Batch.teacher_logits")),
        },
    )
    trainer = trained(module, [BATCH])
    assert {"distill/kd", "distill/column"} <= trainer.callback_metrics.keys()
