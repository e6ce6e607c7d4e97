"""A LightningModule that exists already learns from a teacher too: it is subclassed, and not a line of it is edited."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, LossTerm
from lit_distill.losses import KDLoss, SimilarityLoss


class YourModule(LightningModule):
    """Yours, as it stands: with a step, logging, an optimizer and a schedule of its own."""

    def __init__(self, width: int = 16, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        inputs = inputs + 0.1 * torch.randn_like(inputs)  # the teacher is given these very inputs
        loss = nn.functional.cross_entropy(self.net(inputs), target, label_smoothing=0.1)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(dim=1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.hparams["lr"])
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)}


class Distilled(DistillMixin, YourModule):
    """The same, and terms of distillation are added to the loss of its step."""


def main(max_epochs: int = 2) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(dim=1)), batch_size=16)
    teacher = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))  # your trained one
    module = Distilled(width=16).distill(
        teacher,
        student="net",  # what your step calls
        losses={
            "kd": LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=0.5),
            "similarity": LossTerm(SimilarityLoss(), pair=("Student.1", "Teacher.1"), weight=10.0),
        },
    )
    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(module, loader, loader)
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
