"""Distillation inside your own LightningModule: only the LossComposer is taken from lit_distill."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import LossComposer, LossTerm
from lit_distill.losses import KDLoss


class MyModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.expert = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)).requires_grad_(False)
        self.composer = LossComposer(
            {
                "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
                "kd": LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=0.5),
            }
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        with self.composer.capture({"Student": self.net, "Teacher": self.expert}) as signals:
            self.net(inputs)  # however your step runs its networks
            with torch.no_grad():
                self.expert.eval()(inputs)
        result = self.composer(signals, target, epoch=self.current_epoch)
        self.log_dict({f"train/{name}": value for name, value in result.weighted.items()})
        return result.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-2)


def main(max_epochs: int = 2) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(dim=1)), batch_size=16)
    trainer = Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(MyModule(), loader)
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
