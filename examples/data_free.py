"""Distil without a single sample: a generator makes the images that a trained Teacher teaches a Student on."""

from __future__ import annotations

from functools import partial

import torch
from lightning import LightningDataModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DataFreeModule, DistillModule, LossTerm
from lit_distill.data import NoiseData
from lit_distill.losses import DAFLLoss, KDLoss
from lit_distill.models import ImageGenerator
from lit_distill.schedules import Cosine

NOISE = 32


def network(width: int) -> nn.Sequential:
    """Images (B, 1, 8, 8) to logits (B, 10); 11 is its classifier."""
    layers: list[nn.Module] = []
    for before, after in ((1, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,297 handwritten digits for the Teacher alone and 500 to test on, normalized as the Teacher's are."""
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None], torch.tensor(data.target)
    images = (images - images[:-500].mean()) / images[:-500].std()
    return TensorDataset(images[:-500], labels[:-500]), TensorDataset(images[-500:], labels[-500:])


def quiet(epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def train_teacher(data: TensorDataset, epochs: int) -> nn.Module:
    """Your trained one, whose data you no longer have."""
    module = DistillModule(
        models={"Teacher": network(16)},
        losses={"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth"))},
        optimizer=partial(torch.optim.Adam, lr=2e-3),
    )
    quiet(epochs).fit(module, DataLoader(data, batch_size=64, shuffle=True))
    return module.models["Teacher"]


def main(teacher_epochs: int = 10, epochs: int = 6, batches: int = 200) -> dict[str, float]:
    torch.manual_seed(0)
    for_teacher, for_test = digits()
    module = DataFreeModule(
        models={
            "Generator": ImageGenerator(noise=NOISE, channels=1, side=8, width=32),
            "Student": network(8),
            "Teacher": train_teacher(for_teacher, teacher_epochs),
        },
        frozen=["Teacher"],
        phases={"Generator": 1, "Student": 2},  # optimizer steps, in turns
        losses={"kd": LossTerm(KDLoss(temperature=1.0), pair=("Student", "Teacher"))},
        generator_losses={
            # Images that the Teacher is sure of, of all classes equally often (DAFL),
            "dafl": LossTerm(DAFLLoss(one_hot=0.1, entropy=5.0, activation=0.0), pair=("Teacher", "Teacher.11:input")),
            # and on which the Student still differs from it: the adversary of ZSKT descends -KL.
            "adversarial": LossTerm(KDLoss(temperature=1.0), pair=("Student", "Teacher"), weight=-1.0, detach=False),
        },
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        scheduler=Cosine(start=1.0, end=0.0, epochs=epochs),
    )
    real = LightningDataModule.from_datasets(val_dataset=for_test, batch_size=500)  # to look at, not to learn from
    trainer, data = quiet(epochs), NoiseData(real, size=NOISE, batches=batches, batch_size=128)
    (before,) = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"val/Student/top1 before": before["val/Student/top1"], **values}


if __name__ == "__main__":
    print({k: round(v, 4) for k, v in main().items()})
