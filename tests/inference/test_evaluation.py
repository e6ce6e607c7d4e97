"""The figures of a test against their definitions, whole, in batches, and over two processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddp.launch import run_on_ranks
from lit_distill.inference.evaluation import ClassificationReport, class_rows

CLASSES = 7


def answers(samples: int = 101) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(CLASSES, (samples,), generator=generator)
    logits = 2 * torch.randn(samples, CLASSES, generator=generator)
    logits[torch.arange(samples), target] += 1.5
    return logits.log_softmax(1), target


def expected_calibration_error(log_probabilities: Tensor, target: Tensor, bins: int) -> float:
    """By its definition, sample by sample."""
    members: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(log_probabilities.double().exp(), target, strict=True):
        confidence = float(row.max())
        members.setdefault(math.ceil(confidence * bins), []).append((confidence, int(row.argmax()) == int(label)))
    gaps = [abs(sum(right for _, right in b) - sum(c for c, _ in b)) for b in members.values()]
    return sum(gaps) / len(target)


def reported(log_probabilities: Tensor, target: Tensor, batch: int) -> dict[str, Any]:
    report = ClassificationReport(num_classes=CLASSES)
    for part, labels in zip(torch.split(log_probabilities, batch), torch.split(target, batch), strict=True):
        report.update(part, labels)
    figures: dict[str, Any] = report.compute()
    return figures


@pytest.mark.parametrize("batch", [101, 10, 1])
def test_figures_are_those_of_their_definitions(batch: int) -> None:
    log_probabilities, target = answers()
    figures = reported(log_probabilities, target, batch)
    order = log_probabilities.argsort(dim=1, descending=True)
    assert figures["samples"] == 101
    assert figures["top1"] == (order[:, 0] == target).sum().item() / 101
    assert figures["top5"] == (order[:, :5] == target[:, None]).any(1).sum().item() / 101
    assert figures["loss"] == pytest.approx(F.nll_loss(log_probabilities.double(), target).item(), rel=1e-12)
    assert figures["ece"] == pytest.approx(expected_calibration_error(log_probabilities, target, 15), rel=1e-9)
    assert 0.02 < figures["ece"] < 0.5
    assert sum(b["samples"] for b in figures["bins"]) == 101
    counts = [[int(((target == t) & (order[:, 0] == p)).sum()) for p in range(CLASSES)] for t in range(CLASSES)]
    assert figures["confusion"] == counts


def test_bins_are_open_below_and_closed_above() -> None:
    report = ClassificationReport(num_classes=2, bins=4)
    probabilities = torch.tensor([[0.75, 0.25], [0.76, 0.24], [1.0, 0.0]], dtype=torch.float64)
    report.update(probabilities.log(), torch.tensor([0, 0, 0]))
    bins = [(b["above"], b["up_to"], b["samples"]) for b in report.compute()["bins"]]
    assert bins == [(0.5, 0.75, 1), (0.75, 1.0, 2)]


def test_a_calibrated_classifier_has_no_error() -> None:
    report = ClassificationReport(num_classes=2)
    report.update(torch.tensor([[0.8, 0.2]] * 5).log(), torch.tensor([0, 0, 0, 0, 1]))
    assert report.compute()["ece"] == pytest.approx(0.0, abs=1e-7)


def on_a_rank(rank: int) -> dict[str, Any]:
    log_probabilities, target = answers()
    return reported(log_probabilities[rank::2], target[rank::2], 8)


def test_two_processes_give_what_one_gives() -> None:
    alone = reported(*answers(), 8)
    for figures in run_on_ranks(on_a_rank):
        assert figures["confusion"] == alone["confusion"]
        for name in ("samples", "top1", "top5"):
            assert figures[name] == alone[name]
        for name in ("loss", "ece"):
            assert figures[name] == pytest.approx(alone[name], rel=1e-12)


def test_classes_name_what_they_are_taken_for() -> None:
    rows = class_rows([[0, 0, 0], [1, 5, 4], [0, 0, 3]])
    assert [row["top1"] for row in rows] == [None, 0.5, 1.0]
    assert [row["confused_with"] for row in rows] == [None, "2", None]
    assert rows[1]["confused"] == 4


def test_what_does_not_fit_is_refused() -> None:
    report = ClassificationReport(num_classes=3)
    with pytest.raises(ValueError, match=r"expected log-probabilities \(B, 3\), got \(2, 4\): the network was built"):
        report.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected class indices"):
        report.update(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least 1"):
        ClassificationReport(num_classes=0)
