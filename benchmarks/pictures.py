"""What the pictures of a validation cost beside it, in CPU time of one thread: `callbacks=media`.

python benchmarks/pictures.py [override …] measures DML on data=moving_digits by default.

Within one validation the callback's hooks are timed by themselves, so both parts are of the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer
from results import parser, write_section

from lit_distill._command.command import conf_dir
from lit_distill.callbacks import MediaLogger
from lit_distill.loggers import EventFiles, MetricsCSV
from lit_distill.training.fit import build_module

ROUNDS = 7


class Timed(MediaLogger):
    """The callback, its time in a validation's batches and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = self.end = 0.0

    def on_validation_batch_end(self, *arguments: Any, **more: Any) -> None:
        self.batches += _took(lambda: super(Timed, self).on_validation_batch_end(*arguments, **more))

    def on_validation_epoch_end(self, *arguments: Any, **more: Any) -> None:
        self.end += _took(lambda: super(Timed, self).on_validation_epoch_end(*arguments, **more))


def _took(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measured(overrides: list[str], rounds: int) -> str:
    """A row of the table."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [*overrides, "data.num_workers=0", "run_dir=unused"])
    data, module = instantiate(config.data, _convert_="all"), build_module(config)
    taken = []
    for _ in range(rounds + 1):  # the first warms up
        callback = Timed()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="cpu", devices=1, logger=[MetricsCSV(folder), EventFiles(folder)], callbacks=[callback],
                enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            )  # fmt: skip
            whole = _took(partial(trainer.validate, module, datamodule=data, verbose=False))
            size = sum(file.stat().st_size for file in Path(folder, "media").rglob("*.*"))
        taken.append((whole - callback.batches - callback.end, callback.batches, callback.end, size))
    taken = taken[1:]
    alone, batches, end, size = (median(column) for column in zip(*taken, strict=True))
    shares = sorted(100 * (b + e) / a for a, b, e, _ in taken)
    samples = len(data.datasets["val"])
    return (
        f"| {samples} samples | {1e3 * alone:.0f} ms | {1e3 * batches:.1f} ms | {1e3 * end:.0f} ms "
        f"| **{median(shares):.1f} %** ({shares[0]:.1f}-{shares[-1]:.1f}) | {size / 1024:.0f} KiB |"
    )


def main() -> None:
    options = parser(__doc__, quick="one round of few clips")
    options.add_argument("overrides", nargs="*", help="of `train`'s config")
    asked = options.parse_args()
    usual = ["experiment=dml_pptsmv2", "data=moving_digits_tiny" if asked.quick else "data=moving_digits"]
    torch.set_num_threads(1)
    lines = [
        "CPU time of a validation on one thread, decoding included, and of the pictures that are made of it, for",
        "`metrics.csv`'s folder and TensorBoard: median over rounds (min-max of the share). What is done at the end",
        "does not grow with the samples; by default one validation in five has pictures.",
        "",
        "| validation | it takes | pictures: in its batches | at its end | added | files, once |",
        "|---|---:|---:|---:|---:|---:|",
        measured(asked.overrides or usual, 1 if asked.quick else ROUNDS),
    ]
    print("\n".join(lines))
    if not asked.quick:
        command = f"python benchmarks/pictures.py {' '.join(asked.overrides)}".strip()
        write_section("pictures", command, lines, beside=["lightning", "av", "PIL"])


if __name__ == "__main__":
    main()
