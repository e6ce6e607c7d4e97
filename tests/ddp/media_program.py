"""A training with pictures by any number of processes; its folder has them. Run by test_media_ddp.py."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import MediaLogger, StepSeed, media_logger
from lit_distill.loggers import MetricsCSV
from lit_distill.media.findings import Findings
from lit_distill.media.pictures import Picture

draw = media_logger.draw


def main(folder: Path, processes: int, fails: bool) -> None:
    seed_everything(3)
    x = torch.randn(47, 2, 3, 4, 4, dtype=torch.float64)
    y = x.flatten(1)[:, :3].argmax(dim=1)
    train = TensorDataset(x[:32], y[:32])
    val = TensorDataset(x[32:], y[32:], torch.arange(15))  # two ranks have 8 and 7 batches
    module = DistillModule(
        models={name: nn.Sequential(nn.Flatten(), nn.Linear(96, 3)) for name in ("Student", "Teacher")},
        frozen=["Teacher"],
        losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))},
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    places: list[list[int]] = []

    def drawn_of(findings: Findings, trainer: Trainer) -> list[Picture]:
        if fails:
            raise OSError("only the first process draws")
        places.append([clip.place for clip in findings.clips])
        return draw(findings, trainer)

    media_logger.draw = drawn_of
    pictures = MediaLogger(every_n_validations=1, clips=4, mean=(0.5,) * 3, std=(0.2,) * 3)
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", precision="64-true",
        max_epochs=2, logger=MetricsCSV(folder), callbacks=[StepSeed(), pictures], enable_checkpointing=False,
        enable_progress_bar=False, use_distributed_sampler=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    rank = trainer.global_rank
    sampler: DistributedSampler[int] = DistributedSampler(train, num_replicas=processes, rank=rank, shuffle=False)
    trainer.fit(
        module,
        DataLoader(train, batch_size=8 // processes, sampler=sampler),
        DataLoader(val, batch_size=1, sampler=range(rank, len(val), processes)),
    )
    (folder / f"rank{rank}.json").write_text(json.dumps(places))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "fails" in sys.argv)
