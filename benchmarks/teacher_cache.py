"""What a cached teacher saves: a step of the student alone, with the teacher run online, and with it read back.

Steps are those of DistillModule under Lightning's Trainer, fed by our data module; the three variants take turns in one
process, CPU time on one thread. Hit rates and sizes are those of a training on the embedded data set.
Run: python benchmarks/teacher_cache.py
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from results import parser, write_section
from rich.console import Console
from torch import nn

from lit_distill import DistillModule, LossTerm
from lit_distill._command.command import conf_dir
from lit_distill.callbacks import TeacherCache
from lit_distill.losses import KDLoss

Nets = Callable[[], tuple[nn.Module, nn.Module]]
SILENT = Console(quiet=True)


class Clock(Callback):
    """CPU seconds of each step but the first of an epoch, from one batch's end to the next's."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.before: float | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        self.before = None

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.process_time()
        if self.before is not None:
            self.steps.append(now - self.before)
        self.before = now


def networks(config: DictConfig) -> tuple[nn.Module, nn.Module]:
    """The Student and the Teacher of a config; a Teacher of random weights takes as long as a trained one."""
    torch.manual_seed(0)
    config.models.Teacher.pretrained = None
    return instantiate(config.models.Student), instantiate(config.models.Teacher)


def configured(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", ["experiment=kd_pptsmv2", "run_dir=.", "data.num_workers=0", *overrides])


def fit(
    nets: Nets, data: LightningDataModule, *, kd: bool, cache: TeacherCache | None, epochs: int, **limits: Any
) -> Clock:
    student, teacher = nets()
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    if kd:
        losses["kd"] = LossTerm(KDLoss(temperature=4.0), pair=("Student", "Teacher"), weight=0.9)
    module = DistillModule(
        models={"Student": student, **({"Teacher": teacher} if kd else {})},
        frozen=["Teacher"] if kd else [],
        losses=losses,
        optimizer=partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    )
    clock = Clock()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[clock, *([cache] if cache else [])], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, **limits,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return clock


def step_times(
    nets: Nets, data: Callable[[], LightningDataModule], *, rounds: int, batches: int
) -> dict[str, list[float]]:
    """Median CPU seconds of a step in each round, by variant."""
    seconds: dict[str, list[float]] = {"alone": [], "online": [], "cached": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):  # the first fills the cache
            for name, times in seconds.items():
                cache = TeacherCache(folder=folder, console=SILENT) if name == "cached" else None
                clock = fit(
                    nets,
                    data(),
                    kd=name != "alone",
                    cache=cache,
                    epochs=1,
                    limit_train_batches=batches,
                    limit_val_batches=0,
                )
                if turn:
                    times.append(statistics.median(clock.steps))
                    assert cache is None or cache.counts["train"].hits == cache.counts["train"].asked
    return seconds


def kept(config: DictConfig, *, epochs: int, views: int, **arguments: Any) -> tuple[TeacherCache, int, int]:
    """A short training with a cache; the cache, and bytes and samples of its files."""
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(folder=folder, console=SILENT, **arguments)
        config.data.views_per_sample = views
        fit(partial(networks, config), instantiate(config.data, _convert_="all"), kd=True, cache=cache, epochs=epochs)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.shard"))
        misses = sum(counts.asked - counts.hits for counts in cache.counts.values())
        return cache, size, misses


def span(values: list[float], unit: str = "", scale: float = 1.0, digits: int = 2) -> str:
    low, middle, high = (round(scale * f(values), digits) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f}-{high:.{digits}f})"


def main() -> None:
    asked = parser(__doc__, quick="fewer rounds and epochs").parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rounds, most = (1, 2) if asked.quick else (4, 4)
    small = configured("data=moving_digits", "teacher_cache=on", "data.views_per_sample=1")
    cases: dict[str, tuple[Nets, DictConfig, int]] = {
        "data=moving_digits: PP-TSMv2 x0.25 and PP-TSM ResNet18-vd x0.125, 64 x 4 x 3 x 32 x 32": (
            partial(networks, small), small, 12,
        ),
    }  # fmt: skip
    lines = [
        "CPU time of a step on one thread, a KD term beside cross-entropy, loading and hashing included: median over",
        "interleaved rounds (min-max). `x` is how many times longer than the student alone (no teacher, no KD term).",
        "",
        "| networks, batch | student alone | teacher online | x | teacher cached | x |",
        "|---|---|---|---|---|---|",
    ]
    for name, (nets, config, batches) in cases.items():
        times = step_times(
            nets, partial(instantiate, config.data, _convert_="all"), rounds=rounds, batches=batches
        )  # fmt: skip
        ratios = {key: [a / b for a, b in zip(times[key], times["alone"], strict=True)] for key in ("online", "cached")}
        lines.append(
            f"| {name} | {span(times['alone'], ' ms', 1e3, 0)} | {span(times['online'], ' ms', 1e3, 0)} "
            f"| **{span(ratios['online'])}** | {span(times['cached'], ' ms', 1e3, 0)} | **{span(ratios['cached'])}** |"
        )
        print(lines[-1])
    lines += [
        "",
        "Trainings of `data=moving_digits_tiny` with a cache that is empty at first, logits of 8 classes:",
        "",
        "| epochs, views a sample, kept | train hits | validation hits | bytes a sample and view |",
        "|---|---|---|---|",
    ]
    tiny = ["data=moving_digits_tiny", "teacher_cache=on"]
    for epochs, views, how in (
        (most, 1, {}), (most, 2, {}), (most, 1, {"dtype": "float16"}),
    ):  # fmt: skip
        cache, size, samples = kept(configured(*tiny), epochs=epochs, views=views, **how)
        shares = [f"{100 * c.hits / c.asked:.1f} %" for c in cache.counts.values()]
        text = ", ".join(f"{key}={value}" for key, value in how.items()) or "float32"
        lines.append(f"| {epochs}, {views}, {text} | {' | '.join(shares)} | {size / samples:.1f} |")
        print(lines[-1])
    if not asked.quick:
        write_section("teacher cache", "python benchmarks/teacher_cache.py", lines, beside=["lightning", "av"])


if __name__ == "__main__":
    main()
