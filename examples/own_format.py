"""Videos of a custom format: .npy files (T, H, W, 3), read through a source of a few lines.

In Python the data module is given the source, as below. On the command line it is named, from the folder of this file:

python -m lit_distill.train experiment=dml_pptsmv2 data=video_list data.root=<folder> data.num_classes=<number> \
    'data.source={_target_: own_format.NpyFiles}'
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import nn

from lit_distill import DistillModule, LossTerm
from lit_distill.data import Sample, Source, Video, VideoDataModule, VideoError
from lit_distill.losses import KDLoss


class NpyVideo(Video):
    def __init__(self, path: str) -> None:
        try:
            self.frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise VideoError(path, str(error)) from error  # what data.on_bad=quarantine leaves out
        self.length = len(self.frames)

    def read(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self.frames[list(numbers)]
        return frames


class NpyFiles(Source):
    def open(self, sample: Sample) -> NpyVideo:
        return NpyVideo(sample.path)


def write_videos(root: Path) -> None:
    """Sixteen grey videos; a class is whether they get lighter or darker. Yours are there already."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(16):
        levels = np.linspace(40, 200, 12)[:: 1 if number % 2 else -1] + generator.normal(0, 5)
        np.save(root / f"{number}.npy", np.broadcast_to(levels[:, None, None, None], (12, 24, 32, 3)).astype(np.uint8))
        lines.append(f"{number}.npy {number % 2}\n")
    (root / "train.txt").write_text("".join(lines))
    (root / "val.txt").write_text("".join(lines[:4]))


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 16 * 16, width), nn.ReLU(), nn.Linear(width, 2))


def main(max_epochs: int = 2) -> Trainer:
    torch.manual_seed(0)
    module = DistillModule(
        models={"Student": network(8), "Teacher": network(32)},  # yours is trained
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "kd": LossTerm(KDLoss(temperature=4.0), pair=("Student", "Teacher")),
        },
        optimizer=partial(torch.optim.SGD, lr=0.01),
    )
    trainer = Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder))
        data = VideoDataModule(
            root=folder, train_list="train.txt", val_list="val.txt", source=NpyFiles(),
            num_classes=2, num_frames=4, size=16, scale=20, batch_size=4, num_workers=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
