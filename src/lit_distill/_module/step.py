"""What a training step leaves behind until it is over: its terms for the log, and what to tell if it is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from lit_distill._inputs import tensors_in
from lit_distill._lightning import batches_done
from lit_distill._screen import few
from lit_distill.composer import ComposedLoss, LossComposer
from lit_distill.signals import SignalCapture

_SHOWN = 8

_FROZEN_HINT = (
    "a frozen network that gives them overflows in half precision (try trainer.precision=32-true or bf16-mixed) "
    "or was loaded from damaged weights"
)


def fractional_epoch(trainer: Trainer, batch_idx: int) -> float:
    """The epoch at the start of a batch, for schedules; whole where nobody knows how many batches there are."""
    batches = trainer.num_training_batches
    return trainer.current_epoch + (batch_idx / batches if math.isfinite(batches) and batches else 0.0)


def epoch_so_far(trainer: Trainer) -> float:
    """The fractional epoch that training has reached: in a validation, that of the last training batch."""
    return fractional_epoch(trainer, batches_done(trainer)) if trainer.state.fn == "fit" else trainer.current_epoch


class RunningTerms:
    """Sums of a stage's terms over its samples, in one tensor (5, terms).

    Its rows: the terms before their weights, the number of samples that each is the mean of (with labels, or in steps
    that computed it); then, over all samples, the weighted terms, their weights, and the number of samples.

    A ``self.log`` of every term in every step would cost half a millisecond each; so would waiting for their values.
    It is no module, since setting an attribute of one costs more than the addition. What was added counts once the
    optimizer has stepped: until then it can be dropped with the step.
    """

    __slots__ = ("_dropped", "_of_batches", "_pending", "sums")

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self._pending: list[tuple[ComposedLoss, int]] = []
        self._dropped: Tensor | None = None
        self._of_batches = False  # sums of a release that counted batches

    def add(self, result: ComposedLoss, size: int) -> None:
        """Take in the terms of one batch of so many samples, for now."""
        self._pending.append((replace(result, total=result.values, terms=()), size))  # without the graph

    def drop(self, where: Tensor | None = None) -> None:
        """Forget what was added since the last :meth:`commit`; with ``where`` at the next, and only if it is true."""
        if where is None:
            self._pending.clear()
        self._dropped = where

    def commit(self) -> None:
        """Let what was added count."""
        before, dropped, self._dropped = self.sums, self._dropped, None
        if dropped is not None and before is not None:
            self.sums = before.clone()
        self._commit()
        if dropped is not None and self.sums is not None:
            self.sums = torch.where(dropped, 0 if before is None else before, self.sums)

    def _commit(self) -> None:
        for result, size in self._pending:
            values, weights = result.values, result.weights
            if self.sums is None:
                self.sums = values.new_zeros(5, len(values), dtype=torch.promote_types(values.dtype, torch.float32))
            if self._of_batches:
                self.sums.mul_(size)
                self._of_batches = False
            samples = sample_counts(result, size)
            if isinstance(samples, int):
                self.sums[0].add_(values, alpha=samples)
                self.sums[1].add_(samples)
            else:
                counts = samples.to(values.device, self.sums.dtype, non_blocking=True)
                self.sums[0].add_(torch.where(counts > 0, values * counts, 0))
                self.sums[1].add_(counts)
            self.sums[2].add_(values.where(weights != 0, 0) * weights, alpha=size)
            self.sums[3].add_(weights, alpha=size)
            self.sums[4].add_(size)
        self._pending.clear()

    def state_dict(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The sums of every rank (ranks, 5, terms), for a checkpoint; ``gather`` brings the ranks' tensors together."""
        return {} if self.sums is None else {"sums": gather(self.sums[None]).cpu()}

    def load_state_dict(self, state: Mapping[str, Any], rank: int, ranks: int, device: torch.device) -> None:
        """Continue with this rank's sums, or with the ranks' mean where there were other ranks."""
        if state:
            sums: Tensor = state["sums"]
            if of_batches := "count" in state:  # of a release that counted batches, not samples
                counts = torch.full_like(sums[:, :1], int(state["count"]))
                if sums.shape[1] == 2:  # and logged no weights: the means by value, which constants are
                    weights = counts * (sums[:, 1:] / sums[:, :1]).nan_to_num(0.0, 0.0, 0.0)
                    sums = torch.cat([sums, weights], dim=1)
                sums = torch.cat([sums[:, :1], counts, sums[:, 1:], counts], dim=1)
            self._of_batches = of_batches
            self.sums = (sums[rank] if len(sums) == ranks else sums.mean(dim=0)).to(device, copy=True)

    def take(self) -> Tensor | None:
        """The sums since the last call; None if nothing was added."""
        self.commit()
        sums, self.sums = self.sums, None
        return sums


def sample_counts(result: ComposedLoss, size: int) -> int | Tensor:
    """How many samples or positions each term is the mean of, (terms,); one number where it is the same for all."""
    if all(samples is None for samples in result.samples):
        return size
    counts = [size if samples is None else samples for samples in result.samples]
    if not any(isinstance(count, Tensor) for count in counts):
        return torch.tensor([float(count) for count in counts])  # on the CPU
    like = result.values
    return torch.stack([c.float() if isinstance(c, Tensor) else like.new_full((), c).float() for c in counts])


def batch_size(target: Any, inputs: Any, outputs: Any = None) -> int:
    """Number of samples of a batch: rows of the target, or of the first tensor in the inputs or outputs; else 1.

    Inputs of one dimension, such as a scale for the whole batch, are asked last.

    Example:
        >>> batch_size(None, {"clip": torch.zeros(3, 8)}), batch_size(torch.zeros(2, 5), torch.zeros(2, 8))
        (3, 2)
    """
    if isinstance(target, (list, tuple)) and isinstance(inputs, (list, tuple)) and len(target) == len(inputs):
        return len(target)  # images and their boxes
    given = list(tensors_in(inputs))
    tensors = [*tensors_in(target if isinstance(target, Tensor) else None), *(each for each in given if each.ndim > 1)]
    tensors += [*tensors_in(outputs), *given]
    return next((len(tensor) for tensor in tensors if tensor.ndim), 1)


@dataclass(frozen=True)
class StepRecord:
    """One batch's terms and signals, looked at only if the step turns out not to be finite.

    Attributes:
        composer: whose terms they are.
        values: every term before its weight, (terms,).
        index: positions (B,) of the samples in their data set, where the batch has them.
        inputs: what the models were given.
        signals: what was captured; None once only the values are kept, or where it stays within a compiled step.
        frozen: names of the models that only teach.
    """

    composer: LossComposer
    values: Tensor
    index: Tensor | None
    inputs: Any
    signals: SignalCapture | None
    frozen: Collection[str] = ()

    def slim(self) -> StepRecord:
        """The same without tensors of the networks' size, to be kept over an accumulation of batches."""
        return replace(self, signals=None, inputs=None)

    def faults(self, sample_names: Callable[[Sequence[int]], list[str]]) -> list[str]:
        """Lines that name each term and signal that is not finite, and its samples."""
        lines: list[str] = []
        captured = {} if self.signals is None else self.signals.captured()
        inputs_are_bad = isinstance(self.inputs, Tensor) and _is_bad(self.inputs)
        if inputs_are_bad:
            lines.append(f"the batch's inputs {_holds(self.inputs)}{self._rows(self.inputs, sample_names)}")
        for text, tensor in captured.items():
            if not _is_bad(tensor):
                continue
            name = text.split(".")[0].split(":")[0]
            rows = self._rows(tensor, sample_names)
            if name in self.frozen:
                hint = "" if inputs_are_bad else f": {_FROZEN_HINT}"
                lines.append(f"frozen model {name!r} gave {_holds(tensor, verb='')} in {text!r}{rows}{hint}")
            else:
                lines.append(f"signal {text!r} {_holds(tensor)}{rows}")
        for (name, term), value in zip(self.composer.terms.items(), self.values.tolist(), strict=True):
            if not _finite(value):
                signals = [captured[ref.text] for ref in term.references if ref.text in captured]
                lines.append(f"term {name!r} ({repr(term)[9:-1]}) is {value}")
                if signals and not any(map(_is_bad, signals)):
                    lines[-1] += (
                        ", though all its signals are finite: its formula overflowed, or it had no valid element "
                        "to average over"
                    )
        if lines and self.index is not None:
            lines.append(f"samples of the batch: {few(sample_names(self.index.tolist()), 2 * _SHOWN)}")
        return lines

    def _rows(self, tensor: Tensor, sample_names: Callable[[Sequence[int]], list[str]]) -> str:
        """Which samples of the batch a tensor (B, ...) is not finite in."""
        batch = None if self.index is None else len(self.index)
        if tensor.ndim == 0 or (batch is not None and len(tensor) != batch):
            return ""
        rows = (~tensor.isfinite()).flatten(1).any(dim=1) if tensor.ndim > 1 else ~tensor.isfinite()
        numbers = rows.nonzero().flatten().tolist()
        if self.index is None:
            return f", row {few(map(str, numbers), _SHOWN)} of the batch"
        return f", sample {few(sample_names(self.index[rows].tolist()), _SHOWN)}"


def _holds(tensor: Tensor, *, verb: str = "holds ") -> str:
    return f"{verb}{int(tensor.isnan().sum())} NaN and {int(tensor.isinf().sum())} infinite of {tuple(tensor.shape)}"


def _is_bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def _finite(value: float) -> bool:
    return value - value == 0
