"""LossTerm: one weighted loss between two named signals."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_distill.losses._grids import sides_of
from lit_distill.losses.base import Signal, tensors_of
from lit_distill.signals import GROUND_TRUTH, Reference, parse_references

Weight: TypeAlias = float | Callable[[float], float]
"""A number, or a schedule: a function of the fractional epoch."""

_OPTIONAL = ("target", "weight", "mask", "ignore_index", "shift", "detach", "align_time", "tokens", "monitor")
_KEYS = f"loss, pair, and optionally {', '.join(_OPTIONAL)}"


class LossTerm:
    """One weighted loss between two signals; the first of the pair learns from the second.

    Args:
        loss: any callable of two signals that gives a scalar: a module of :mod:`lit_distill.losses`, a torch loss
            such as ``nn.CrossEntropyLoss()``, a function.
        pair: the references of the two signals; a member may be a list of references for losses over several layers.
        target: a third reference (or a list), for losses that also look at the labels.
        weight: a number, or a function of the fractional epoch (:mod:`lit_distill.schedules`).
        mask: a reference to what counts: True or 1 for the tokens (B, T), pixels (B, H, W) or samples (B,) that do,
            such as ``"Batch.attention_mask"``. The loss is that over these rows alone, a mean over tokens of the whole
            batch. A loss with an argument ``mask`` is given it, and may weigh rows by it; any other is given the rows
            (N, C) that count. A mask of a map of another size is brought to that of the signals: a place counts where
            half of it does.
        ignore_index: labels that are none, such as -100, 255 or a list: their positions do not count, in a loss between
            two models either. Read from the term's own labels, else from ``GroundTruth``.
        shift: whether position t of what models give (B, T, C) stands for the label at t + 1, as in causal language
            models; a mask is that of the labels.
        detach: whether no gradient reaches the second signal. By default it is detached, unless the loss says by its
            attribute ``teaches_both`` that both sides learn, as symmetric mutual learning does. One that says by
            ``same_signals`` that it takes the same references twice is held to it.
        align_time: whether signals of frames (B * T, ...) of different T are compared: the longer one is averaged over
            the time of each frame of the other.
        tokens: ``"grid"`` makes square maps (B, C, H, W) of tokens (B, N, C) and of their mask, for losses in which
            space matters, or between a transformer and a convolutional network; (height, width) makes other ones.
            Leading class tokens and registers are left out.
        monitor: whether the term is only logged and teaches no model: all its signals are detached, and it is no part
            of the total. Parameters of the loss itself learn all the same, as those of a probe. A term that is no
            monitor and whose gradient reaches no parameter of its first model is refused.

    Raises:
        ValueError: a malformed pair, reference or weight.

    Example:
        >>> term = LossTerm(nn.MSELoss(), pair=("Student.stages.2", "Teacher.stages.2"), weight=0.5)
        >>> term
        LossTerm(MSELoss: Student.stages.2 <- Teacher.stages.2, weight 0.5)
    """

    def __init__(
        self,
        loss: nn.Module | Callable[..., Tensor],
        pair: Sequence[str | Iterable[str]],
        *,
        target: str | Iterable[str] | None = None,
        weight: Weight = 1.0,
        mask: str | None = None,
        ignore_index: int | Sequence[int] | None = None,
        shift: bool = False,
        detach: bool | None = None,
        align_time: bool = False,
        tokens: str | Sequence[int] | None = None,
        monitor: bool = False,
    ) -> None:
        if not callable(loss):
            raise ValueError(f"loss must be a callable of two signals, got {loss!r}")
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"pair must be two references, such as ('Student', 'Teacher'), got {pair!r}")
        check_weight("weight", weight)
        self.loss = loss
        self.weight = weight
        self.first, self.first_is_list = parse_references(pair[0]), not isinstance(pair[0], str)
        self.second, self.second_is_list = parse_references(pair[1]), not isinstance(pair[1], str)
        self.target = () if target is None else parse_references(target)
        self.target_is_list = target is not None and not isinstance(target, str)
        self.mask = None if mask is None else parse_references(mask)[0]
        """What counts; None for all."""
        self.ignore_index = _indices(ignore_index)
        """Labels whose positions do not count."""
        self.shift = shift
        if all(ref.is_data for ref in self.first):
            raise ValueError(f"the first of a pair must learn, but {self.first[0].text} comes with the batch")
        both = bool(getattr(loss, "teaches_both", False))
        if getattr(loss, "same_signals", False):
            if self.first != self.second:
                raise ValueError(
                    f"{_loss_name(loss)} takes the same signals twice, in the same order, got {self.pair_text}: "
                    f"write pair: [{_join(self.first)}, {_join(self.first)}]"
                )
            if both and detach:
                raise ValueError(
                    f"detach=True leaves {_loss_name(loss)} as it is, where both sides learn: leave it out"
                )
        self.align_time = align_time
        self.tokens = tokens
        self.sides = None if tokens is None else sides_of(tokens)
        """Of the grid that tokens are brought to; None for a square."""
        self.monitor = monitor
        self.detach = not both if detach is None else detach

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every reference of the term."""
        labels = (Reference(GROUND_TRUTH, GROUND_TRUTH),) if self.ignore_index else ()
        return (*self.first, *self.second, *self.target, *([self.mask] if self.mask else ()), *labels)

    @property
    def needs_labels(self) -> bool:
        """Whether it looks at the labels."""
        return any(ref.text == GROUND_TRUTH for ref in (*self.first, *self.second, *self.target))

    @property
    def selects(self) -> bool:
        """Whether not all positions count."""
        return self.mask is not None or bool(self.ignore_index)

    @property
    def pair_text(self) -> str:
        """The pair as text, for messages."""
        return f"{_join(self.first)} <- {_join(self.second)}"

    @property
    def has_fixed_weight(self) -> bool:
        """Whether the weight is a number."""
        return not callable(self.weight)

    def weight_at(self, epoch: float) -> float:
        """The weight at a fractional epoch; 0 for a monitor, unless its loss has parameters that learn."""
        learns = isinstance(self.loss, nn.Module) and any(p.requires_grad for p in self.loss.parameters())
        if self.monitor and not learns:
            return 0.0
        return float(self.weight(epoch)) if callable(self.weight) else float(self.weight)

    def __repr__(self) -> str:
        return f"LossTerm({_loss_name(self.loss)}: {self.pair_text}, weight {self.weight})"


def _indices(given: int | Sequence[int] | None) -> tuple[int, ...]:
    """The labels of ``ignore_index``; raises ValueError for what is neither a whole number nor a list of such."""
    found = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if isinstance(given, str) or any(isinstance(each, bool) or not isinstance(each, int) for each in found):
        raise ValueError(f"ignore_index is a label such as -100, or a list of them, got {given!r}")
    return found


def check_weight(name: str, weight: object) -> None:
    """Raise ValueError, naming the argument, for what is neither a finite number nor a function."""
    if callable(weight):
        return
    try:
        valid = not isinstance(weight, bool) and math.isfinite(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise ValueError(f"{name} must be a finite number or a schedule (a function of the epoch), got {weight!r}")


def weight_error(name: str, weight: float, epoch: float) -> ValueError:
    """To raise for a schedule's weight that is not finite."""
    return ValueError(f"{name}: its schedule gives the weight {weight} at epoch {epoch:g}")


def term_from_mapping(name: str, given: Mapping[str, Any]) -> LossTerm:
    """The term of these arguments; raises ValueError that names it."""
    if "class_path" in given:
        raise ValueError(f"term {name!r}: {_fault_of_class_path(given)}")
    known = {"loss", "pair", *_OPTIONAL}
    unknown, missing = set(given) - known, {"loss", "pair"} - set(given)
    if unknown or missing:
        near = difflib.get_close_matches(min(unknown), known, n=1) if unknown else []
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        problem = f"unknown keys {sorted(unknown)}{meant}" if unknown else f"missing keys {sorted(missing)}"
        raise ValueError(f"term {name!r}: {problem}; a term has {_KEYS}")
    try:
        return LossTerm(**given)
    except ValueError as error:
        raise ValueError(f"term {name!r}: {error}") from None


def _fault_of_class_path(given: Mapping[str, Any]) -> str:
    """Why LightningCLI left a term's class_path as it is: it takes what no class fits for a plain mapping."""
    from jsonargparse import ArgumentParser  # whoever writes class_path has it

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--term", type=LossTerm)
    try:
        parser.parse_object({"term": dict(given)})
    except Exception as error:  # its own kind of argparse's, which moves between releases
        whole = " ".join(str(error).split())
        parts: list[str] = re.findall(r"Problem with given class_path .*?(?= - |$)", whole)
        return parts[-1] if parts else whole
    return f"class_path is LightningCLI's; in Python give a LossTerm, or a mapping of {_KEYS}"


def _join(references: tuple[Reference, ...]) -> str:
    texts = [ref.text for ref in references]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _loss_name(loss: Callable[..., Tensor]) -> str:
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)


def describe(name: str, term: LossTerm, arguments: tuple[Signal, ...]) -> str:
    """A term, its references and the shapes that it got, for messages."""
    parts = [
        f"{ref.text} {tuple(tensor.shape)}"
        for references, signal in zip((term.first, term.second, term.target), arguments, strict=False)
        for ref, tensor in zip(references, tensors_of(signal), strict=True)
    ]
    return f"term {name!r} ({_loss_name(term.loss)}) on {', '.join(parts)}"


def aligned_in_time(first: Signal, second: Signal, *, clips: int | None = None) -> tuple[Signal, Signal]:
    """Both signals with the frames of the one that has fewer; lists layer by layer.

    A signal of frames is (B * T, ...), clip by clip. The longer one, say T' frames a clip, is averaged over the frames
    that fall into the time of each of the T: groups of T' / T where T divides T', else adaptively, groups that share
    their borders, for which B must be known. Signals of equally many rows are left as they are.

    Args:
        first: of the learner.
        second: of the teacher.
        clips: B, where it is known.

    Raises:
        ValueError: the rows are no whole number of frames for each clip, or as many clips on one side only.

    Example:
        >>> teacher = torch.arange(8.0).reshape(8, 1)  # 2 clips of 4 frames
        >>> aligned_in_time(torch.zeros(4, 1), teacher)[1].flatten().tolist()
        [0.5, 2.5, 4.5, 6.5]
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _aligned(first, second, clips)
    if isinstance(first, Tensor) or isinstance(second, Tensor) or len(first) != len(second):
        raise ValueError("align_time pairs layers with layers: a list of as many references on both sides, or one each")
    pairs = [_aligned(ours, theirs, clips) for ours, theirs in zip(first, second, strict=True)]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _aligned(first: Tensor, second: Tensor, clips: int | None) -> tuple[Tensor, Tensor]:
    if not first.ndim or not second.ndim or not len(first) or not len(second):
        raise ValueError(f"align_time takes frames (B * T, ...), got {tuple(first.shape)} and {tuple(second.shape)}")
    rows = min(len(first), len(second))
    return _averaged(first, rows, clips), _averaged(second, rows, clips)


def _averaged(frames: Tensor, rows: int, clips: int | None) -> Tensor:
    if len(frames) == rows:
        return frames
    whole = frames.to(torch.promote_types(frames.dtype, torch.float32))
    if len(frames) % rows == 0 and (clips is None or rows % clips == 0):
        return whole.unflatten(0, (rows, -1)).mean(dim=1).to(frames.dtype)  # type: ignore[no-untyped-call, no-any-return]
    if clips is None or len(frames) % clips or rows % clips:
        known = "the number of clips is not known: it is taken from GroundTruth" if clips is None else f"{clips} clips"
        raise ValueError(
            f"align_time: {len(frames)} and {rows} rows are no whole numbers of frames for each clip ({known})"
        )
    series = whole.reshape(clips, len(frames) // clips, -1).transpose(1, 2)
    pooled = F.adaptive_avg_pool1d(series, rows // clips).transpose(1, 2)
    return pooled.reshape(rows, *frames.shape[1:]).to(frames.dtype)
