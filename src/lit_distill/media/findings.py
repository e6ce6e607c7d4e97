"""What a validation computes anyway, kept until its end: who says what of how many samples, and the worst clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_distill.losses.base import LabelRule, class_indices, labelled_rows

_FRAMES = 16  # of a clip that are kept, at most
Cells = Counter[tuple[int, int]]
Normalisation = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class WrongClip:
    """A sample that the student has wrong, with its frames (T, 3, H, W), uint8.

    The place is -1 where batches have no index. What is said is by the models' names, the student first: the class that
    the sample is taken for, and its probability.
    """

    place: int
    target: int
    said: Mapping[str, tuple[int, float]]
    frames: Tensor

    @property
    def order(self) -> tuple[float, int]:
        """Sorts the most confident first."""
        return -next(iter(self.said.values()))[1], self.place


@dataclass
class Findings:
    """Of one validation, so far.

    Attributes:
        student: name of the model that is judged.
        most: clips that are kept.
        normalisation: mean and standard deviation of the inputs' channels; None where they are not known.
        classes: their number; 0 before there is a sample.
        cells: by the models' names, samples by (true class, predicted class).
        clips: those that the student has wrong with the highest confidence, the worst first.
        reason: why nothing is to be drawn, where the samples have no class or no scores.
        clips_reason: why there are no clips, where their samples are no pictures.
        left_out: by the models' names, why there is nothing of a model beside the student.
        unknown: why the normalisation is not known.
    """

    student: str
    most: int
    normalisation: Normalisation | None
    classes: int = 0
    cells: dict[str, Cells] = field(default_factory=dict)
    clips: list[WrongClip] = field(default_factory=list)
    reason: str = ""
    clips_reason: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    unknown: str = "the data module has no mean and std"
    _numbers: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, outputs: Mapping[str, Any], inputs: Any, target: Tensor | None, index: Tensor | None) -> None:
        """Take in one batch, as validation has evaluated it; nothing is computed by a model."""
        scores = outputs[self.student]
        if not isinstance(scores, Tensor) or scores.ndim != 2 or target is None or target.ndim not in (1, 2):
            got = f"{tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            self.reason = self.reason or (
                "the samples have no target" if target is None
                else f"{self.student} gives no class scores (B, C) of samples with one class each: its output is "
                f"{got}, the target {tuple(target.shape)}"
            )  # fmt: skip
            return
        rows = labelled_rows(target, LabelRule("classes"))
        known = class_indices(target) if rows is None else class_indices(target[rows])
        self.classes = scores.shape[1]
        said: dict[str, tuple[Tensor, Tensor]] = {}
        for name in (self.student, *(name for name in outputs if name != self.student)):
            logits = outputs[name]
            if isinstance(logits, Tensor) and logits.shape == scores.shape:
                logits = (logits if rows is None else logits[rows]).detach()
                highest = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).max(1)
                said[name] = (highest.indices, highest.values)
                self._numbers.setdefault(name, []).append(known * self.classes + highest.indices)
            else:
                is_scores = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(scores)
                self.left_out.setdefault(
                    name,
                    f"it gives scores of {logits.shape[1]} classes, {self.student} of {self.classes}" if is_scores
                    else "it gives no class scores (B, C)",
                )  # fmt: skip
        if self.most and len(known) and not self.clips_reason:
            places = torch.full_like(known, -1) if index is None else index if rows is None else index[rows]
            self._keep_worst(said, known, places.to(known.device), inputs, rows)

    def _keep_worst(
        self,
        said: Mapping[str, tuple[Tensor, Tensor]],
        target: Tensor,
        places: Tensor,
        inputs: Any,
        rows: Tensor | None,
    ) -> None:
        predicted, confidence = said[self.student]
        wrong = torch.where((predicted != target) & confidence.isfinite(), confidence, -1.0)
        order = wrong.argsort(descending=True, stable=True)[: self.most]
        # one way to the host a batch: what is there to be said of the worst
        numbers = torch.stack([target, places, *(p for p, _ in said.values())])[:, order].tolist()
        shares = torch.stack([wrong, *(c.to(wrong.dtype) for _, c in said.values())])[:, order].tolist()
        for at, row in enumerate(order.tolist()):
            if shares[0][at] < 0 or (len(self.clips) == self.most and -shares[0][at] >= self.clips[-1].order[0]):
                return
            frames = self._frames(inputs, row if rows is None else int(rows[row]))
            if frames is None:
                return
            answers = {
                name: (int(numbers[2 + model][at]), float(shares[1 + model][at])) for model, name in enumerate(said)
            }
            clip = WrongClip(int(numbers[1][at]), int(numbers[0][at]), answers, frames)
            self.clips = sorted([*self.clips, clip], key=lambda each: each.order)[: self.most]

    def _frames(self, inputs: Any, row: int) -> Tensor | None:
        """The frames of a sample as bytes, as they were before they were normalised."""
        is_picture = isinstance(inputs, Tensor) and inputs.ndim in (4, 5, 6) and inputs.shape[-3] == 3
        if not is_picture or (inputs.dtype != torch.uint8 and not inputs.is_floating_point()):
            got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
            self.clips_reason = f"clips are shown of inputs (B, T, 3, H, W) or (B, 3, H, W), got {got}"
            return None
        if inputs.is_floating_point() and self.normalisation is None:
            self.clips_reason = (
                f"how the clips were normalised is not known: {self.unknown}, give MediaLogger(mean=…, std=…)"
            )
            return None
        sample: Tensor = inputs[row].detach()
        if sample.ndim == 5:  # of several views the one in the middle
            sample = sample[len(sample) // 2]
        frames = sample[None] if sample.ndim == 3 else sample
        count = min(_FRAMES, len(frames))
        frames = frames[[(2 * place + 1) * len(frames) // (2 * count) for place in range(count)]].cpu()
        if frames.dtype == torch.uint8:
            return frames.clone()
        assert self.normalisation is not None
        mean, std = (torch.tensor(list(v), dtype=torch.float32)[:, None, None] for v in self.normalisation)
        return ((frames.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def of_all_ranks(self, distributed: bool) -> Findings:
        """Those of all processes together; each of them has to ask. Clips go round only if they are among the worst."""
        self._count()
        if not distributed:
            return self._judged()
        orders_of_mine = [clip.order for clip in self.clips]
        parts = _gathered((self.classes, self.cells, orders_of_mine, self.reason, self.clips_reason, self.left_out))
        orders = [(order, rank, at) for rank, part in enumerate(parts) for at, order in enumerate(part[2])]
        chosen = sorted(orders)[: self.most]
        mine = torch.distributed.get_rank()
        clips = _gathered([self.clips[at] for _, rank, at in chosen if rank == mine])
        whole = Findings(self.student, self.most, self.normalisation, classes=max(part[0] for part in parts))
        for part in parts:
            for name, cells in part[1].items():
                whole.cells.setdefault(name, Counter()).update(cells)
        whole.clips = sorted((clip for part in clips for clip in part), key=lambda each: each.order)
        whole.reason = next((part[3] for part in parts if part[3]), "")
        whole.clips_reason = next((part[4] for part in parts if part[4]), "")
        for part in reversed(parts):
            whole.left_out.update(part[5])
        return whole._judged()

    def _judged(self) -> Findings:
        if not self.reason and not self.cells.get(self.student):
            self.reason = "no sample has a label"
        return self

    def _count(self) -> None:
        for name, numbers in self._numbers.items():
            values, counts = torch.unique(torch.cat(numbers).cpu(), return_counts=True)
            if len(values) and int(values[-1]) >= self.classes**2:
                highest = int(values[-1]) // self.classes
                self.reason = f"{self.student} gives scores of {self.classes} classes, a target is {highest}"
            pairs = zip(values.tolist(), counts.tolist(), strict=True)
            self.cells[name] = Counter({divmod(value, self.classes): count for value, count in pairs})
        self._numbers = {}


def three_numbers(values: Any) -> tuple[float, ...] | None:
    """The three numbers of an iterable, of the channels; None where it is something else.

    Example:
        >>> three_numbers([0, 0.5, 1]), three_numbers(0.5), three_numbers([0.5])
        ((0.0, 0.5, 1.0), None, None)
    """
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers if len(numbers) == 3 and all(map(math.isfinite, numbers)) else None


def class_gains(student: Cells, other: Cells) -> list[tuple[int, int, float]]:
    """For each class with samples: its number, its samples, and the share that the student has right less the other's.

    The largest gain first, of equal ones the lower class.

    Example:
        >>> class_gains(Counter({(0, 0): 1, (0, 1): 1, (1, 1): 2}), Counter({(0, 0): 2, (1, 0): 1, (1, 1): 1}))
        [(1, 2, 0.5), (0, 2, -0.5)]
    """
    samples: Counter[int] = Counter()
    for (true, _), count in student.items():
        samples[true] += count
    gains = [(c, n, (student[c, c] - other[c, c]) / n) for c, n in samples.items()]
    return sorted(gains, key=lambda gain: (-gain[2], gain[0]))


def _gathered(mine: Any) -> list[Any]:
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine)
    return parts
