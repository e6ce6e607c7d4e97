"""Adapters from golden cases to the library's relation losses, by family.

Each reads the case's hyperparameters under any of their published names, and fills in what a source takes for granted.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import (
    correlation_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
)
from parity.harness import Case, LossAdapter, LossInputs

NAMES = {
    "distance": ("distance_weight", "w_d", "dist_factor", "distance_factor", "dist_ratio", "distance"),
    "angle": ("angle_weight", "w_a", "angle_factor", "angle_ratio", "angle"),
    "squared": ("squared",),
    "eps": ("eps",),
    "target_size": ("target_size",),
    "kernel": ("kernel", "kernel_type", "type"),
    "gamma": ("gamma",),
    "order": ("max_p", "P_order", "p", "order"),
}


def _given(case: Case, *wanted: str) -> dict[str, Any]:
    """The hyperparameters ``wanted`` (our names) that the case gives; null counts as not given."""
    found = {
        ours: case.hyper[theirs] for ours in wanted for theirs in NAMES[ours] if case.hyper.get(theirs) is not None
    }
    kernel_config = case.hyper.get("kernel_config") or case.hyper.get("kernel_params") or {}
    for ours in wanted:
        for theirs in NAMES[ours]:
            if kernel_config.get(theirs) is not None:
                found[ours] = kernel_config[theirs]
    return found


def _reduced(case: Case, loss: Tensor, count: int, default: str) -> Tensor:
    """Our mean over ``count`` terms in the case's reduction."""
    return loss if case.hyper.get("reduction", default) == default else loss * count


def rkd_distance(case: Case, inputs: LossInputs) -> Tensor:
    loss = rkd_distance_loss(inputs["student"], inputs["teacher"], **_given(case, "squared", "eps"))
    return _reduced(case, loss, len(inputs["student"]) ** 2, "mean")


def rkd_angle(case: Case, inputs: LossInputs) -> Tensor:
    loss = rkd_angle_loss(inputs["student"], inputs["teacher"])
    return _reduced(case, loss, len(inputs["student"]) ** 3, "mean")


def rkd_total(case: Case, inputs: LossInputs) -> Tensor:
    weights = _given(case, "distance", "angle")
    size = len(inputs["student"])
    if case.hyper.get("reduction") == "sum":
        weights = {"distance": weights["distance"] * size**2, "angle": weights["angle"] * size**3}
    return rkd_loss(inputs["student"], inputs["teacher"], **weights, **_given(case, "squared", "eps"))


def _paddle_pool(maps: Tensor, size: int) -> Tensor:
    """Adaptive average pooling with the gradient of Paddle's kernel, whose 1 / cells of a window is a float32."""
    pooled = F.adaptive_avg_pool2d(maps, size)
    high, wide = (
        [ceil((i + 1) * extent / size) - i * extent // size for i in range(size)] for extent in maps.shape[2:]
    )
    cells = torch.tensor([[h * w for w in wide] for h in high], dtype=torch.float64)
    rounding = (1 / cells).float().double() * cells
    if pooled.requires_grad:
        pooled.register_hook(lambda gradient: gradient * rounding)  # type: ignore[no-untyped-call]
    return pooled


def _paddleclas(case: Case, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    size = _given(case, "target_size").get("target_size")
    student, teacher = inputs["student"], inputs["teacher"]
    return (student, teacher) if size is None else (_paddle_pool(student, size), _paddle_pool(teacher, size))


def pc_rkd_distance(case: Case, inputs: LossInputs) -> Tensor:
    return rkd_distance_loss(*_paddleclas(case, inputs), convention="paddleclas", **_given(case, "eps"))


def pc_rkd_angle(case: Case, inputs: LossInputs) -> Tensor:
    return rkd_angle_loss(*_paddleclas(case, inputs), convention="paddleclas")


def pkt(case: Case, inputs: LossInputs) -> Tensor:
    return pkt_loss(inputs["student"], inputs["teacher"], **_given(case, "eps"))


def sp(case: Case, inputs: LossInputs) -> Tensor:
    l1 = str(case.hyper.get("row_norm", "")).lower() == "l1" or case.meta["reference"]["repo"] == "torchdistill"
    loss = similarity_loss(inputs["student"], inputs["teacher"], row_norm="l1" if l1 else "l2")
    return _reduced(case, loss, len(inputs["student"]) ** 2, "batchmean")


def cc(case: Case, inputs: LossInputs) -> Tensor:
    return correlation_loss(inputs["student"], inputs["teacher"], kernel="consecutive", normalize=False)


def cc_matrix(case: Case, inputs: LossInputs) -> Tensor:
    loss = correlation_loss(
        inputs["student"],
        inputs["teacher"],
        normalize=False,
        squared=False,
        **_given(case, "kernel", "gamma", "order"),
    )
    return _reduced(case, loss, len(inputs["student"]) ** 2, "batchmean")


ADAPTERS: dict[str, LossAdapter] = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "rkd_total": rkd_total,
    "pc_rkd_distance": pc_rkd_distance,
    "pc_rkd_angle": pc_rkd_angle,
    "pkt": pkt,
    "sp": sp,
    "cc": cc,
    "cc_matrix": cc_matrix,
}
