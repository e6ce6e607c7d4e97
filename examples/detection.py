"""Distil a detector: its own losses on boxes as they are, and a trained backbone's pyramid, tapped level by level."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from lit_distill import DistillMixin, LossTerm
from lit_distill.losses import FitNetLoss

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def detector(backbone: str) -> FCOS:
    pyramid = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=5)
    return FCOS(pyramid, num_classes=2, min_size=64, max_size=64)


class Detection(LightningModule):
    """A detector is trained on the losses that it gives itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = detector("resnet18")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses: dict[str, Tensor] = self.net(*batch)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch[0]))
        return torch.stack(list(losses.values())).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # parameters() has those of the losses too, such as FitNet's regressors
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Distilled(DistillMixin, Detection):
    def distill_unpack(self, batch: Batch) -> tuple[Tensor, None, None]:
        """What the backbone is given, from which the losses take their shapes; in the step it is captured."""
        return self.net.transform(batch[0])[0].tensors, None, None


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
    teacher = detector("resnet50").backbone  # of your trained one
    levels = [f"fpn.layer_blocks.{level}" for level in range(3)]
    module = Distilled().distill(
        teacher,
        student="net.backbone",  # both are given the same images, resized and normalised by the student's detector
        losses={
            "pyramid": LossTerm(
                FitNetLoss(regressor="conv"),
                pair=([f"Student.{level}" for level in levels], [f"Teacher.{level}" for level in levels]),
                weight=1e-3,  # the features of this random Teacher are large, those of a trained one are not
            )
        },
    )

    def collate(samples: list[Any]) -> Any:
        return tuple(map(list, zip(*samples, strict=True)))

    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, DataLoader(make_data(), batch_size=2, shuffle=True, collate_fn=collate))  # type: ignore[arg-type]
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
