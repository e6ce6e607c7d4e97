"""What is looked at before training: names, an example batch, the number of classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from lit_distill._lightning import load_train_data
from lit_distill._terms.ignored import VOID
from lit_distill._views import InputView
from lit_distill.signals import RESERVED
from lit_distill.structures import Answer
from lit_distill.untrusted.budgets import lines_of


class Program(nn.Module):
    """A plain callable, an exported program or a session of ONNX Runtime as a model that only teaches.

    Args:
        program: a function of the inputs, what ``torch.export`` gives, or a session, whose first output is taken.

    Raises:
        ValueError: when called: an exported program refuses the batch.

    Example:
        >>> Program(torch.sum)(torch.ones(3)).item()
        3.0
    """

    program: Any

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program.module() if isinstance(program, torch.export.ExportedProgram) else program

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self  # it does not learn, and a session cannot be copied

    def train(self, mode: bool = True) -> Program:
        """Set the flag of this module alone: an exported program is in the mode that it was exported in."""
        self.training = mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the program gives."""
        if _is_session(self.program):
            (x,), entry = args, self.program.get_inputs()[0].name
            return torch.from_numpy(self.program.run(None, {entry: x.detach().cpu().numpy()})[0]).to(x.device)
        try:
            return self.program(*args, **kwargs)
        except AssertionError as error:
            if "Guard failed" not in str(error):
                raise
            raise ValueError(
                f"the exported program refuses a batch of another form than its example's ({error}): export it with "
                "dynamic_shapes for the batch"
            ) from None


def _is_session(program: Any) -> bool:
    return hasattr(program, "get_inputs") and hasattr(program, "run")


def as_modules(models: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The models, with functions, exported programs and sessions as modules.

    Example:
        >>> type(as_modules({"Teacher": len})["Teacher"]).__name__
        'Program'
    """

    def is_program(model: Any) -> bool:
        callables = callable(model) and not isinstance(model, (nn.Module, type))
        sessions = _is_session(model) and not isinstance(model, nn.Module)
        return callables or sessions or isinstance(model, torch.export.ExportedProgram)

    return {name: Program(model) if is_program(model) else model for name, model in models.items()}


def check_names(models: Mapping[str, nn.Module], frozen: Collection[str]) -> None:
    """Raise ValueError for a model's name that cannot be used, or a frozen name that is no model's."""
    if not models:
        raise ValueError("models is empty: expected a mapping such as {'Student': …, 'Teacher': …}")
    for name, model in models.items():
        if not name or "." in name or ":" in name or name in RESERVED or hasattr(nn.ModuleDict, name):
            raise ValueError(f"{name!r} cannot name a model: no dots or colons, and not one of {list(RESERVED)}")
        if not isinstance(model, nn.Module):
            raise ValueError(f"models[{name!r}] must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, Program) and name not in frozen:
            raise ValueError(f"{name} is a function or a program, which cannot learn: freeze it, frozen=[{name!r}]")
    if isinstance(frozen, str):
        raise ValueError(f"frozen must be a list of names, got the string {frozen!r}")
    unknown = sorted(set(frozen) - set(models))
    if unknown:
        raise ValueError(f"frozen names {unknown}, but the models are {sorted(models)}")
    if set(frozen) == set(models):
        raise ValueError("every model is frozen, so nothing would be trained")


BEST = "best"
"""As the student's name: the best of several candidates by validation."""


TOP1 = "top1"
"""The validation metric that it is the best by."""


def student_candidates(
    models: Mapping[str, nn.Module], frozen: Collection[str], student: str | None, candidates: Collection[str] | None
) -> tuple[str, ...]:
    """Who may be the student: the one that is named, else ``Student``, else the only model; or several for ``best``.

    Args:
        models: all of them, by name.
        frozen: those that only teach, and are no candidates.
        student: a name; None; or ``"best"``, where no model is named so.
        candidates: with ``"best"``, names in the order in which a tie is decided; None for all that learn.

    Raises:
        ValueError: there is no such model, a candidate is frozen, or candidates are given for one student.
    """
    if student == BEST and BEST not in models:
        names = tuple(name for name in models if name not in frozen) if candidates is None else tuple(candidates)
        if isinstance(candidates, str) or not names or len(set(names)) != len(names):
            raise ValueError(f"student=best needs candidates, a list of different names of models, got {candidates!r}")
        for name in names:
            if name not in models or name in frozen:
                what = "is frozen" if name in models else f"names no model: they are {sorted(models)}"
                raise ValueError(f"candidates: {name!r} {what}; the best is chosen among models that learn")
        return names
    if candidates is not None:
        raise ValueError(f"candidates={list(candidates)} go with student=best, got student={student!r}")
    if student is None:
        student = "Student" if "Student" in models or len(models) != 1 else next(iter(models))
    if student not in models:
        raise ValueError(f"student={student!r} names no model: they are {sorted(models)}; give student=<name>")
    return (student,)


def check_judges_best(metrics: Mapping[str, Any], candidates: Collection[str]) -> None:
    """Raise ValueError where the validation metrics of a candidate will not tell its top-1, before it is trained."""
    for name in candidates:
        metric = metrics.get(name)
        keys = list(map(str, metric)) if isinstance(metric, MetricCollection) else None
        if keys is None or TOP1 not in keys:
            got = "none" if metric is None else type(metric).__name__ + ("" if keys is None else f" of {keys}")
            raise ValueError(
                f"student=best is chosen by validation top-1, so that metrics must make a MetricCollection with "
                f"{TOP1!r}, got {got} for {name}; or name one student"
            )


def input_views(
    models: Mapping[str, nn.Module], inputs: Mapping[str, InputView | Mapping[str, Any]] | None
) -> dict[str, InputView]:
    """What each model sees of a batch, where that is said.

    Raises:
        ValueError: there is no such model, or what is said is no view.
    """
    if unknown := sorted(set(inputs or {}) - set(models)):
        raise ValueError(f"inputs names {unknown}, but the models are {sorted(models)}")
    return {str(name): InputView.of(given) for name, given in (inputs or {}).items()}


Part: TypeAlias = str | int
Classes: TypeAlias = Sequence[int] | str | os.PathLike[str]


def answers_of(
    models: Collection[str],
    answer: Part | Mapping[str, Part] | None,
    classes: Mapping[str, Classes] | None = None,
    frozen: Collection[str] = (),
) -> dict[str, Answer]:
    """Where each model's answer stands in what it gives, and which of its classes are the data's, where that is said.

    Args:
        models: the names of the models.
        answer: parts of an output such as ``logits``, ``0`` or ``heads.main``, of all models, or of each by its name.
        classes: by the name of a frozen model the index of each class of the data, in their order; or a text file with
            an index a line.
        frozen: the models that only teach.

    Raises:
        ValueError: there is no such model, what is said names no part or no classes, or a model learns.

    Example:
        >>> answers_of(["Student", "Teacher"], {"Teacher": "heads.main"}, {"Teacher": [3, 7]}, ["Teacher"])
        {'Teacher': Answer(part=('heads', 'main'), classes=(3, 7))}
    """
    given = answer if isinstance(answer, Mapping) else {} if answer is None else dict.fromkeys(models, answer)
    for what, names in (("answer", given), ("classes", classes or {})):
        if unknown := sorted(set(names) - set(models)):
            raise ValueError(f"{what} names {unknown}, but the models are {sorted(models)}")
    if learning := sorted(set(classes or {}) - set(frozen)):
        raise ValueError(f"classes names {learning}, which learn: build them with the classes of the data")
    parts = {str(name): tuple(str(part).split(".")) for name, part in given.items()}
    if bad := [name for name, part in parts.items() if not all(part) or ":" in "".join(part)]:
        raise ValueError(f"answer is a part of an output, such as 'logits' or '0', got {given[bad[0]]!r}")
    found = {name: _class_indices(name, of) for name, of in (classes or {}).items()}
    return {name: Answer(parts.get(name), found.get(name)) for name in models if name in parts or name in found}


def _class_indices(name: str, given: Classes) -> tuple[int, ...]:
    """The indices that ``classes`` says, or a file that it names.

    Raises:
        ValueError: they are no whole numbers from 0, or none.
    """
    is_file = isinstance(given, (str, os.PathLike))
    found: list[Any] = list(lines_of(given, what="a list of class indices") if is_file else given)  # type: ignore[arg-type]
    found = [each for each in found if not isinstance(each, str) or each.strip()]
    try:
        indices = tuple(int(each) for each in found if not isinstance(each, (bool, float)))
    except ValueError:
        indices = ()
    if not indices or len(indices) != len(found) or min(indices) < 0 or len(set(indices)) != len(indices):
        shown = given if is_file else found[:12]
        raise ValueError(
            f"classes of {name} are the different indices, from 0, that the data's classes have in it, in the data's "
            f"order, or a text file of an index a line, got {shown!r}"
        )
    return indices


def example_batch(loader: DataLoader[Any], samples: int = 2) -> Any:
    """A small batch without starting the loader's workers or moving its sampler, where its data set allows it."""
    dataset = loader.dataset
    if loader.batch_sampler is None or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        if loader.generator is None:
            return next(iter(loader))
        state = loader.generator.get_state()
        try:
            return next(iter(loader))
        finally:
            loader.generator.set_state(state)
    items = map(dataset.__getitem__, range(len(dataset)))
    readable = (item for item in items if not getattr(item, "is_unreadable", False))  # see data.catalogue.quarantine
    return loader.collate_fn(list(islice(readable, samples)))


def size_of(loader: DataLoader[Any]) -> int | None:
    """Number of samples of a loader's data set, where it is known."""
    return len(loader.dataset) if hasattr(loader.dataset, "__len__") else None


def try_example(module: LightningModule, build: Callable[[Any, int | None], None]) -> None:
    """In ``setup("fit")``: hand ``build`` an example batch as training will have it, and the number of samples.

    Nothing of the training changes by it: no random number is drawn, no worker started. That is so for data sets that
    are read by index. Of an ``IterableDataset``, or a loader without a batch sampler, a batch is taken from a fresh
    iterator, with its workers: a stream that can be read but once trains on one batch less. ``preflight=False`` leaves
    it whole. Several loaders at once are left alone: their batches are the user's own form.
    """
    trainer = module.trainer
    if trainer.train_dataloader is None:
        load_train_data(trainer)
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        return
    precision = trainer.precision_plugin
    precision.convert_module(module)  # what the strategy does later; a second time changes nothing
    with isolate_rng(), precision.forward_context():
        batch = trainer.strategy.batch_to_device(precision.convert_input(example_batch(loader)), module.device)
        build(batch, size_of(loader))


@contextmanager
def explained_batch_norm() -> Iterator[None]:
    """Say of a batch of one sample, which BatchNorm refuses in training, where it comes from and what to do."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel when training" not in str(error):
            raise
        raise ValueError(
            "a batch of one sample, mostly the last of an epoch, under a BatchNorm in training, which needs more than "
            "one value a channel: give the training DataLoader drop_last=True, or another batch_size, or freeze the "
            f"normalisation (train_only) ({error})"
        ) from error


def _has_classes(logits: Tensor, target: Tensor) -> bool:
    """Whether outputs and target are of classes: of samples, or of each position."""
    if logits.ndim == 2:
        return target.ndim in (1, 2)
    positions = logits.shape[:-1] == target.shape or (*logits.shape[:1], *logits.shape[2:]) == tuple(target.shape)
    return logits.ndim > 2 and positions and not target.is_floating_point() and bool(target.numel())


def check_classes(
    name: str,
    logits: Tensor,
    target: Any,
    num_classes: int | None,
    *,
    frozen: bool = False,
    ignored: Collection[int] = (),
) -> None:
    """Raise ValueError if outputs do not fit the classes of the data.

    Args:
        name: of the model.
        logits: its output on a batch: (B, C), (B, T, C) of tokens or (B, C, H, W) of maps.
        target: of the batch.
        num_classes: of the data, where it says so.
        frozen: whether it only teaches: its classes are those that it was trained with.
        ignored: labels that are none.
    """
    if not isinstance(target, Tensor) or not _has_classes(logits, target):
        return
    last = logits.ndim == 2 or logits.shape[:-1] == target.shape
    classes, wanted = logits.shape[-1 if last else 1], num_classes
    if classes == 1:  # a score, of which two classes have one
        return
    if target.ndim == 2 and target.is_floating_point():
        wanted = target.shape[1]
    elif wanted is None and not target.is_floating_point():
        void = [*ignored, *(VOID if logits.ndim > 2 else ()), -1]
        none = torch.isin(target, torch.tensor(void, device=target.device))
        highest = int(target.masked_fill(none, -1).max())
        wanted = highest + 1 if highest >= classes else None
    if wanted is not None and wanted != classes and frozen:
        raise ValueError(
            f"{name} gives {classes} classes but the data has {wanted}: a trained teacher keeps its classes. Teach by "
            f"those that the data has, in its order, classes={{{name!r}: [<index>, …]}}, or train a classifier of "
            f"{wanted} classes on {name} first"
        )
    if wanted is not None and wanted != classes:
        raise ValueError(
            f"{name} gives {classes} classes but the data has {wanted}: build {name} with num_classes={wanted} "
            f"(on the command line models.{name}.num_classes={wanted})"
        )
