"""Distil any classifier of timm into any other, by their names: `python timm_classification.py --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import KDLoss
from lit_distill.models import timm_model  # pip install 'lit-distill[timm]'; it downloads nothing


def main(arguments: Sequence[str] | None = None) -> Trainer:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="mobilenetv3_small_050")
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument(
        "--teacher-weights", help="a trained one, .safetensors or .pth; without it the Teacher is random"
    )
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args(arguments)

    data = FakeData(16, (3, 32, 32), given.classes, transform=ToTensor())  # your data set
    teacher = timm_model(given.teacher, num_classes=given.classes, pretrained=given.teacher_weights)
    module = DistillModule(
        models={"Student": timm_model(given.student, num_classes=given.classes), "Teacher": teacher},
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"), weight=0.1),
            "kd": LossTerm(KDLoss(temperature=4.0), pair=("Student", "Teacher"), weight=0.9),
        },
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )
    trainer = Trainer(max_epochs=given.epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=8))
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
