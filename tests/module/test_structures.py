"""Networks that give structures: terms name parts of them, and all else takes the answer, as a loop by hand would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import KDLoss

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
CE = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))


@dataclass
class Output:
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class Classifier(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.fc, self.form = nn.Linear(4, 5), nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).tanh()
        return self.form(self.fc(hidden), hidden)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | None, str]] = {
    "dataclass": (lambda logits, hidden: Output(logits, (hidden,)), None, "hidden_states.-1"),
    "dict": (lambda logits, hidden: {"out": logits, "more": [hidden]}, "out", "more.0"),
    "tuple": (lambda logits, hidden: (hidden, logits), "1", "0"),
}


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_a_loop_by_hand(form: str) -> None:
    torch.manual_seed(0)
    make, answer, hidden = FORMS[form]
    student, teacher = Classifier(make), Classifier(make)
    module = DistillModule(
        {"Student": student, "Teacher": teacher},
        {
            "ce": CE,
            "kd": LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=0.5),
            "hint": LossTerm(nn.MSELoss(), pair=(f"Student:{hidden}", f"Teacher:{hidden}")),
        },
        frozen=["Teacher"],
        answer=answer,
    )
    module.build((X, Y))
    with module.composer.capture(module.named) as signals:
        outputs = module.run_models(X, signals)
    result = module.composer(signals, Y)
    torch.autograd.backward(result.total)
    assert torch.equal(module(X), outputs["Student"])

    body = [p.detach().clone().requires_grad_() for p in student.parameters()]
    state = dict(zip((name for name, _ in student.named_parameters()), body, strict=True))

    def run(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        hidden = F.linear(X, weights["body.weight"], weights["body.bias"]).tanh()
        return F.linear(hidden, weights["fc.weight"], weights["fc.bias"]), hidden

    (logits, ours), (target, theirs) = run(state), run(dict(teacher.named_parameters()))
    log_s, log_t = F.log_softmax(logits / 2, 1), F.log_softmax(target.detach() / 2, 1)
    kd = F.kl_div(log_s, log_t, log_target=True, reduction="batchmean") * 4
    by_hand = F.cross_entropy(logits, Y) + 0.5 * kd + F.mse_loss(ours, theirs.detach())
    torch.autograd.backward(by_hand)
    torch.testing.assert_close(result.total, by_hand, rtol=1e-6, atol=1e-6)
    for ours_of, by_hand_of in zip(student.parameters(), body, strict=True):
        torch.testing.assert_close(ours_of.grad, by_hand_of.grad, rtol=1e-6, atol=1e-6)


class TwoHeads(nn.Module):
    """As DeiT: a tuple of two heads in training, their mean else."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        one, other = self.one(x), self.other(x)
        return (one, other) if self.training else (one + other) / 2


def two_heads(**more: Any) -> DistillModule:
    return DistillModule(
        {"Student": TwoHeads(), "Teacher": nn.Linear(4, 3)},
        {"ce": CE, "kd": LossTerm(KDLoss(), pair=("Student:1", "Teacher"))},
        frozen=["Teacher"],
        answer={"Student": 0},
        optimizer=partial(torch.optim.SGD, lr=0.1),
        **more,
    )


def trained(module: DistillModule) -> Trainer:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=4), DataLoader(TensorDataset(X, Y), batch_size=4))
    return trainer


def test_what_is_there_in_training_alone_is_tried_in_training_mode() -> None:
    module = two_heads(val_losses={"ce": CE})
    trainer = trained(module)
    assert {"train/kd", "val/ce", "val/Student/top1"} <= trainer.callback_metrics.keys()
    assert module(X).shape == (8, 3)


def test_validation_needs_no_term_of_it() -> None:
    with pytest.raises(ValueError, match=r"'Student:1': a tensor \(4, 3\) has no part '1' .* give val_losses"):
        trained(two_heads())


def test_a_part_that_is_there_in_no_mode_is_refused_before_training() -> None:
    module = DistillModule(
        {"Student": TwoHeads()}, {"ce": LossTerm(nn.CrossEntropyLoss(), ("Student:2", "GroundTruth"))}
    )
    with pytest.raises(ValueError, match=r"'Student:2': a tuple of 2 has no part '2'; its tensors are"):
        module.build((X, Y))


def test_classes_of_the_answer_are_checked() -> None:
    module = DistillModule({"Student": Classifier(FORMS["dataclass"][0])}, {"ce": CE})
    with pytest.raises(ValueError, match="Student gives 3 classes but the data has 4"):
        module.build((X, torch.arange(8) % 4))


@pytest.mark.parametrize(
    ("answer", "words"),
    [({"Techer": "out"}, r"answer names \['Techer'\]"), ("a..b", r"a part of an output, such as 'logits'")],
)
def test_an_answer_is_a_part_of_a_model(answer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DistillModule({"Student": nn.Linear(4, 3)}, {"ce": CE}, answer=answer)
