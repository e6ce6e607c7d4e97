"""Does it help here? Test top-1 of the Student alone, with a peer of its own kind, and with a ResNet50-vd peer.

Each experiment is trained with the same seeds on the embedded data set; the epoch is chosen on validation, the figure
is that of the test split. Finished runs are kept and not repeated. Run: python benchmarks/distillation.py --seeds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from results import RESULTS, write_section, write_table
from safetensors.torch import load_file

from lit_distill._cli import conf_dir

EXPERIMENTS = {
    "baseline_pptsmv2": "PP-TSMv2 alone",
    "self_pptsmv2": "DML with a second PP-TSMv2",
    "dml_pptsmv2": "DML with PP-TSM ResNet50-vd",
}


def train(folder: Path, experiment: str, seed: int, overrides: list[str], threads: int) -> None:
    """One run, as a user starts it; nothing if it has finished before."""
    if (folder / "student.json").exists():
        return
    command = [
        sys.executable, "-m", "lit_distill.train", f"experiment={experiment}", f"seed={seed}", "trainer=cpu",
        f"hydra.run.dir={folder}", *overrides,
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)


@torch.no_grad()
def test_top1(folder: Path) -> float:
    """Top-1 of the run's Student, in percent, on the test split."""
    card = json.loads((folder / "student.json").read_text())
    student = instantiate(card["model"]).eval()
    student.load_state_dict(load_file(folder / card["weights"]))
    data = instantiate(card["data"])
    data.prepare_data()
    right = total = 0
    for batch in data.test_dataloader():
        inputs, target, _ = data.on_after_batch_transfer(batch, 0)
        right += int((student(inputs).argmax(dim=1) == target).sum())
        total += len(target)
    return 100 * right / total


def row(name: str, baseline: list[float], values: list[float], seconds: list[float]) -> str:
    gains = [a - b for a, b in zip(values, baseline, strict=True)]
    spread = (
        f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
    )
    gain = f"{statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})" if values is not baseline else "-"
    return f"| {name} | {spread} | {gain} | {statistics.median(seconds) / 60:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every run, such as trainer.max_epochs=2")
    arguments = parser.parse_args()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["experiment=baseline_pptsmv2", *arguments.overrides])
    instantiate(config.data, _convert_="all").prepare_data()

    def folder(experiment: str, seed: int) -> Path:
        top: Path = arguments.folder
        return (top / f"{experiment}-{seed}").absolute()

    runs = [(e, s) for s in range(arguments.seeds) for e in reversed(EXPERIMENTS)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [pool.submit(train, folder(e, s), e, s, arguments.overrides, 1) for e, s in runs]
        for job, (experiment, seed) in zip(jobs, runs, strict=True):
            job.result()
            print(f"done: {experiment}, seed {seed}", flush=True)
    results: dict[str, list[dict[str, Any]]] = {
        e: [json.loads((folder(e, s) / "results.json").read_text()) for s in range(arguments.seeds)]
        for e in EXPERIMENTS
    }
    tops = {e: [test_top1(folder(e, s)) for s in range(arguments.seeds)] for e in EXPERIMENTS}
    classes = json.loads((folder("baseline_pptsmv2", 0) / "student.json").read_text())["model"]["num_classes"]
    lines = [
        f"| Student trained as | test top-1, % ({arguments.seeds} seeds) | paired gain (min to max) | minutes |",
        "|---|---|---|---|",
        *(
            row(name, tops["baseline_pptsmv2"], tops[e], [r["seconds"] for r in results[e]])
            for e, name in EXPERIMENTS.items()
        ),
        "",
        f"{classes} classes, chance {100 / classes:.1f} %; epoch chosen on validation; seeds paired.",
    ]
    print("\n".join(lines))
    if not arguments.overrides:
        write_section("distillation", f"python benchmarks/distillation.py --seeds {arguments.seeds}", lines)
        write_table(RESULTS.parents[1] / "README.md", "distillation", lines)


if __name__ == "__main__":
    main()
