"""Features of a foundation model, learned without labels, and judged by a linear probe."""

from __future__ import annotations

from functools import partial

import torch
from lightning import Trainer, seed_everything
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import QueueRelationLoss, RegressionLoss

PROBE = 100  # images with labels, which the probe alone is given


def encoder(width: int) -> nn.Sequential:
    """Images (B, 1, 8, 8) to features (B, width)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def probe(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy of a linear classifier on frozen features, fitted to ``PROBE`` images, tested on the last 597."""
    network.eval()
    with torch.inference_mode():
        features = network(images).numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
        features[:PROBE], labels[:PROBE]
    )
    return float(classifier.score(features[1200:], labels[1200:]))


def fit(module: DistillModule, loader: DataLoader[tuple[Tensor, ...]], epochs: int) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return trainer


def main(max_epochs: int = 10) -> Trainer:
    seed_everything(0)
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    images = (images.float() / 16).reshape(-1, 1, 8, 8)
    adam = partial(torch.optim.AdamW, lr=3e-3)

    # Yours is DINOv2 or another: timm.create_model(…, pretrained=True, num_classes=0). This one knows digits.
    teacher = nn.Sequential(encoder(64), nn.Linear(64, 10))
    ce = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))
    fit(DistillModule({"Student": teacher}, {"ce": ce}, optimizer=adam),
        DataLoader(TensorDataset(images[:1200], labels[:1200]), 64, shuffle=True), max_epochs)  # fmt: skip

    student = encoder(16)
    print(
        f"probe: Teacher {probe(teacher[0], images, labels):.1%}, Student before {probe(student, images, labels):.1%}"
    )
    losses = {
        "features": LossTerm(RegressionLoss(projector="linear", scale="layer_norm"), pair=("Student", "Teacher")),
        "queue": LossTerm(QueueRelationLoss(size=256), pair=("Student", "Teacher")),
    }
    module = DistillModule(
        {"Student": student, "Teacher": teacher[0]}, losses, frozen=["Teacher"], metrics=None, optimizer=adam
    )
    trainer = fit(module, DataLoader(TensorDataset(images[:1200]), 64, shuffle=True), max_epochs)
    print(f"Student distilled {probe(student, images, labels):.1%}")
    return trainer


if __name__ == "__main__":
    print({k: round(float(v), 4) for k, v in main().callback_metrics.items()})
