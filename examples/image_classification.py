"""Distil a ResNet-50 into a ResNet-18 on any loader of (images, labels): replace the two marked lines by your own."""

from __future__ import annotations

import sys
from functools import partial

import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.models import resnet18, resnet50
from torchvision.transforms import ToTensor

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import KDLoss


def main(max_epochs: int = 1, images: int = 32) -> Trainer:
    data = FakeData(images, image_size=(3, 64, 64), num_classes=10, transform=ToTensor())  # your data set
    teacher = resnet50(num_classes=10)  # your trained teacher: teacher.load_state_dict(torch.load("teacher.pth"))
    module = DistillModule(
        models={"Student": resnet18(num_classes=10), "Teacher": teacher},
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "kd": LossTerm(KDLoss(temperature=4.0), pair=("Student", "Teacher"), weight=0.9),
        },
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    )
    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=8))
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main(*map(int, sys.argv[1:])).callback_metrics.items()})
