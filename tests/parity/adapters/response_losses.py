"""Adapters from golden cases to the library's response losses, by family.

Every one of them reads the case's hyperparameters, and fills in what a source takes for granted.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses.response.dist import dist_loss
from lit_distill.losses.response.dkd import dkd_loss
from lit_distill.losses.response.dml import dml_loss
from lit_distill.losses.response.kd import kd_loss
from lit_distill.losses.response.skd import skd_loss
from lit_distill.losses.response.soft_target import soft_target_cross_entropy
from lit_distill.losses.response.wsld import wsld_loss
from parity.harness import Case, LossAdapter, LossInputs


def _number(case: Case, *names: str, default: float) -> float:
    """The first of the hyperparameters ``names`` that the case gives; null counts as not given."""
    given = (case.hyper[name] for name in names if case.hyper.get(name) is not None)
    return float(next(given, default))


def _temperature(case: Case, default: float) -> float:
    return _number(case, "temperature", "T", "tau", default=default)


def _target(inputs: LossInputs) -> Tensor:
    """Class indices (N,), or (N, H, W) of maps; Paddle's come as (N, 1)."""
    name = next(name for name in ("target", "label", "labels") if name in inputs.inputs)
    return inputs[name].squeeze(-1) if inputs[name].ndim == 2 else inputs[name]


def _kd_reduced(case: Case, inputs: LossInputs, *, standardize: bool) -> Tensor:
    """T² KL in the case's reduction; every source but mdistiller divides by the batch alone, pixels or not."""
    student, teacher = inputs["student"], inputs["teacher"]
    loss = kd_loss(
        student,
        teacher,
        temperature=_temperature(case, 4.0),
        logit_standardization=standardize,
        standardization_eps=_number(case, "eps", default=1e-7),
        class_dim=1,
    )
    classes = student.shape[1]
    rows = student.numel() // classes
    reduction = case.hyper.get("reduction", "batchmean")
    if reduction == "sum":
        return loss * rows
    if reduction == "mean":
        return loss / classes
    return loss * rows / len(student) if case.meta["reference"]["repo"] != "mdistiller" else loss


def _torchdistill_kd(case: Case, inputs: LossInputs, *, standardize: bool) -> Tensor:
    """alpha * CE + beta * T² KL, and the bare KL when alpha is 0 or None."""
    kd = _kd_reduced(case, inputs, standardize=standardize)
    alpha, beta = case.hyper.get("alpha"), case.hyper.get("beta")
    if not alpha or not {"target", "label", "labels"} & inputs.inputs.keys():
        return kd / _temperature(case, 4.0) ** 2
    reduction = "sum" if case.hyper.get("reduction") == "sum" else "mean"
    ce = F.cross_entropy(inputs["student"], _target(inputs), reduction=reduction)
    return float(alpha) * ce + (1 - float(alpha) if beta is None else float(beta)) * kd


def hinton_kd(case: Case, inputs: LossInputs) -> Tensor:
    if case.meta["reference"]["repo"] == "torchdistill":
        return _torchdistill_kd(case, inputs, standardize=False)
    return _kd_reduced(case, inputs, standardize=False)


def logit_std_kd(case: Case, inputs: LossInputs) -> Tensor:
    return _torchdistill_kd(case, inputs, standardize=True)


def dkd(case: Case, inputs: LossInputs) -> Tensor:
    loss = dkd_loss(
        inputs["student"],
        inputs["teacher"],
        _target(inputs),
        alpha=_number(case, "alpha", default=1.0),
        beta=_number(case, "beta", default=8.0 if case.family == "dkd" else 1.0),
        temperature=_temperature(case, 4.0 if case.family == "dkd" else 1.0),
        teacher_labels=bool(case.hyper.get("use_target_as_gt", False)),
    )
    warmup, epoch = _number(case, "warmup", "warmup_epochs", default=0.0), case.hyper.get("epoch")
    return loss * min(float(epoch) / warmup, 1.0) if warmup and epoch is not None else loss


def dist(case: Case, inputs: LossInputs) -> Tensor:
    return dist_loss(
        inputs["student"],
        inputs["teacher"],
        beta=_number(case, "beta", default=1.0),
        gamma=_number(case, "gamma", default=1.0),
        temperature=_temperature(case, 1.0),
        eps=_number(case, "eps", default=1e-8),
        eps_form="floor" if case.meta["reference"]["repo"] == "torchdistill" else "added",
        class_dim=1,
    )


def dml_official(case: Case, inputs: LossInputs) -> Tensor:
    return dml_loss(
        inputs["student"], inputs["teacher"], mutual="one_sided", eps=_number(case, "eps", default=1e-8), class_dim=-1
    )


def paddle_dml(case: Case, inputs: LossInputs) -> Tensor:
    loss = dml_loss(
        inputs["student"],
        inputs["teacher"],
        activation=case.hyper.get("act", "softmax"),
        eps=_number(case, "eps", default=1e-12),
        sum_over_classes=bool(case.hyper.get("sum_across_class_dim", False)),
        class_dim=-1,
    )
    return loss * _number(case, "loss_weight", default=1.0)


def pv_distillation_ce(case: Case, inputs: LossInputs) -> Tensor:
    """Cross-entropy is torch's own; mixed labels become probabilities, with the batch's mean lambda as PaddleVideo."""
    student, weight = inputs["student"], _number(case, "loss_weight", default=1.0)
    if "lam" not in inputs.inputs:
        return F.cross_entropy(student, _target(inputs)) * weight
    first, second = (
        F.one_hot(inputs[name].reshape(-1), student.shape[-1]).to(student.dtype) for name in ("label_a", "label_b")
    )
    lam = inputs["lam"].detach().mean()
    return F.cross_entropy(student, lam * first + (1 - lam) * second) * weight


def pc_distillation_ce(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = inputs["student"], inputs["teacher"]
    smoothing = _number(case, "epsilon", default=0.0)
    if 0 < smoothing < 1:  # PaddleClas then smooths the second signal as it comes, without a softmax
        smooth = (1 - smoothing) * teacher + smoothing / teacher.shape[-1]
        return -(smooth * F.log_softmax(student, dim=-1)).sum(dim=-1).mean()
    return soft_target_cross_entropy(student, teacher, class_dim=-1)


def pc_wsl(case: Case, inputs: LossInputs) -> Tensor:
    return wsld_loss(
        inputs["student"],
        inputs["teacher"],
        _target(inputs),
        temperature=_temperature(case, 2.0),
        teacher_labels=bool(case.hyper.get("use_target_as_gt", False)),
    )


def pc_skd(case: Case, inputs: LossInputs) -> Tensor:
    return skd_loss(
        inputs["student"],
        inputs["teacher"],
        _target(inputs),
        temperature=_temperature(case, 1.0),
        multiplier=_number(case, "multiplier", default=2.0),
        alpha=_number(case, "alpha", default=0.9),
        teacher_labels=bool(case.hyper.get("use_target_as_gt", False)),
    )


ADAPTERS: dict[str, LossAdapter] = {
    "hinton_kd": hinton_kd,
    "logit_std_kd": logit_std_kd,
    "dkd": dkd,
    "dist": dist,
    "dml_official": dml_official,
    "pv_distillation_ce": pv_distillation_ce,
    "pv_dml": paddle_dml,
    "pc_dml": paddle_dml,
    "pc_distillation_ce": pc_distillation_ce,
    "pc_kldiv": hinton_kd,
    "pc_dkd": dkd,
    "pc_wsl": pc_wsl,
    "pc_skd": pc_skd,
    "pc_dist": dist,
}
