"""Loss curves of five experiments on the tiny embedded data, kept as text; this file, run, remakes them."""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
CONF = FOLDER.parents[1] / "conf"
STEPS = 100
SEED = 11
# At the preset's rate another CPU's rounding moves the later losses of all but the baseline by as much as they are.
TAME = ("preset.lr=0.0005",)
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "baseline": ("experiment=baseline_pptsmv2",),
    "dml": ("experiment=dml_pptsmv2",),
    "kd": ("experiment=kd_pptsmv2",),
    "rkd": ("experiment=rkd_pptsmv2",),
    "crd": ("experiment=crd_pptsmv2",),
}


class Losses(Callback):
    """The total of each of the first steps; training ends after them, on the schedule of the whole."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))
        trainer.should_stop = len(self.values) == self.steps


class Nudge(Callback):
    """Multiplies the weights by 1 + size: how far would another CPU's rounding carry?"""

    def __init__(self, size: float) -> None:
        self.size = size

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in pl_module.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 + self.size * torch.randn(parameter.shape, generator=noise))


def curve(name: str, *, steps: int = STEPS, nudge: float = 0.0, more: tuple[str, ...] = ()) -> list[float]:
    """The training losses of one experiment's first steps."""
    from lit_distill.training.train import build_module

    with tempfile.TemporaryDirectory() as folder:
        overrides = [*EXPERIMENTS[name], "data=moving_digits_tiny", *TAME, f"seed={SEED}", f"run_dir={folder}", *more]
        if name == "kd":
            overrides.append(f"models.Teacher.pretrained={_teacher(Path(folder))}")
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF.absolute())):
            config = compose("train", overrides=overrides)
        seed_everything(SEED, workers=True, verbose=False)
        datamodule = instantiate(config.data, _convert_="all")
        module = build_module(config)
        losses = Losses(steps)
        trainer = Trainer(
            max_steps=STEPS, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0, accelerator="cpu",
            callbacks=[losses, *([Nudge(nudge)] if nudge else [])], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=datamodule)
    return losses.values


def _teacher(folder: Path) -> Path:
    """A seeded network's weights; a curve needs a teacher that stays the same, not a good one."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF.absolute())):
        config = compose(
            "train", overrides=["experiment=dml_pptsmv2", "data=moving_digits_tiny", f"run_dir={folder}"]
        )  # fmt: skip
    torch.manual_seed(SEED)
    path = folder / "teacher.safetensors"
    save_file(
        {name: value.contiguous() for name, value in instantiate(config.models.Teacher).state_dict().items()}, path
    )
    return path


def read(name: str) -> list[float]:
    """The committed curve."""
    with (FOLDER / f"{name}.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def write(name: str, values: list[float]) -> None:
    """Commit a curve to its file."""
    with (FOLDER / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "loss"])
        table.writerows([step, f"{value:.8g}"] for step, value in enumerate(values, 1))


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or EXPERIMENTS:
        write(name, curve(name))
        print(f"{name}: {FOLDER / name}.csv")


if __name__ == "__main__":
    main()
