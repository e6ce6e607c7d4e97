"""Distil a detector: its own losses on boxes as they are, a trained one's pyramid, and CrossKD through its head."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from lit_distill import DistillMixin, LossTerm
from lit_distill.losses import CrossKDLoss, FitNetLoss

LEVELS = range(3)  # of the five, those that are more than a few pixels in images as small as these
HEAD = "head.classification_head"


def detector(backbone: str) -> FCOS:
    pyramid = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=5)
    return FCOS(pyramid, num_classes=2, min_size=64, max_size=64)


class Detection(LightningModule):
    """A detector is trained on the losses that it gives itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = detector("resnet18")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses: dict[str, Tensor] = self.net(batch["images"], batch["targets"])
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch["images"]))
        return torch.stack(list(losses.values())).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # parameters() has those of the losses too, such as FitNet's regressors
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Distilled(DistillMixin, Detection):
    """Terms join the losses of the step; the Teacher is given the same images and resizes them in the same way."""


def cross_head(level: int) -> LossTerm:
    """The Student's features of a level, read by the rest of the Teacher's head, against the Teacher's classes."""
    rest = [f"Teacher.{HEAD}.conv.{part}" for part in range(6, 12)]  # two more blocks of convolution, norm, ReLU
    feature = f"{HEAD}.conv.4@{level}"  # the head is called on each level: @ says which
    return LossTerm(
        CrossKDLoss(teacher_head=[*rest, f"Teacher.{HEAD}.cls_logits"]),
        pair=(f"Student.{feature}", [f"Teacher.{feature}", f"Teacher.{HEAD}.cls_logits@{level}"]),
        weight=0.4,
    )


def make_data(count: int = 4, side: int = 64) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Your data set: here a bright box on a dark ground."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for x, y in torch.randint(0, side // 2, (count, 2), generator=generator).tolist():
        image = torch.rand(3, side, side, generator=generator) * 0.2
        image[:, y : y + side // 2, x : x + side // 2] += 0.7
        boxes = torch.tensor([[x, y, x + side // 2, y + side // 2]], dtype=torch.float32)
        data.append((image, {"boxes": boxes, "labels": torch.ones(1, dtype=torch.long)}))
    return data


def main(max_epochs: int = 1) -> Trainer:
    teacher = detector("resnet50")  # your trained one
    pyramids = [[f"{name}.backbone.fpn.layer_blocks.{level}" for level in LEVELS] for name in ("Student", "Teacher")]
    module = Distilled().distill(
        teacher,
        student="net",
        batch={"inputs": ["images", "targets"]},
        losses={
            # the features of this random Teacher are large, those of a trained one are not
            "pyramid": LossTerm(FitNetLoss(regressor="conv"), pair=(pyramids[0], pyramids[1]), weight=1e-3),
            **{f"cross_{level}": cross_head(level) for level in LEVELS},
        },
    )

    def collate(samples: list[Any]) -> dict[str, Any]:
        images, targets = zip(*samples, strict=True)
        return {"images": list(images), "targets": list(targets)}

    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, DataLoader(make_data(), batch_size=2, shuffle=True, collate_fn=collate))  # type: ignore[arg-type]
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
