"""Two runs are compared on the samples that both have seen, whatever the order in which either saw them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from lit_distill.reporting.evidence import Judged, pairs_of
from lit_distill.reporting.page import Section
from lit_distill.reporting.sections import Material, sections

TARGET = torch.tensor([0, 1, 2, 0, 1, 2])


def evidence(label: str, index: list[int], names: tuple[str, ...] = tuple("abcdef"), classes: int = 3) -> Any:
    """A run whose student gives sample n the highest probability of class n % 3, by 0.5 + n / 20."""
    places = torch.tensor(index)
    share = 0.5 + places.double() / 20
    said = ((1 - share) / (classes - 1))[:, None].repeat(1, classes)
    said[torch.arange(len(index)), places % 3] = share
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for n in index:
        confusion[TARGET[n], n % 3] += 1
    judged = Judged(
        run=label, model="Student", log_probabilities=said.log().float(), features={}, parameters=7, seconds=0.1,
        figures={"top1": 1.0, "top5": 1.0, "loss": 0.5, "ece": 0.25, "samples": len(index), "bins": [],
                 "confusion": confusion.tolist()},
    )  # fmt: skip
    return SimpleNamespace(
        label=label, class_names=tuple(f"class {c}" for c in range(classes)), names=names, index=places,
        target=TARGET[places], student=judged, others=[], judged={"Student": judged}, left_out={},
        data=SimpleNamespace(num_classes=classes), run=SimpleNamespace(results={}, folder="runs/x"), split="val",
    )  # fmt: skip


def test_samples_are_brought_together_by_their_positions() -> None:
    (pair,), notes = pairs_of([evidence("a", [5, 0, 3, 1]), evidence("b", [1, 2, 5, 3])])
    assert notes == []
    assert pair.index.tolist() == [1, 3, 5]
    assert pair.target.tolist() == TARGET[[1, 3, 5]].tolist()
    wanted = (0.5 + torch.tensor([1, 3, 5]).double() / 20).float()
    for log in (pair.log_a, pair.log_b):
        torch.testing.assert_close(log.exp().max(1).values, wanted)
        assert log.argmax(1).tolist() == [1, 0, 2]


def test_other_classes_or_samples_make_no_pair() -> None:
    pairs, notes = pairs_of(
        [evidence("a", [0]), evidence("b", [0], classes=4), evidence("c", [0], names=tuple("xbcdef"))]
    )
    assert pairs == []
    assert "b has other classes than a" in notes[0]
    assert "c was looked at on other samples than a" in notes[1]


def test_many_classes_are_shades_and_the_worst_are_named() -> None:
    runs = [evidence("a", [0, 1, 2], classes=400)]
    material = Material(runs=runs, logged=[], pairs=[], notes=["x < y"], costs={"a": "no <data>"}, clips=0)
    made: dict[str, Section] = {section.name: section for section in sections(material)}
    assert 'viewBox="0 0 400 400"' in made["confusion"].body
    assert made["confusion"].body.count('class="cell"') == 3
    assert "x &lt; y" in made["summary"].body
    assert "not measured: no &lt;data&gt;" in made["cost"].body
    assert "agreement" not in made
