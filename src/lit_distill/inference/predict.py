"""What `predict` does: it classifies videos or images, and shows or writes a row for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lit_distill._screen import Screen, numeric, percent
from lit_distill.inference.inputs import find_inputs
from lit_distill.inference.opened import open_classifier
from lit_distill.inference.predictions import Prediction, predict_files
from lit_distill.inference.rows import RowFile
from lit_distill.models.state_files import file_sha256
from lit_distill.runs.opened import open_run
from lit_distill.untrusted.showing import printable

SOME_FAILED = 3
"""Exit code where some files could not be read."""


_SHOWN_ERRORS = 20


def run(config: DictConfig) -> int:
    """Classify what ``input`` of a composed ``predict.yaml`` names; rows go to ``output``, or to the screen.

    Returns:
        How many files could not be read.

    Raises:
        ValueError: the config asks for what there is not.
        FileNotFoundError: the run, its weights or the input are not there.
    """
    if not config.input:
        raise ValueError("give input=<a file, a folder or a list>")
    if config.resume and config.output is None:
        raise ValueError("resume=true goes on with an output=<file>; none is given")
    opened = open_run(config)
    preprocess = opened.preprocess(views=config.views, model=config.named)
    inputs = find_inputs(config.input, preprocess)
    weights = opened.weights_file(config.named, config.checkpoint)
    classifier = open_classifier(
        opened, preprocess, model=config.named, checkpoint=config.checkpoint, device=config.device
    )
    rows = None
    if config.output is not None:
        made_by = {"weights": file_sha256(weights), "model": config.named, "views": preprocess.views}
        rows = RowFile(config.output, inputs=inputs.paths, topk=config.topk, made_by=made_by, resume=config.resume)
    started = time.perf_counter()
    paths = inputs.paths[rows.done if rows else 0 :]
    batches = predict_files(
        classifier,
        preprocess,
        paths,
        topk=config.topk,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    )
    failed = rows.failed if rows else 0
    screen = _Screen(len(inputs.paths), bar=rows is not None)
    try:
        with screen:
            for batch in batches:
                if rows:
                    rows.write(batch)
                screen.show(batch)
                failed += sum(bool(prediction.error) for prediction in batch)
    except BaseException:
        if rows:
            screen.say(f"stopped: what is done is in {rows.part}; the same command with resume=true goes on")
        raise
    if rows:
        rows.finish()
    seconds = time.perf_counter() - started
    told = [f"{len(inputs.paths) - failed} of {len(inputs.paths)} classified in {seconds:.1f} s"]
    told += [f"{rows.done} of them before"] if rows and rows.done else []
    told += [f"{failed} can't be read"] if failed else []
    told += [f"{inputs.passed_over} of other kinds passed over"] if inputs.passed_over else []
    told += [f"written {rows.path}"] if rows else []
    screen.say("; ".join(told))
    return failed


class _Screen:
    """Rows on the standard output; with an output file a bar instead, and the errors."""

    def __init__(self, total: int, *, bar: bool) -> None:
        self._out, self._err = Screen(), Screen(stderr=True)
        self._single = total == 1 and not bar
        self._rows = not bar
        self._errors = 0
        columns = (
            TextColumn("predict"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
        )  # fmt: skip
        self._bar = Progress(*columns, console=self._err, transient=True, disable=not (bar and self._err.is_terminal))
        self._task = self._bar.add_task("", total=total, status="")

    def __enter__(self) -> _Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line beside the rows."""
        self._err.print(text, soft_wrap=True)

    def show(self, batch: Sequence[Prediction]) -> None:
        """Show a batch."""
        for prediction in batch:
            if self._single and not prediction.error:
                self.say(prediction.input)
                self._out.print(_table(prediction))
            elif self._rows:
                self._out.print(_line(prediction), soft_wrap=True)
            elif prediction.error:
                self._errors += 1
                if self._errors <= _SHOWN_ERRORS:
                    self.say(_line(prediction))
                elif self._errors == _SHOWN_ERRORS + 1:
                    self.say("… further errors are in the output alone")
        self._bar.update(self._task, advance=len(batch), status=f"{self._errors} errors" if self._errors else "")


def _line(prediction: Prediction) -> str:
    if prediction.error:
        return printable(f"{prediction.input}  error: {prediction.error}")
    tops = "  ".join(f"{top.name} {percent(top.score)}" for top in prediction.top)
    return printable(f"{prediction.input}  {tops}")


def _table(prediction: Prediction) -> Table:
    table = Table("class", *numeric("score"))
    for top in prediction.top:
        table.add_row(top.name, percent(top.score))
    return table


def main(config: DictConfig) -> None:
    """Classify files; exit code 3 where some could not be read."""
    if run(config):
        sys.exit(SOME_FAILED)
