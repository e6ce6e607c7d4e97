"""Networks and terms from a file or the command line: python digits.py fit --config digits.yaml."""

from __future__ import annotations

import torch
from lightning import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from lit_distill import DistillModule


class Digits(LightningDataModule):
    """1,797 handwritten digits, as rows of 64 pixels."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        x, y = map(torch.as_tensor, load_digits(return_X_y=True))
        self.parts: list[Dataset[tuple[Tensor, ...]]] = [
            *random_split(TensorDataset(x.float() / 16, y), [1200, 597], torch.Generator().manual_seed(0))
        ]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[0], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[1], self.batch_size)


def main(args: ArgsType = None) -> LightningCLI:
    return LightningCLI(DistillModule, Digits, args=args, save_config_callback=None)


if __name__ == "__main__":
    print({name: round(float(value), 4) for name, value in main().trainer.callback_metrics.items()})
