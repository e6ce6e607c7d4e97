"""One call that distils: two networks and two loaders in, the student and its gain out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_distill import losses as every_loss
from lit_distill._module.batches import unpack_batch
from lit_distill.checkpoints import read_checkpoint
from lit_distill.models.identity import fill
from lit_distill.module import DistillModule
from lit_distill.runs.artifacts import write_student
from lit_distill.runs.names import STUDENT_FILE
from lit_distill.schedules import WarmupCosine
from lit_distill.terms import LossTerm

__all__ = ["METHODS", "Distilled", "distill"]

_WATCHED = "val/Student/top1"

Taps: TypeAlias = Literal["logits", "embedding", "stage", "stages"]


class Method(NamedTuple):
    """How a method is used where nothing else is said: its loss, what it compares, and its published weight."""

    loss: str
    taps: Taps = "logits"
    weight: float = 1.0
    cross_entropy: float = 1.0
    labels: bool = False
    peers: bool = False
    arguments: Mapping[str, Any] = MappingProxyType({})


METHODS: Mapping[str, Method] = {
    "kd": Method("KDLoss", weight=0.9, cross_entropy=0.1),
    "dkd": Method("DKDLoss", labels=True, arguments={"warmup_epochs": 1}),
    "dist": Method("DISTLoss"),
    "nkd": Method("NKDLoss", labels=True),
    "wsld": Method("WSLDLoss", weight=2.5, labels=True),
    "ttm": Method("TTMLoss"),
    "mlld": Method("MLLDLoss"),
    "dml": Method("DMLLoss", peers=True),
    "rkd": Method("RKDLoss", "embedding"),
    "correlation": Method("CorrelationLoss", "embedding", weight=200.0),
    "pkt": Method("PKTLoss", "embedding", weight=30000.0),
    "regression": Method(
        "RegressionLoss",
        "embedding",
        arguments={"projector": "orthogonal", "scale": "layer_norm", "distance": "smooth_l1"},
    ),
    "similarity": Method("SimilarityLoss", "stage", weight=3000.0),
    "fitnet": Method("FitNetLoss", "stage", weight=100.0),
    "ickd": Method("ICKDLoss", "stage", weight=2.5),
    "attention_transfer": Method("AttentionTransferLoss", "stages", weight=1000.0),
    "vid": Method("VIDLoss", "stages"),
    "review_kd": Method("ReviewKDLoss", "stages"),
}
"""The methods that :func:`distill` knows by name, at the weights of their experiments in ``conf/experiment``."""


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` gives back.

    Attributes:
        student: the network, with the weights of its best epoch, in eval mode and on the CPU.
        metric: what is measured on the validation loader.
        start: its value before training; None without a validation loader.
        end: its value at the best epoch.
        folder: the run's folder: ``student.safetensors``, ``metrics.csv``, checkpoints.
        code: the :class:`DistillModule` that does the same, as text.
        module: the trained module.
        trainer: that trained it.
    """

    student: nn.Module = field(repr=False)
    metric: str
    start: float | None
    end: float | None
    folder: Path
    code: str = field(repr=False)
    module: DistillModule = field(repr=False)
    trainer: Trainer = field(repr=False)

    @property
    def gain(self) -> float | None:
        """The value at the end minus that at the start."""
        return None if self.start is None or self.end is None else self.end - self.start


def distill(
    student: nn.Module,
    teacher: nn.Module,
    train: DataLoader[Any],
    val: DataLoader[Any] | None = None,
    *,
    method: str | Sequence[str] = "kd",
    max_epochs: int = 10,
    lr: float = 1e-3,
    weights: Mapping[str, float] | None = None,
    losses: Mapping[str, LossTerm] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    trainer: Trainer | None = None,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> Distilled:
    """Train ``student`` with the help of ``teacher``, and give it back with its gain.

    For classifiers of any inputs, whose loaders give ``(inputs, class indices)``. Layers are found by themselves: the
    embedding is the input of the layer that gives the logits, a stage ends at the last module of each resolution. What
    was chosen is printed as the :class:`DistillModule` that does the same, to build on.

    Args:
        student: the network that learns; trained in place.
        teacher: the network that it learns from; frozen, except with ``method="dml"``, where both learn.
        train: batches for training.
        val: batches for validation: the best epoch by top-1 is kept. Without it the last one is.
        method: one of :data:`METHODS`, or several.
        max_epochs: of training, where no ``trainer`` is given.
        lr: learning rate of AdamW, after a warm-up of half an epoch and then a cosine to 0.
        weights: of the terms, by method, or ``ce`` for cross-entropy, where not those of :data:`METHODS`.
        losses: more terms by name.
        optimizer: a factory in AdamW's place, such as ``partial(torch.optim.SGD, lr=0.05)``.
        trainer: a Trainer in the place of ours, with your callbacks and loggers.
        folder: where the run is kept; by default a new one in ``runs``.
        verbose: print what was chosen and reached.

    Raises:
        ValueError: an unknown method or weight, or networks in which a method's layers are not found.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(32, 8), torch.randint(3, (32,)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = distill(
        ...         nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), nn.Linear(8, 3),
        ...         DataLoader(data, batch_size=16), DataLoader(data, batch_size=16),
        ...         max_epochs=1, folder=folder, verbose=False,
        ...     )
        >>> done.metric, done.gain == done.end - done.start
        ('val/Student/top1', True)
    """
    methods = [method] if isinstance(method, str) else list(method)
    epochs = _epochs(trainer, max_epochs)
    kept = Path(folder) if folder is not None else Path("runs") / time.strftime("distill-%Y-%m-%d_%H-%M-%S")
    with isolate_rng():  # a look at one batch draws no number of the training's
        inputs = unpack_batch(next(iter(train)))[0]
    terms, lines = _terms(methods, _found_taps({"Student": student, "Teacher": teacher}, inputs, methods), weights)
    frozen = [] if "ce_teacher" in terms else ["Teacher"]
    module = DistillModule(
        {"Student": student, "Teacher": teacher},
        {**terms, **(losses or {})},
        val_losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
        frozen=frozen,
        student="Student",
        optimizer=optimizer or partial(torch.optim.AdamW, lr=lr),
        scheduler=WarmupCosine(epochs=epochs, warmup_epochs=0.5),
    )
    code = _code(lines, list(losses or ()), frozen, lr if optimizer is None else None, epochs)
    best = None if val is None else ModelCheckpoint(kept, "best", monitor=_WATCHED, mode="max")
    if trainer is None:
        trainer = Trainer(
            max_epochs=max_epochs, default_root_dir=kept, logger=CSVLogger(kept, name="", version=""),
            enable_checkpointing=best is not None, callbacks=best, enable_model_summary=False,
            log_every_n_steps=min(50, max(1, len(train))), enable_progress_bar=verbose,
        )  # fmt: skip
    elif best is not None:
        trainer.callbacks.append(best)  # type: ignore[attr-defined]
    if verbose:
        print(code)
    start = None if val is None else _measured(trainer, module, val)
    trainer.fit(module, train, val)
    end = None
    if best is not None and best.best_model_score is not None:
        end = float(best.best_model_score)
        _fill(student, best.best_model_path)
    network = student.cpu().eval()
    write_student(kept, network.state_dict(), {"metric": _WATCHED, "start": start, "end": end, "methods": methods})
    done = Distilled(network, _WATCHED, start, end, kept, code, module, trainer)
    if verbose:
        print(_summary(done))
    return done


def _method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(
            f"method is one of {', '.join(METHODS)}, got {name!r}: for another loss give losses={{name: LossTerm(…)}}"
        )
    return METHODS[name]


def _epochs(trainer: Trainer | None, max_epochs: int) -> float:
    given = max_epochs if trainer is None else trainer.max_epochs
    if given is None or given < 1:
        raise ValueError(f"max_epochs must be at least 1, got {given}: the learning rate ends at 0 with the last epoch")
    return float(given)


def _measured(trainer: Trainer, module: DistillModule, val: DataLoader[Any]) -> float:
    """The metric of the untrained student; the first row of the log."""
    (values,) = trainer.validate(module, val, verbose=False)
    if _WATCHED not in values:
        raise ValueError(
            f"distill judges by {_WATCHED}, which needs logits (B, C) and class indices (B,); "
            f"validation gave {', '.join(values)}: build a DistillModule with your own metrics"
        )
    return values[_WATCHED]


def _fill(student: nn.Module, checkpoint: str) -> None:
    state = read_checkpoint(checkpoint)["state_dict"]
    start = "models.Student."
    fill(student, {name[len(start) :]: value for name, value in state.items() if name.startswith(start)})


# ---------------------------------------------------------------- layers


def _found_taps(models: Mapping[str, nn.Module], inputs: Any, methods: Sequence[str]) -> dict[Taps, tuple[Any, Any]]:
    """References of both models for each kind of tap that the methods need, found by running one batch."""
    wanted = {_method(name).taps for name in methods}
    if wanted == {"logits"}:
        return {"logits": ("Student", "Teacher")}
    seen = {name: _Layers(name, model, inputs) for name, model in models.items()}
    found: dict[Taps, tuple[Any, Any]] = {"logits": ("Student", "Teacher")}
    if "embedding" in wanted:
        found["embedding"] = (seen["Student"].embedding(), seen["Teacher"].embedding())
    if wanted & {"stage", "stages"}:
        sides = [layers.stages() for layers in seen.values()]
        count = min(map(len, sides))
        pairs = (sides[0][len(sides[0]) - count :], sides[1][len(sides[1]) - count :])
        found["stage"] = (pairs[0][-1], pairs[1][-1])
        found["stages"] = pairs
    return found


class _Layers:
    """What the modules of a network give for one batch, in the order in which they run."""

    def __init__(self, name: str, model: nn.Module, inputs: Any) -> None:
        self.name = name
        self.ran: list[tuple[str, nn.Module, Tensor]] = []
        handles = [
            module.register_forward_hook(partial(self._saw, path))
            for path, module in model.named_modules(remove_duplicate=True)
            if path
        ]
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            with torch.no_grad():
                self.output = model(inputs)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes:
                module.training = mode

    def _saw(self, path: str, module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.ran.append((path, module, output))

    def embedding(self) -> str:
        """The input of the linear layer that gives the logits."""
        for path, module, output in reversed(self.ran):
            if isinstance(module, nn.Linear) and isinstance(self.output, Tensor) and output.shape == self.output.shape:
                return f"{self.name}.{path}:input"
        raise ValueError(
            f"distill finds no linear classifier in {self.name}, which gives "
            f"{tuple(getattr(self.output, 'shape', ())) or type(self.output).__name__}: name its embedding in a "
            "LossTerm, given in losses="
        )

    def stages(self) -> tuple[str, ...]:
        """The last module of each resolution of maps (B, C, H, W), finest first."""
        last: dict[tuple[int, ...], str] = {}
        for path, _, output in self.ran:
            if output.ndim == 4 and min(output.shape[2:]) > 1:
                last[tuple(output.shape[2:])] = path
        if not last:
            raise ValueError(
                f"distill finds no feature maps (B, C, H, W) in {self.name}: take a method on logits or embeddings, or "
                "name the layers in a LossTerm, given in losses="
            )
        ordered = sorted(last, key=lambda side: side[0] * side[1], reverse=True)
        return tuple(f"{self.name}.{last[side]}" for side in ordered)


# ---------------------------------------------------------------- terms and text


def _terms(
    methods: Sequence[str], taps: Mapping[Taps, tuple[Any, Any]], weights: Mapping[str, float] | None
) -> tuple[dict[str, LossTerm], dict[str, str]]:
    """The terms by name, and the Python of each."""
    chosen, given = {name: _method(name) for name in methods}, dict(weights or {})
    if not chosen:
        raise ValueError(f"method is one of {', '.join(METHODS)}, or several of them, got none")
    if unknown := set(given) - {"ce", *chosen}:
        raise ValueError(f"weights is of some of ce, {', '.join(chosen)}, got {', '.join(sorted(unknown))}")
    peers = {name for name, method in chosen.items() if method.peers}
    if peers and peers != set(chosen):
        raise ValueError(f"method: {', '.join(peers)} trains the teacher as well, the others hold it; got {methods}")
    weight = given.pop("ce", min(method.cross_entropy for method in chosen.values()))
    terms, lines = dict[str, LossTerm](), dict[str, str]()
    for name, model in [("ce", "Student"), *([("ce_teacher", "Teacher")] if peers else [])]:
        terms[name] = LossTerm(nn.CrossEntropyLoss(), pair=(model, "GroundTruth"), weight=weight)
        lines[name] = f'LossTerm(nn.CrossEntropyLoss(), pair=("{model}", "GroundTruth"), weight={weight})'
    for name, method in chosen.items():
        weight, pair = given.get(name, method.weight), taps[method.taps]
        target = "GroundTruth" if method.labels else None
        loss = getattr(every_loss, method.loss)(**method.arguments)
        terms[name] = LossTerm(loss, pair=pair, target=target, weight=weight)
        said = "" if target is None else f', target="{target}"'
        arguments = ", ".join(f"{key}={_quoted(value)}" for key, value in method.arguments.items())
        lines[name] = f"LossTerm({method.loss}({arguments}), pair={_quoted(pair)}{said}, weight={weight})"
    return terms, lines


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if not isinstance(value, tuple):
        return repr(value)
    return f"({', '.join(map(_quoted, value))}{',' if len(value) == 1 else ''})"


def _code(lines: Mapping[str, str], more: Sequence[str], frozen: Sequence[str], lr: float | None, epochs: float) -> str:
    terms = [f'        "{name}": {line},' for name, line in lines.items()]
    terms += [f'        "{name}": …,  # as given' for name in more]
    optimizer = "…,  # as given" if lr is None else f"partial(torch.optim.AdamW, lr={lr}),"
    return "\n".join(
        [
            "module = DistillModule(",
            '    {"Student": student, "Teacher": teacher},',
            "    losses={",
            *terms,
            "    },",
            '    val_losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},',
            f"    frozen={list(frozen)!r},".replace("'", '"'),
            '    student="Student",',
            f"    optimizer={optimizer}",
            f"    scheduler=WarmupCosine(epochs={epochs:g}, warmup_epochs=0.5),",
            ")",
        ]
    )


def _summary(done: Distilled) -> str:
    reached = "no validation loader: the last epoch is kept"
    if done.gain is not None and done.start is not None and done.end is not None:
        start, end, gain = 100 * done.start, 100 * done.end, 100 * done.gain
        reached = f"{done.metric}: {start:.1f} % at the start, {end:.1f} % at the best epoch ({gain:+.1f})"
    return f"{reached}\nstudent: {done.folder / STUDENT_FILE}"
