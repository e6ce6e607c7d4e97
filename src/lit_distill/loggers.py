"""Where metrics go: metrics.csv, which is kept when a run is resumed, TensorBoard, W&B and MLflow."""

from __future__ import annotations

import os
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning import LightningModule
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lit_distill._screen import Screen
from lit_distill.runs.metrics_csv import append_row, ordered, read_rows, write_rows
from lit_distill.runs.names import METRICS_FILE, MLFLOW, MLFLOW_FILE, TENSORBOARD


class _RunFolderLogger(Logger):
    """A logger that writes into the run folder itself."""

    @property
    def name(self) -> str:
        """No subfolder."""
        return ""

    @property
    def version(self) -> str:
        """No subfolder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds config.yaml."""


class MetricsCSV(_RunFolderLogger):
    """Writes ``metrics.csv`` into a folder: a row a step with the columns ``step``, ``epoch`` and every metric.

    Values logged for the same step share a row. A resumed run writes to the same file: rows at or past the first
    step that is logged again are replaced. ``trainer.validate`` and ``trainer.test`` replace none, they add their row
    at the end. Columns that appear later are added to the header.

    Args:
        folder: where ``metrics.csv`` is written; made if it is missing.

    Example:
        >>> import tempfile
        >>> logger = MetricsCSV(tempfile.mkdtemp())
        >>> logger.log_metrics({"train/loss": 1.5}, step=10)
        >>> logger.finalize("success")
        >>> logger.path.read_text().split()
        ['step,train/loss', '10,1.5']
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS_FILE
        self._columns: list[str] = ["step"]
        self._row: dict[str, float] = {}
        self._trains = True
        self._started = False
        self._found: int | None = None  # rows that were there before this logger wrote any

    @property
    def save_dir(self) -> str:
        """The folder that holds metrics.csv."""
        return str(self.path.parent)

    @rank_zero_only
    def log_graph(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """No graph; but Lightning calls it as each fit, validation or test begins: only a fit replaces rows."""
        if isinstance(model, LightningModule):
            self._trains = model.trainer.state.fn == "fit"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add values to the row of a step; the row is written when another step comes."""
        step = int(self._row.get("step", -1)) + 1 if step is None else step
        if not self._started and (self._trains or self._found is None):
            self._resume(step if self._trains else None)
        if self._row and self._row["step"] != step:
            self._write_row()
        self._row["step"] = step
        self._row.update({name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def save(self) -> None:
        """Nothing to do: a complete row is on disk already."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        if self._row:
            self._write_row()

    def state_dict(self) -> dict[str, Any]:
        """The row that is not written yet, for checkpoints."""
        return {"row": dict(self._row)}

    @rank_zero_only
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's row: rows behind it are replaced; what the file has of it already is kept."""
        row = state_dict["row"]
        if row:
            step = int(row["step"])
            written = next((found for found in read_rows(self.path) if int(found["step"]) == step), {})
            self._resume(step)
            self._row = {**row, **{name: float(value) for name, value in written.items() if value}, "step": step}

    def _resume(self, step: int | None) -> None:
        """Go on in the file, from a step or behind all of it; what was validated here before the training stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(read_rows(self.path))
        mine = len(rows) if self._started or self._found is None else self._found
        self._found = mine
        self._started = step is not None
        if self.path.exists():
            self._columns = list(rows[0]) if rows else ["step"]
            earlier = rows if step is None else [row for row in rows[:mine] if int(row["step"]) < step]
            write_rows(self.path, self._columns, earlier if step is None else earlier + rows[mine:])

    def _write_row(self) -> None:
        row = {name: _text(value) for name, value in self._row.items()}
        self._row = {}
        new = [name for name in row if name not in self._columns]
        if new or not self.path.exists():
            self._columns = ordered({*self._columns, *new})
            write_rows(self.path, self._columns, [*read_rows(self.path), row])
        else:
            append_row(self.path, self._columns, row)


class EventFiles(_RunFolderLogger):
    """TensorBoard's event files in ``<folder>/tensorboard``, where TensorBoard is installed.

    Where it is not, one line on the screen says so, and nothing is written. A resumed run adds a file beside those that
    are there.

    Args:
        folder: the run folder.

    Example:
        >>> import tempfile
        >>> logger = EventFiles(tempfile.mkdtemp())
        >>> logger.log_metrics({"train/loss": 1.5}, step=10)
        >>> logger.finalize("success")
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder) / TENSORBOARD
        self._logger: TensorBoardLogger | None = None
        if is_installed("tensorboard"):
            self._logger = TensorBoardLogger(self.folder.parent, name=self.folder.name, version="")
        else:
            _tell("TensorBoard is not installed, so there are no event files: pip install 'lit-distill[tensorboard]'")

    @property
    def experiment(self) -> Any:
        """TensorBoard's ``SummaryWriter``; None without it."""
        return None if self._logger is None else self._logger.experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a point to each curve."""
        if self._logger is not None:
            self._logger.log_metrics(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left, and close the file."""
        if self._logger is not None:
            self._logger.finalize("closed")  # on "success" it would write an empty hparams.yaml besides


class WeightsAndBiases(WandbLogger):
    """W&B, offline by default: ``<folder>/wandb`` holds the run, and ``wandb sync <its folder>`` uploads it.

    Args:
        folder: the run folder.
        project: of W&B.
        name: of the run; by default the folder's.
        offline: False sends to W&B while training.

    Raises:
        ModuleNotFoundError: wandb is not installed (extra ``lit-distill[wandb]``).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        project: str = "lit_distill",
        name: str | None = None,
        offline: bool = True,
    ) -> None:
        _require("wandb")
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        super().__init__(name=name or place.absolute().name, save_dir=place, project=project, offline=offline)


class MLflow(MLFlowLogger):
    """MLflow, into a database of the run folder: ``mlflow ui --backend-store-uri sqlite:///<folder>/mlflow.db``.

    A resumed run is another run of the same name in it.

    Args:
        folder: the run folder.
        experiment: MLflow's name for what belongs together.
        name: of the run; by default the folder's.

    Raises:
        ModuleNotFoundError: mlflow is not installed (extra ``lit-distill[mlflow]``).
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, experiment: str = "lit_distill", name: str | None = None
    ) -> None:
        _require("mlflow")
        place = Path(folder).absolute()
        place.mkdir(parents=True, exist_ok=True)
        super().__init__(
            experiment_name=experiment, run_name=name or place.name, tracking_uri=f"sqlite:///{place / MLFLOW_FILE}",
            artifact_location=(place / MLFLOW).as_uri(),
        )  # fmt: skip


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


def _require(package: str) -> None:
    if not is_installed(package):
        raise ModuleNotFoundError(f"logger={package} needs {package}: pip install 'lit-distill[{package}]'")


@rank_zero_only
def _tell(text: str) -> None:
    Screen().print(text, highlight=False, soft_wrap=True, markup=False)


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
