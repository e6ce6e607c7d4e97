"""The names of the files and folders that a run leaves, and the commands about runs: no other module spells one.

A run folder, ``runs/<experiment>/<time>``; each folder of its stages has the same files::

    config.yaml              what was composed
    metrics.csv              a row a logged step
    results.json             the metrics of the end; written last, so it says that the run is finished
    student.safetensors      the best student, bare; student.json is its card
    checkpoints/             best.ckpt and last.ckpt
    stages/<n>_<name>/       of a run of several stages: a run folder each
    quarantine.json          unreadable videos
    account.json             which samples a compared run was shown, and what it cost
    media/  tensorboard/     pictures and event files; wandb/, mlflow/ and mlflow.db of those loggers
    test.json  confusion.csv of `test`
    report.html              of `report`
    export/                  of `export`
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CONFIG_FILE: Final = "config.yaml"
METRICS_FILE: Final = "metrics.csv"
RESULTS_FILE: Final = "results.json"
STUDENT_FILE: Final = "student.safetensors"
CARD_FILE: Final = "student.json"
ACCOUNT_FILE: Final = "account.json"
QUARANTINE_FILE: Final = "quarantine.json"


def card_of(weights: Path) -> Path:
    """The card of a weights file, or of an exported network: it stands beside it."""
    return weights.with_suffix(".json")


CHECKPOINTS: Final = "checkpoints"
CHECKPOINT_SUFFIX: Final = ".ckpt"
BEST: Final = "best"
LAST: Final = "last"
"""Stem of a checkpoint, and the name by which ``checkpoint=`` asks for it."""
BEST_CHECKPOINT: Final = Path(CHECKPOINTS, f"{BEST}{CHECKPOINT_SUFFIX}")
LAST_CHECKPOINT: Final = Path(CHECKPOINTS, f"{LAST}{CHECKPOINT_SUFFIX}")

STAGES: Final = "stages"
MEDIA: Final = "media"
TENSORBOARD: Final = "tensorboard"
MLFLOW: Final = "mlflow"
MLFLOW_FILE: Final = "mlflow.db"

TEST_FILE: Final = "test.json"
CONFUSION_FILE: Final = "confusion.csv"
REPORT_FILE: Final = "report.html"
EXPORT: Final = "export"

# The folder of a comparison, which has a folder a strategy with one a seed.
LOCK_FILE: Final = ".lock"
COMPARE_FILE: Final = "compare.json"
COMPARE_TABLE: Final = "compare.md"
GAINS_FILE: Final = "gains.svg"
CURVES_FILE: Final = "curves.svg"

# The folder of a search.
TRIALS: Final = "trials"
STUDY_FILE: Final = "study.json"
STUDY_TABLE: Final = "study.md"
STUDY_PLOT: Final = "study.svg"
STUDY_JOURNAL: Final = "study.journal"
