"""Which experiments of conf/experiment compile as one graph (`compile=step`), and how often each is compiled.

Each trains for a few steps of two epochs on small embedded clips: the first step runs eagerly, the second is compiled,
and every later graph counts as a recompilation. The backend is Dynamo's alone, which decides this; what Inductor makes
of the graph is measured by compile.py. Run: python benchmarks/compile_experiments.py [experiment …]
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from results import write_section
from safetensors.torch import save_file

from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir
from lit_distill.training.fit import build_module
from lit_distill.training.stages import stages_of

ARGUMENTS = [
    "data=moving_digits_tiny", "doctor=false", "preset.teacher_depth=18", "preset.teacher_norm=conv2.bn",
]  # fmt: skip
FILE = Path(__file__).with_name("compile.md")
IMAGES = ["data=digits_images", "data.labelled_share=1", "data.unlabelled_share=null"]
STEPS = 2  # an epoch


class Graphs(Callback):
    """The number of graphs there are after each step, and seconds that compiling took."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.counts.append(pl_module.compiled_graphs)
        self.seconds = pl_module.compile_seconds


def measure(name: str, folder: Path) -> dict[str, Any]:
    """The graphs of an experiment's last stage, or why there is none."""
    images = name.endswith(("_image", "_images"))
    own = [f"data.root={folder / 'clips'}"] if not images else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = [f"experiment={name}", *(IMAGES if images else ARGUMENTS), *own, f"run_dir={folder}"]
        config = compose("train", open_data(given))
    stages = stages_of(config)
    for stage in stages[1:]:
        for model in stage.config.start:
            stage.config.models[model].pretrained = None
        stage.config.start = {}
    last = stages[-1].config if stages else config
    last.compile = {"scope": "step", "backend": "eager"}
    for frozen in last.frozen:
        save_file(instantiate(last.models[frozen]).state_dict(), folder / f"{frozen}.safetensors")
        last.models[frozen].pretrained = str(folder / f"{frozen}.safetensors")
    seed_everything(0, verbose=False)
    graphs = Graphs()
    left_out = ("best", "last", "preemption", "progress")
    others = [instantiate(node) for key, node in last.callbacks.items() if node and key not in left_out]
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=STEPS, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[graphs, *others],
    )  # fmt: skip
    trainer.fit(build_module(last), datamodule=instantiate(last.data, _convert_="all"))
    later = graphs.counts[-1] - graphs.counts[1]
    return {"graphs": graphs.counts[1], "recompilations": later, "seconds": round(graphs.seconds, 1)}


def row(name: str, found: dict[str, Any]) -> str:
    if "error" in found:
        return f"| {name} | no: {' '.join(found['error'].split())} | | |"
    return f"| {name} | yes | {found['graphs']} | {found['recompilations']} |"


def main() -> None:
    """Measure the experiments that the command line names, or all of them, and write the table then."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    names = sys.argv[1:] or sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            started = time.process_time()
            try:
                found = measure(name, Path(folder))
            except Exception as error:  # what a table row says
                found = {"error": f"{type(error).__name__}: {error}"}
            torch._dynamo.reset()
            rows.append(row(name, found))
            print(json.dumps({"name": name, **found, "cpu": round(time.process_time() - started, 1)}), flush=True)
            if not sys.argv[1:]:
                write(rows, len(names))


def write(rows: Sequence[str], experiments: int) -> None:
    """Write the table of those that were measured so far."""
    whole = sum(" | yes | " in line for line in rows)
    lines = [
        f"{len(rows)} of {experiments} experiments were tried, {whole} of them compile as one graph.",
        "",
        "| experiment | one graph | graphs | recompilations |",
        "|---|---|---:|---:|",
        *rows,
    ]
    write_section("compiled experiments", "python benchmarks/compile_experiments.py", lines, file=FILE)


if __name__ == "__main__":
    main()
