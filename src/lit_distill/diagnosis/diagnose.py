"""What one batch tells of a training before it is paid for: models, terms, gradients, mistakes that cost weeks."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_distill._module.metrics import at_chance, why_no_classes
from lit_distill._module.preflight import example_batch, size_of
from lit_distill._screen import few
from lit_distill._views import ViewsBatch
from lit_distill.composer import LossComposer
from lit_distill.data.datasets import VideoDataset
from lit_distill.data.decoding.layout import VideoError
from lit_distill.data.preprocess import Preprocess
from lit_distill.gradients import gradients_of, norm_of
from lit_distill.losses.base import class_indices
from lit_distill.models.identity import load_reports
from lit_distill.models.shipped import is_shipped
from lit_distill.module import DistillModule
from lit_distill.runs.names import CONFIG_FILE, card_of
from lit_distill.runs.opened import load_run
from lit_distill.signals import SignalCapture

_LOUD = 1e3
"""Two terms' gradient norms that differ by more than this factor are reported."""
_ALIKE = 1e-4
"""Means and deviations of two preprocessings that differ by less are the same."""
_STRETCHED = 0.05
"""Warn when scaling changes the ratio of a video's sides by a larger share."""
_SIZES = 8
"""Training videos whose sizes are looked at."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One named model.

    Attributes:
        kind: its class.
        frozen: whether it only teaches.
        parameters: how many.
        trainable: how many of them learn.
        input_shape: of what it was given.
        output_shape: of what it gave; empty where that is no tensor.
        forward_seconds: one forward pass, on the batch.
        unreached: parameters that should learn and that no term's gradient reaches.
    """

    kind: str
    frozen: bool
    parameters: int
    trainable: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    forward_seconds: float
    unreached: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TermFacts:
    """One loss term on the batch.

    Attributes:
        loss: its class.
        shapes: of the tensors that it gets, by reference.
        value: before its weight.
        weight: at the start of training.
        gradient_norms: of its weighted value, by model that learns.
        dead: captured signals of learning models that its gradient does not reach.
    """

    loss: str
    shapes: Mapping[str, tuple[int, ...]]
    value: float
    weight: float
    gradient_norms: Mapping[str, float]
    dead: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy by model in a short validation, and what guessing gives."""

    samples: int
    top1: Mapping[str, float]
    chance: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What :func:`diagnose` saw; ``findings`` are what a user should look at, a sentence each."""

    batch_size: int
    models: Mapping[str, ModelFacts]
    terms: Mapping[str, TermFacts]
    accuracy: Accuracy | None = None
    findings: tuple[str, ...] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def diagnose(
    module: DistillModule,
    data: LightningDataModule,
    *,
    samples: int | None = None,
    validation_samples: int = 64,
    device: torch.device | str = "cpu",
) -> Diagnosis:
    """Try one batch and a short validation on a copy of a module, and tell what looks wrong.

    Nothing of the module, the data or the random state is changed: training afterwards is what it would have been.

    Args:
        module: before training.
        data: where its batches come from.
        samples: of the training batch; None for a whole one.
        validation_samples: at most so many are evaluated, where a frozen model can be judged; 0 for none.
        device: where it is tried.

    Raises:
        ValueError: what training itself would refuse: a wrong reference, shape or number of classes.
        FileNotFoundError: the data is not there.

    Example:
        >>> from functools import partial
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from lit_distill import LossTerm
        >>> module = DistillModule(
        ...     {"Student": nn.Linear(4, 3)},
        ...     {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
        ...     optimizer=partial(torch.optim.SGD, lr=0.1),
        ... )
        >>> pairs = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
        >>> diagnosis = diagnose(module, LightningDataModule.from_datasets(pairs, batch_size=4))
        >>> diagnosis.models["Student"].output_shape, diagnosis.findings
        ((4, 3), ())
    """
    started = time.perf_counter()
    with isolate_rng():
        data.prepare_data()
        data.setup("fit")
        loader = cast("DataLoader[Any]", data.train_dataloader())
        tried = copy.deepcopy(module).to(device)
        tried.expect_labels_of(data)
        tried.expect_normalisation_of(data)
        batch = _on_device(data, example_batch(loader, samples or loader.batch_size or 1), device)
        inputs, target, index, entries = tried.unpacked(batch)
        tried.build(batch, dataset_size=size_of(loader), num_classes=getattr(data, "num_classes", None))
        findings = [*_class_orders(module, data), *_normalisations(module, data), *_stretched(loader.dataset)]
        models, terms = _one_step(tried, inputs, target, index, entries)
        findings += _of_terms(terms)
        findings += [
            f"no term's gradient reaches {len(facts.unreached)} parameters of {name}: {few(facts.unreached, 4)}; "
            "they stay as they are, and DDP needs strategy=ddp_find_unused_parameters_true"
            for name, facts in models.items()
            if facts.unreached
        ]
        accuracy = None
        if validation_samples and tried.frozen:
            accuracy = _short_validation(tried, data, validation_samples, device)
            findings += _of_accuracy(tried, accuracy)
    size = _batch_size(inputs)
    return Diagnosis(batch_size=size, models=models, terms=terms, accuracy=accuracy, findings=tuple(findings),
                     seconds=time.perf_counter() - started)  # fmt: skip


def _one_step(
    module: DistillModule, inputs: Any, target: Any, index: Tensor | None, entries: Any
) -> tuple[dict[str, ModelFacts], dict[str, TermFacts]]:
    module.train()
    seconds, outputs, terms = dict[str, float](), dict[str, Any](), dict[str, TermFacts]()
    reached: set[int] = set()
    seen: list[LossComposer] = []
    for step in range(module.turn):
        with module.phase(step) as (composer, moved):
            if composer in seen:
                continue
            seen.append(composer)
            learning = {
                name: {key: p for key, p in module.models[name].named_parameters() if p.requires_grad} for name in moved
            }
            with composer.capture(module.named) as signals:
                outputs |= module.run_models(inputs, signals, around=partial(_timed, seconds))
            values = composer.values(signals, target, index=index, batch=entries)
            terms |= _terms_of(composer, values, signals, learning, reached)
    models = {}
    for name, network in module.models.items():
        output = outputs.get(name)
        trainable = (
            {} if name in module.frozen else {key: p for key, p in network.named_parameters() if p.requires_grad}
        )
        models[name] = ModelFacts(
            kind=type(network).__name__,
            frozen=name in module.frozen,
            parameters=sum(p.numel() for p in network.parameters()),
            trainable=sum(p.numel() for p in trainable.values()),
            input_shape=tuple(inputs.shape) if isinstance(inputs, Tensor) else (),
            output_shape=tuple(output.shape) if isinstance(output, Tensor) else (),
            forward_seconds=seconds.get(name, 0.0),
            unreached=tuple(key for key, p in trainable.items() if id(p) not in reached),
        )
    return models, terms


def _terms_of(
    composer: LossComposer,
    values: Mapping[str, Tensor],
    signals: SignalCapture,
    learning: Mapping[str, Mapping[str, nn.Parameter]],
    reached: set[int],
) -> dict[str, TermFacts]:
    """Facts of each term; the parameters that a gradient gets to join ``reached``."""
    terms = {}
    for name, term in composer.terms.items():
        weight = term.weight_at(0.0)
        captured = {ref.text: signals[ref.text] for ref in term.references if not ref.is_data and ref.model in learning}
        of = [p for parameters in learning.values() for p in parameters.values()]
        tensors = [*of, *captured.values()]
        gradients = dict(zip(map(id, tensors), gradients_of(values[name] * weight, tensors), strict=True))
        norms = {}
        for model, parameters in learning.items():
            reached |= {id(p) for p in parameters.values() if gradients[id(p)] is not None}
            norms[model] = float(norm_of(gradients[id(p)] for p in parameters.values()))
        teachers = set() if not term.detach else {ref.text for ref in term.second}
        terms[name] = TermFacts(
            loss=type(term.loss).__name__,
            shapes=composer.shapes(name, signals),
            value=values[name].item(),
            weight=weight,
            gradient_norms=norms,
            dead=tuple(
                text for text, tensor in captured.items() if text not in teachers and _is_zero(gradients[id(tensor)])
            ) if weight else (),
        )  # fmt: skip
    return terms


def _of_terms(terms: Mapping[str, TermFacts]) -> Iterator[str]:
    for name, facts in terms.items():
        norms = facts.gradient_norms
        if not math.isfinite(facts.value) or not all(math.isfinite(norm) for norm in norms.values()):
            yield f"term {name!r} is not finite on the first batch: {facts.value:g}, gradients {dict(norms)}"
        elif facts.dead:
            yield f"term {name!r} gives no gradient to {few(facts.dead, 4)}: its captures are dead ends"
        elif facts.weight and not any(norms.values()):
            yield f"term {name!r} gives no model a gradient: it teaches nothing"
    for model in {model for facts in terms.values() for model in facts.gradient_norms}:
        norms = {name: facts.gradient_norms.get(model, 0.0) for name, facts in terms.items()}
        loud = {name: norm for name, norm in norms.items() if norm > 0 and math.isfinite(norm)}
        if len(loud) > 1 and max(loud.values()) > _LOUD * min(loud.values()):
            low, high = min(loud, key=lambda n: loud[n]), max(loud, key=lambda n: loud[n])
            yield (
                f"term {high!r} pulls {model} {loud[high] / loud[low]:,.0f} times as hard as {low!r} (gradient norms "
                f"{loud[high]:.3g} and {loud[low]:.3g}): look at their weights"
            )


@torch.no_grad()
def _short_validation(
    module: DistillModule, data: LightningDataModule, samples: int, device: torch.device | str
) -> Accuracy | None:
    """Top-1 of every model on a few validation samples, spread over the set; None where there is none to count."""
    loader = cast("DataLoader[Any]", data.val_dataloader())
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
        return None
    dataset, total = loader.dataset, len(loader.dataset)
    wanted = min(samples, total)
    chosen = [round(place * (total - 1) / max(1, wanted - 1)) for place in range(wanted)]
    right: dict[str, int] = {}
    count = classes = 0
    module.eval()
    size = max(1, min(loader.batch_size or 1, 16))
    for start in range(0, len(chosen), size):
        batch = _on_device(data, loader.collate_fn([dataset[i] for i in chosen[start : start + size]]), device)
        inputs, target = module.unpack(batch)[:2]
        if not isinstance(target, Tensor) or target.ndim > 2:
            return None
        outputs = module.run_models(inputs, evaluate=True, views=isinstance(batch, ViewsBatch))
        for name, output in outputs.items():
            if why_no_classes(output, target) is not None:
                return None
            classes = output.shape[1]
            right[name] = right.get(name, 0) + int((output.argmax(1) == class_indices(target)).sum())
        count += len(target)
    if not count:
        return None
    return Accuracy(samples=count, top1={name: r / count for name, r in right.items()}, chance=1 / classes)


def _of_accuracy(module: DistillModule, accuracy: Accuracy | None) -> Iterator[str]:
    if accuracy is None:
        return
    student = accuracy.top1[module.student]
    for name in module.frozen:
        top1 = accuracy.top1[name]
        if guesses := at_chance(name, top1, accuracy.samples, round(1 / accuracy.chance)):
            yield guesses
        elif top1 < student:
            yield (
                f"the frozen {name} is below its student before training: top-1 {100 * top1:.1f} % against "
                f"{100 * student:.1f} % on {accuracy.samples} validation samples"
            )


def _lineage(module: DistillModule) -> Iterator[tuple[str, Preprocess]]:
    """For every model whose weights came from a run: what that run gave its networks."""
    reports = [
        (f"{name}.{part}".rstrip("."), report)
        for name, model in module.models.items()
        for part, report in load_reports(model).items()
    ]
    for name, report in reports:
        path = Path(report.path)
        if is_shipped(path):  # of other classes, on purpose
            continue
        run = path if card_of(path).is_file() else path.parent.parent
        if run == path or (run / CONFIG_FILE).is_file():
            with suppress(ValueError):  # of packages that are not admitted, or no run at all: nothing is known of it
                yield name, load_run(run).preprocess()


def _class_orders(module: DistillModule, data: LightningDataModule) -> Iterator[str]:
    here = tuple(getattr(data, "class_names", None) or ())
    for name, preprocess in _lineage(module):
        there = preprocess.class_names
        if here and there and here != there:
            place = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), len(here))
            pair = [names[place] if place < len(names) else "no class" for names in (there, here)]
            yield (
                f"{name} was trained on other classes or another order: class {place} was {pair[0]!r} there and is "
                f"{pair[1]!r} here, so its knowledge would be of other things"
            )


def _normalisations(module: DistillModule, data: LightningDataModule) -> Iterator[str]:
    mine = {key: tuple(getattr(data, key, ()) or ()) for key in ("mean", "std")}
    if not all(mine.values()):
        return
    seen = {name: {"mean": view.mean, "std": view.std} for name, view in module.inputs.items() if view.mean}
    there: dict[str, Mapping[str, Any]] = {name: {"mean": p.mean, "std": p.std} for name, p in _lineage(module)}
    for name, model in module.models.items():
        published = getattr(model, "pretrained_cfg", None)  # timm's networks tell what they were trained with
        if name not in there and isinstance(published, Mapping) and hasattr(model, "load_report"):
            there[name] = published
    for name, theirs in there.items():
        for key, value in mine.items():
            other, given = theirs.get(key), tuple(seen.get(name, mine)[key] or value)
            if other and any(abs(a - b) > _ALIKE for a, b in zip(given, other, strict=False)):
                yield f"{name} was trained on inputs normalised by another {key}: {list(other)}, here {list(given)}"


def _stretched(dataset: object) -> Iterator[str]:
    """Whether the published 4:3 scaling distorts the videos, by the sizes of a few that are spread over the set."""
    if not isinstance(dataset, VideoDataset) or dataset.transform.aspect != "fixed":
        return
    count = min(_SIZES, len(dataset))
    found = []
    for place in range(count):
        with suppress(VideoError):  # reported where it is read
            width, height = dataset.frame_size(place * len(dataset) // count)
            scaled_width, scaled_height = dataset.transform.scaled_size(width, height)
            ratio = scaled_width * height / (scaled_height * width)
            found.append((max(ratio, 1 / ratio) - 1, (width, height), (scaled_width, scaled_height)))
    bad = [measured for measured in found if measured[0] > _STRETCHED]
    if bad:
        share, size, scaled = max(bad)
        yield (
            f"data.aspect=fixed, the published 4:3 scaling, stretches {len(bad)} of the {len(found)} training videos "
            f"looked at by more than {100 * _STRETCHED:.0f} %: {size[0]}x{size[1]} becomes {scaled[0]}x{scaled[1]}, "
            f"{100 * share:.0f} % off its shape; set data.aspect=keep, unless the weights that you load expect this"
        )


def _on_device(data: LightningDataModule, batch: Any, device: torch.device | str) -> Any:
    moved = data.transfer_batch_to_device(batch, torch.device(device), 0)
    return data.on_after_batch_transfer(moved, 0)


def _batch_size(inputs: Any) -> int:
    return int(inputs.shape[0]) if isinstance(inputs, Tensor) and inputs.ndim else 1


def _is_zero(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start
