"""Distil a segmentation network: its maps of logits pixel by pixel, and what its layers tell by attention, by taps."""

from __future__ import annotations

from functools import partial

import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision.models.segmentation import fcn_resnet50, lraspp_mobilenet_v3_large

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import AttentionTransferLoss, KDLoss

CLASSES = 4


def make_data(count: int = 8, side: int = 32) -> TensorDataset:
    """Your data set: here a bright square of one of three colours on a dark ground, and its mask (H, W)."""
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.rand(count, 3, side, side, generator=generator) * 0.2, torch.zeros(count, side, side).long()
    for i, (y, x, colour) in enumerate(torch.randint(0, side // 2, (count, 3), generator=generator).tolist()):
        box = (slice(y, y + side // 2), slice(x, x + side // 2))
        images[i, colour % 3][box] += 0.8
        masks[i][box] = 1 + colour % 3
    return TensorDataset(images, masks)


def main(max_epochs: int = 1) -> Trainer:
    student = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    teacher = fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)  # your trained one
    module = DistillModule(
        models={"Student": student, "Teacher": teacher},
        frozen=["Teacher"],
        answer="out",  # torchvision's networks give dictionaries: the logits (B, C, H, W) are called out
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "kd": LossTerm(KDLoss(temperature=2.0, class_dim=1), pair=("Student", "Teacher")),
            "attention": LossTerm(
                AttentionTransferLoss(),  # of any widths; both layers have a stride of 8
                pair=("Student.backbone.4", "Teacher.backbone.layer2"),
                weight=1000.0,
            ),
        },
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        metrics=partial(MulticlassJaccardIndex, CLASSES),
    )
    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    data = make_data()
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=4))
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
