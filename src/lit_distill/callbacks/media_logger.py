"""Pictures of a validation in the loggers: confusion, classes beside the teachers', and the worst clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.text import Text

from lit_distill._lightning import batches_begun, logged_step, steps_within, validation_interval
from lit_distill._screen import Screen, percent
from lit_distill.data.catalogue.samples import Sample
from lit_distill.media.drawing import RIGHT, WRONG, Bar, bars_image, clip_images, confusion_image, drawable
from lit_distill.media.findings import Findings, Normalisation, WrongClip, class_gains, three_numbers
from lit_distill.media.pictures import Picture, taker_of
from lit_distill.module import DistillModule
from lit_distill.untrusted.showing import printable

_T = TypeVar("_T")
_INK = (25, 28, 33)
_CLASSES = 10  # with the largest gains, and as many with the largest losses


class MediaLogger(Callback):
    r"""Puts pictures of some validations into every logger that takes them.

    - ``val/confusion``: the student's confusion matrix over all samples of all processes; of more than 32 classes the
      24 that are confused most.
    - ``val/classes_<Teacher>``: the ten classes in which the student is furthest ahead of another model by top-1, and
      the ten in which it is furthest behind.
    - ``val/wrong_1`` and so on: the clips that the student has wrong with the highest probability, with the true class
      and what each model says. These are what one can act on: where the teacher says the same the label or the teacher
      is to be looked at, where it is right the student has not learned it. A fixed set would show, in a network that
      is right nine times of ten, mostly clips that nothing is to be learned from.

    Clips move (GIF), images stand still (PNG). Beside ``metrics.csv`` (:class:`lit_distill.loggers.MetricsCSV`, and
    Lightning's CSVLogger) they are files, ``media/step_00000120/confusion.png``; TensorBoard has them under Images,
    W&B and MLflow among their media and artifacts. Where no logger takes pictures, or there is nothing to draw, one
    line says so. A logger that fails at it is reported as well, a data module that they cannot be drawn with too, and
    training goes on.

    It looks at what validation computes anyway, runs no model, draws no random number and changes no figure: training
    is the same bit for bit with and without it. The first validation is drawn, every ``every_n_validations``-th after
    it, and the last that is known beforehand, from epochs and steps: early stopping and ``max_time`` end without.
    ``trainer.validate`` draws always, and leaves the pictures of other steps. With ``student="best"`` the student is
    the one that the validation before has chosen.

    Args:
        every_n_validations: validations from one picture to the next, at least 1.
        clips: of the worst clips, how many; 0 for none.
        mean: of each channel, on the scale 0 to 1, that clips were normalised by; by default the data module's.
        std: the standard deviation, the same.

    Raises:
        ValueError: a value out of its range; at the start of a validation, another module than a DistillModule.

    Example:
        >>> MediaLogger(clips=8).every_n_validations
        5
    """

    def __init__(
        self,
        *,
        every_n_validations: int = 5,
        clips: int = 4,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        for name, value, least in (("every_n_validations", every_n_validations, 1), ("clips", clips, 0)):
            if isinstance(value, bool) or value < least:
                raise ValueError(f"MediaLogger: {name} is a number from {least}, got {value!r}")
        self._normalisation = _normalisation(mean, std)
        if self._normalisation is None and not (mean is None and std is None):
            raise ValueError(f"MediaLogger: mean and std are given together, 3 numbers each, got {mean} and {std}")
        self.every_n_validations = every_n_validations
        self.clips = clips
        self._validations = 0
        self._findings: Findings | None = None
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were: a resumed run draws the same ones."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations = int(state_dict["validations"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from zero, where pictures are due."""
        if not isinstance(pl_module, DistillModule):
            raise ValueError(f"MediaLogger is of the models of a DistillModule, got a {type(pl_module).__name__}")
        self._findings = self._begun(trainer, pl_module.student) if self._is_due(trainer) else None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Take in one batch."""
        if self._findings is not None:
            assert isinstance(pl_module, DistillModule)
            self._findings.add(outputs, *pl_module.unpacked(batch)[:3])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring together what all processes have seen; the first draws it."""
        findings, self._findings = self._findings, None
        if findings is None:
            return
        findings = findings.of_all_ranks(trainer.world_size > 1)
        if not trainer.is_global_zero:
            return
        for what, reason in (("pictures", findings.reason), ("clips", findings.clips_reason)):
            if reason:
                self._tell(trainer, f"no {what}: {reason}")
        for name, reason in findings.left_out.items():
            self._tell(trainer, f"nothing of {name}: {reason}")
        # Only the first process comes here, the others wait for it at their next exchange: what fails is reported.
        trains, takers = trainer.state.fn == "fit", []
        for logger in trainer.loggers:
            name = type(logger).__name__
            taker = self._tried(trainer, f" in {name}", partial(taker_of, logger, trains=trains))
            takers += [] if taker is None else [(name, taker)]
        if not takers:
            names = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "there is none"
            self._tell(trainer, f"no pictures: no logger takes any ({names}); MetricsCSV, TensorBoard, W&B, MLflow do")
            return
        pictures = self._tried(trainer, "", partial(draw, findings, trainer))
        if pictures:
            step = logged_step(trainer)  # as Lightning's own figures of a validation
            for name, taker in takers:
                self._tried(trainer, f" in {name}", partial(taker, pictures, step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count it, before a checkpoint is taken of it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validations += 1

    def _is_due(self, trainer: Trainer) -> bool:
        is_due = trainer.state.fn != "fit" or self._validations % self.every_n_validations == 0
        return not trainer.sanity_checking and (is_due or is_last(trainer))

    def _begun(self, trainer: Trainer, student: str) -> Findings:
        findings = Findings(student, self.clips, self._normalisation)
        data = getattr(trainer, "datamodule", None)
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
        if self._normalisation is None and not (mean is None and std is None):
            findings.normalisation = _normalisation(mean, std)
            findings.unknown = (
                f"mean and std of the data module are expected to be 3 numbers each, got {mean!r:.80} and {std!r:.80}"
            )
        return findings

    def _tried(self, trainer: Trainer, where: str, act: Callable[[], _T]) -> _T | None:
        try:
            return act()
        except Exception as error:  # a full disk, a service, foreign data: pictures are no reason to end a training
            self._tell(trainer, f"no pictures{where}: {type(error).__name__}: {error}", once=f"no pictures{where}")
            return None

    def _tell(self, trainer: Trainer, text: str, *, once: str = "") -> None:
        """On the screen; the same, or more of the same kind, once."""
        if (once or text) not in self._told:
            self._told.add(once or text)
            bar = trainer.progress_bar_callback
            say = bar.print if bar is not None else Screen().print
            say(Text(f"media: {text}"))


def is_last(trainer: Trainer) -> bool:
    """Whether no later validation fits into the training, as far as epochs, batches and steps tell it beforehand."""
    done, length = batches_begun(trainer), trainer.num_training_batches
    epochs, steps = trainer.max_epochs, trainer.max_steps
    epochs_left = math.inf if epochs in (None, -1) else epochs - trainer.current_epoch - 1
    every, apart = validation_interval(trainer), trainer.check_val_every_n_epoch  # batches; epochs
    if every is None or math.isinf(length):  # by the clock, or of a stream whose end is not known
        ahead = 0 if every is None or math.isinf(every) else every
        fits = not trainer.is_last_batch or epochs_left >= (apart or 1)
    else:
        left = length - done
        if every <= (left if apart is not None else left + epochs_left * length):
            ahead, fits = every, True
        else:
            ahead, fits = left + ((apart or 1) - 1) * length + min(every, length), (apart or 1) <= epochs_left
    # the batch that it comes after is not begun where the steps are made before
    stepped = steps_within(trainer, done + max(int(ahead) - 1, 0)) - steps_within(trainer, done)
    return not fits or 0 < steps <= trainer.global_step + stepped


def draw(findings: Findings, trainer: Trainer) -> list[Picture]:
    """The pictures of a validation; none where samples could not be judged."""
    if findings.reason or not findings.cells.get(findings.student):
        return []
    data = getattr(trainer, "datamodule", None)
    class_names, datasets = getattr(data, "class_names", None), getattr(data, "datasets", None)
    names = () if class_names is None else tuple(map(str, class_names))
    if len(names) != findings.classes:
        names = tuple(map(str, range(findings.classes)))
    student = findings.student
    cells = findings.cells[student]
    samples = cells.total()
    when = f"epoch {trainer.current_epoch + 1}"
    right = sum(count for (true, predicted), count in cells.items() if true == predicted)
    title = f"{printable(student)}, {when}: top-1 {percent(right / samples)} of {samples} samples"
    pictures = [Picture.of("confusion", title, [confusion_image(cells, names, title)])]
    pictures += [_classes_picture(findings, names, other, when) for other in findings.cells if other != student]
    listed = getattr(datasets.get("val") if isinstance(datasets, Mapping) else None, "samples", ())
    for place, clip in enumerate(findings.clips, 1):
        is_listed = 0 <= clip.place < len(listed) and isinstance(listed[clip.place], Sample)
        file = listed[clip.place].name_in(getattr(data, "root", None)) if is_listed else ""
        pictures.append(_clip_picture(place, clip, names, file or (f"sample {clip.place}" if clip.place >= 0 else "")))
    return pictures


def _normalisation(mean: Any, std: Any) -> Normalisation | None:
    numbers = three_numbers(mean), three_numbers(std)
    return None if numbers[0] is None or numbers[1] is None else (numbers[0], numbers[1])


def _classes_picture(findings: Findings, names: Sequence[str], other: str, when: str) -> Picture:
    gains = [gain for gain in class_gains(findings.cells[findings.student], findings.cells[other]) if gain[2]]
    ahead, behind = [g for g in gains if g[2] > 0], [g for g in gains if g[2] < 0]
    bars = [Bar(drawable(names[c], c), samples, gain) for c, samples, gain in [*ahead[:_CLASSES], *behind[-_CLASSES:]]]
    title = f"{printable(findings.student)} less {printable(other)}, {when}: top-1 of each class, points"
    note = f"ahead in {len(ahead)} classes, behind in {len(behind)}; in brackets the samples"
    return Picture.of(f"classes_{other}", f"{title}; {note}", [bars_image(bars, title, note)])


def _clip_picture(place: int, clip: WrongClip, names: Sequence[str], where: str) -> Picture:
    lines = [(f"true: {drawable(names[clip.target], clip.target)}", _INK)]
    said = [f"true {names[clip.target]}"]
    for model, (predicted, confidence) in clip.said.items():
        share = f"{100 * confidence:.1f} %"
        colour = RIGHT if predicted == clip.target else WRONG
        lines.append((f"{printable(model)}: {share} {drawable(names[predicted], predicted)}", colour))
        said.append(f"{model} {names[predicted]} {share}")
    if where:
        lines.append((printable("/".join(where.split("/")[-2:])), _INK))  # there is little room; the caption has all
        said.append(where)
    return Picture.of(f"wrong_{place}", printable(" · ".join(said)), clip_images(clip.frames, lines))
