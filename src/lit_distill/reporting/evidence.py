"""What a report looks at: every model of every run, sample by sample, on the same data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lit_distill._views import InputView, ViewsBatch
from lit_distill.inference.classifiers import log_probabilities
from lit_distill.inference.evaluation import ClassificationReport
from lit_distill.inference.test import class_names_of
from lit_distill.reporting.similarity import OUTPUT, linear_cka, stage_features, stage_names
from lit_distill.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One model of one run, and what it says of each sample.

    The log-probabilities (N, C) are by the samples of :attr:`RunEvidence.index`. Features, by layer, are (n, k) of the
    first n samples, the logits' last. The seconds are those of all forward passes.
    """

    run: str
    model: str
    figures: Mapping[str, Any]
    log_probabilities: Tensor
    features: Mapping[str, Tensor]
    parameters: int
    seconds: float

    @property
    def label(self) -> str:
        """Run and model."""
        return f"{self.run} · {self.model}"


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """All models of a run on one split of its data.

    Attributes:
        label: of the run, another than those of the other runs.
        run: as it was opened.
        data: its data module, set up.
        split: ``val`` or ``test``.
        class_names: by class index; their numbers where they are not known.
        judged: by the models' names, the student first.
        left_out: models that can't be looked at, and why.
        index: (N,) positions of the samples in the split.
        target: (N,) their class indices.
        names: of all samples of the split, as their list has them; empty where the data module does not say.
    """

    label: str
    run: Run
    data: LightningDataModule
    split: str
    class_names: tuple[str, ...]
    judged: Mapping[str, Judged]
    left_out: Mapping[str, str]
    index: Tensor
    target: Tensor
    names: tuple[str, ...]

    @property
    def student(self) -> Judged:
        """The run's own result."""
        return self.judged[self.run.student]

    @property
    def others(self) -> list[Judged]:
        """Its teachers and peers."""
        return [judged for name, judged in self.judged.items() if name != self.run.student]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models on the M samples that both have seen; differences are those of ``b`` less ``a``.

    ``within`` one run, or of two; ``home`` is the run whose data shows the samples.
    """

    a: Judged
    b: Judged
    index: Tensor
    target: Tensor
    log_a: Tensor
    log_b: Tensor
    within: bool
    home: RunEvidence

    @property
    def agreement(self) -> float:
        """Share of the samples that both take for the same class."""
        return float((self.log_a.argmax(1) == self.log_b.argmax(1)).double().mean())

    @property
    def divergences(self) -> Tensor:
        """(M,) KL(a || b) of each sample in nats, float64."""
        a, b = self.log_a.double(), self.log_b.double()
        return (a.exp() * (a - b)).nan_to_num(nan=0.0).sum(1)

    @property
    def kl(self) -> float:
        """Mean of :attr:`divergences`: how far b's probabilities are from a's; 0 for the same."""
        return float(self.divergences.mean())

    @property
    def right(self) -> tuple[Tensor, Tensor]:
        """(M,) which samples a and b have right."""
        return self.log_a.argmax(1) == self.target, self.log_b.argmax(1) == self.target

    def class_changes(self) -> list[tuple[int, int, float]]:
        """For each class with samples: its number, its samples, and the share that b has right less that of a."""
        right_a, right_b = self.right
        difference = right_b.double() - right_a.double()
        classes = self.home.data.num_classes  # type: ignore[attr-defined]
        counts = torch.bincount(self.target, minlength=classes)
        sums = torch.zeros(classes, dtype=torch.float64).index_add_(0, self.target, difference)
        return [(c, int(counts[c]), float(sums[c] / counts[c])) for c in range(classes) if counts[c]]

    def cka(self) -> tuple[list[str], list[str], list[list[float]]]:
        """Layers of a, layers of b, and the debiased linear CKA of each with each on their common first samples."""
        pairs = [[linear_cka(x, y, debiased=True) for y in self.b.features.values()] for x in self.a.features.values()]
        return list(self.a.features), list(self.b.features), pairs


class _Look(LightningModule):
    """Runs several networks over the batches of a split, and keeps what each says of each sample."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        views: Mapping[str, InputView | None],
        layers: Mapping[str, Sequence[str]],
        *,
        num_classes: int,
        cka_samples: int,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks.values())
        self.reports = nn.ModuleList(ClassificationReport(num_classes=num_classes) for _ in networks)
        self.names, self.views, self.layers = list(networks), views, layers
        self.left = cka_samples
        self.said: dict[str, list[Tensor]] = {name: [] for name in networks}
        self.features: dict[str, list[dict[str, Tensor]]] = {name: [] for name in networks}
        self.seconds = dict.fromkeys(networks, 0.0)
        self.index: list[Tensor] = []
        self.target: list[Tensor] = []
        self.count = 0

    def report(self, name: str) -> ClassificationReport:
        report = self.reports[self.names.index(name)]
        assert isinstance(report, ClassificationReport)
        return report

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, target, *rest = batch
        has_views = isinstance(batch, ViewsBatch)
        known = rest and isinstance(rest[0], Tensor)
        self.index.append(rest[0].cpu() if known else torch.arange(self.count, self.count + len(target)))
        self.target.append(target.cpu())
        self.count += len(target)
        for name, network in zip(self.names, self.networks, strict=True):
            view = self.views[name]
            seen = inputs if view is None else view(inputs)
            start = _clock(seen)
            said = log_probabilities(network, seen, views=has_views)
            self.seconds[name] += _clock(seen) - start
            self.report(name).update(said, target)
            self.said[name].append(said.float().cpu())
            if self.left > 0:  # of dense views the first: CKA is of single clips
                clips = (seen[:, 0] if has_views else seen)[: self.left]
                self.features[name].append(stage_features(network, clips, self.layers[name]))
        self.left -= len(target)

    test_step = validation_step


def gather(
    run: Run,
    label: str,
    *,
    trainer: Trainer,
    split: str = "val",
    checkpoint: str = "best",
    data: Mapping[str, Any] | None = None,
    layers: Mapping[str, Sequence[str]] | None = None,
    cka_samples: int = 128,
) -> RunEvidence:
    """Look at all models of a run, by a trainer of one process.

    ``data`` replaces arguments as for :meth:`lit_distill.runs.run.Run.data`. CKA is of the ``layers`` given for a
    model, else of its stages, on the first ``cka_samples``; below 4 there is none.

    Raises:
        ValueError: a model can't be built; several processes; data of other classes.
        FileNotFoundError: the student's weights or the data are not there.
    """
    if trainer.world_size > 1:
        raise ValueError(f"a report is made by one process, got {trainer.world_size}: give trainer.devices=1")
    chosen = dict(layers or {})
    if unknown := set(chosen) - set(run.classifiers):
        raise ValueError(f"layers of {sorted(unknown)}: {run.folder} has the models {', '.join(run.classifiers)}")
    networks: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    for name in (run.student, *(name for name in run.classifiers if name != run.student)):
        try:
            networks[name] = run.model(name, checkpoint=checkpoint)
        except (ValueError, OSError) as error:
            if name == run.student:
                raise
            left_out[name] = str(error)  # a teacher's file may have gone: the report says so and continues
    module = run.data(**{str(key): value for key, value in (data or {}).items()})
    look = _Look(
        networks,
        {name: run.view(name) for name in networks},
        {name: tuple(chosen.get(name) or stage_names(network)) for name, network in networks.items()},
        num_classes=module.num_classes,  # type: ignore[attr-defined]
        cka_samples=cka_samples if cka_samples >= 4 else 0,
    )
    (trainer.test if split == "test" else trainer.validate)(look, datamodule=module, verbose=False)
    names = class_names_of(run, module) or tuple(map(str, range(module.num_classes)))  # type: ignore[attr-defined]
    judged = {
        name: Judged(
            run=label,
            model=name,
            figures=look.report(name).compute(),
            log_probabilities=torch.cat(look.said[name]),
            features=_joined(look.features[name]),
            parameters=sum(p.numel() for p in network.parameters()),
            seconds=look.seconds[name],
        )
        for name, network in networks.items()
    }
    return RunEvidence(
        label=label, run=run, data=module, split=split, class_names=names, judged=judged, left_out=left_out,
        index=torch.cat(look.index), target=torch.cat(look.target), names=_sample_names(module, split),
    )  # fmt: skip


def pairs_of(evidence: Sequence[RunEvidence]) -> tuple[list[Pair], list[str]]:
    """The pairs that are compared, and why others that one would look for are none.

    Every run's student with the first run's, then within each run with its teachers and peers.
    """
    pairs: list[Pair] = []
    notes: list[str] = []
    first = evidence[0]
    for other in evidence[1:]:
        if first.class_names != other.class_names:
            notes.append(f"{other.label} has other classes than {first.label}: they are not compared")
        elif first.names != other.names or not first.names:
            notes.append(
                f"{other.label} was looked at on other samples than {first.label}: they are not compared sample by "
                "sample; give both the same data, such as data.root=… data.val_list=…"
            )
        else:
            pairs.append(_pair(first, first.student, other, other.student))
    pairs += [_pair(run, judged, run, run.student) for run in evidence for judged in run.others]
    return pairs, notes


def _pair(of_a: RunEvidence, a: Judged, of_b: RunEvidence, b: Judged) -> Pair:
    both = torch.isin(of_a.index, of_b.index)  # a quarantine may have left out samples of either
    index, order = of_a.index[both].sort()
    where = of_b.index.argsort()
    of_both = where[torch.searchsorted(of_b.index[where], index)]
    return Pair(
        a=a, b=b, index=index, target=of_a.target[both][order], log_a=a.log_probabilities[both][order],
        log_b=b.log_probabilities[of_both], within=of_a is of_b, home=of_a,
    )  # fmt: skip


def _sample_names(data: LightningDataModule, split: str) -> tuple[str, ...]:
    """As the list has them, below the data's folder, so that two copies of a data set have the same."""
    samples = getattr((getattr(data, "datasets", None) or {}).get(split), "samples", None)
    if samples is None:
        return ()
    root = getattr(data, "root", None)
    return tuple(sample.name_in(root) for sample in samples)


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if not batches or sum(len(batch[OUTPUT]) for batch in batches) < 4:
        return {}
    return {layer: torch.cat([batch[layer] for batch in batches]) for layer in batches[0]}


def _clock(tensor: Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
