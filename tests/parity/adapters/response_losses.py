"""Adapters from golden cases to the library's response losses, by family.

Every one of them reads the case's hyperparameters, and fills in what a source takes for granted.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses.base import Example
from lit_distill.losses.feature.cat_kd import cat_kd_loss
from lit_distill.losses.feature.regression import regression_loss
from lit_distill.losses.response.deit import deit_loss
from lit_distill.losses.response.dist import dist_loss
from lit_distill.losses.response.dkd import DKDLoss, dkd_loss
from lit_distill.losses.response.dml import dml_loss
from lit_distill.losses.response.kd import KDLoss, kd_loss
from lit_distill.losses.response.mlld import mlld_loss
from lit_distill.losses.response.nkd import NKDLoss, nkd_loss
from lit_distill.losses.response.sdd import SDDLoss, sdd_loss
from lit_distill.losses.response.skd import skd_loss
from lit_distill.losses.response.soft_target import soft_target_cross_entropy
from lit_distill.losses.response.standardized import standardized_loss
from lit_distill.losses.response.streamlined_kd import streamlined_kd_loss
from lit_distill.losses.response.tf_kd import tf_kd_loss
from lit_distill.losses.response.ttm import ttm_loss
from lit_distill.losses.response.uskd import USKDLoss
from lit_distill.losses.response.wsld import wsld_loss
from parity.harness import Case, LossAdapter, LossInputs, call


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


def _weight(case: Case) -> float:
    return _number(case, "loss_weight", default=1.0)


def _reduced(case: Case, loss: Tensor, student: Tensor, *, default: str) -> Tensor:
    """A mean over the batch in the case's reduction; "mean" divides by the classes, or the pixels of maps, too."""
    reduction = case.hyper.get("reduction", default)
    rows = student.numel() // student.shape[1]
    per_sample = loss * rows / len(student)
    return {"batchmean": per_sample, "mean": loss / student.shape[1], "sum": loss * rows}[reduction]


def skd_instance(case: Case, x: LossInputs) -> Tensor:
    return streamlined_kd_loss(x["student"], x["teacher"], temperature=_temperature(case, 4.0), direction=0.0)


def skd_direction(case: Case, x: LossInputs) -> Tensor:
    tikhonov = _number(case, "tikhonov", default=0.1)
    return streamlined_kd_loss(x["student"], x["teacher"], instance=0.0, tikhonov=tikhonov)


def deit(case: Case, x: LossInputs) -> Tensor:
    """Soft labels are divided by the classes in the program: alpha and the labels' share are weighed apart."""
    heads, teacher, target = [x["student"], x["student_dist"]], x["teacher"].detach(), _target(x)
    alpha, kind = _number(case, "alpha", default=0.5), case.hyper["distillation_type"]
    assert case.hyper.get("base_criterion", "cross-entropy") == "cross-entropy"
    if kind == "none":
        return F.cross_entropy(heads[0], target)
    by_teacher = deit_loss(heads, teacher, target, alpha=1.0, labels=kind, temperature=_temperature(case, 1.0))
    scale = 1.0 if kind == "hard" else 1 / heads[0].shape[1]
    return (1 - alpha) * deit_loss(heads, teacher, target, alpha=0.0) + alpha * scale * by_teacher


def tfkd_reg(case: Case, x: LossInputs) -> Tensor:
    student, target, alpha = x["student"], _target(x), _number(case, "reg_alpha", "alpha", default=0.1)
    virtual = tf_kd_loss(
        student,
        target,
        correct_probability=_number(case, "correct_prob", default=0.99),
        temperature=_number(case, "reg_temperature", "temperature", default=20.0),
        student_temperature=1.0,
        softened="probabilities",
    )
    scale = alpha * _number(case, "multiplier", default=1.0) / student.shape[1]
    return (1 - alpha) * F.cross_entropy(student, target) + scale * virtual


def tfkd_self(case: Case, x: LossInputs) -> Tensor:
    student, alpha = x["student"], _number(case, "alpha", default=0.95)
    kd = kd_loss(student, x["teacher"], temperature=_temperature(case, 6.0))
    scale = alpha * _number(case, "multiplier", default=1.0) / student.shape[1]
    return (1 - alpha) * F.cross_entropy(student, _target(x)) + scale * kd


def tfkd_label_smoothing(case: Case, x: LossInputs) -> Tensor:
    """Torch's own; it spreads its share over all classes, the source over the others."""
    student = x["student"]
    share = _number(case, "alpha", default=0.1) * student.shape[1] / (student.shape[1] - 1)
    return F.cross_entropy(student, _target(x), label_smoothing=share)


def ttm(case: Case, x: LossInputs) -> Tensor:
    gamma = _number(case, "gamma", default=0.1)
    return ttm_loss(x["student"], x["teacher"], gamma=gamma, weighted=case.family == "wttm")


def _inner(case: Case) -> nn.Module:
    """The loss of each region."""
    temperature = _temperature(case, 1.0 if "nkd" in case.family else 4.0)
    if "dkd" in case.family:
        alpha, beta = _number(case, "alpha", default=1.0), _number(case, "beta", default=8.0)
        return DKDLoss(alpha=alpha, beta=beta, temperature=temperature)
    if "nkd" in case.family:
        return NKDLoss(gamma=_number(case, "gamma", default=1.5), temperature=temperature, rest="all")
    return KDLoss(temperature=temperature)


def sdd(case: Case, x: LossInputs) -> Tensor:
    return sdd_loss(x["student"], x["teacher"], _target(x), loss=_inner(case))


def sdd_maps(case: Case, x: LossInputs) -> Tensor:
    heads = {}
    for name in ("student_fc", "teacher_fc"):
        weight, bias = x.params[f"{name}.weight"], x.params[f"{name}.bias"]
        # Written into the layer as they are, so that gradients reach the case's tensors.
        heads[name] = nn.Linear(weight.shape[1], weight.shape[0])
        del heads[name].weight, heads[name].bias
        heads[name].register_buffer("weight", weight)
        heads[name].register_buffer("bias", bias)
    loss = SDDLoss(
        loss=_inner(case),
        scales=json.loads(case.hyper["M"]) if isinstance(case.hyper["M"], str) else case.hyper["M"],
        student_classifier="Student.student_fc",
        teacher_classifier="Student.teacher_fc",
    )
    loss.build(Example(x["student"], x["teacher"], models={"Student": nn.ModuleDict(heads)}))
    value: Tensor = loss(x["student"], x["teacher"], _target(x))
    return value


def nkd(case: Case, x: LossInputs) -> Tensor:
    return nkd_loss(
        x["student"],
        x["teacher"],
        x["target"],
        gamma=_number(case, "gamma", default=1.5),
        temperature=_number(case, "temp", "temperature", "T", default=1.0),
        rest="all" if case.family == "nkd_sdd" else "others",
    )


def uskd(case: Case, x: LossInputs) -> Tensor:
    loss = USKDLoss(
        alpha=_number(case, "alpha", default=1.0),
        beta=_number(case, "beta", default=0.1),
        mu=_number(case, "mu", default=0.005),
        ranking="log_probabilities",
    )
    signals = [x["student"], x["student_feat"]]
    loss.build(Example(signals, x["target"]))
    return call(loss, {f"head.{name}": x.params[f"fc.{name}"] for name in ("weight", "bias")}, signals, x["target"])


def lskd_dkd(case: Case, x: LossInputs) -> Tensor:
    loss = DKDLoss(
        alpha=_number(case, "alpha", default=1.0),
        beta=_number(case, "beta", default=8.0),
        temperature=_temperature(case, 2.0),
    )
    return standardized_loss(x["student"], x["teacher"], _target(x), loss=loss, eps=_number(case, "eps", default=1e-7))


def mlkd(case: Case, x: LossInputs) -> Tensor:
    """One level at one temperature."""
    classes = float(case.family == "mlkd_cc")
    temperatures = (_temperature(case, 4.0),)
    return mlld_loss(
        x["student"], x["teacher"], temperatures=temperatures, instance=0.0, batch=1 - classes, classes=classes
    )


def dkd_mmrazor(case: Case, x: LossInputs) -> Tensor:
    """Every reduction but the default gives the sum, as torch's ``size_average=False`` wins."""
    loss = dkd_loss(
        x["student"],
        x["teacher"],
        _target(x),
        alpha=_number(case, "alpha", default=1.0),
        beta=_number(case, "beta", default=8.0),
        temperature=_temperature(case, 1.0),
    )
    batchmean = case.hyper.get("reduction", "batchmean") == "batchmean"
    return _weight(case) * loss * (1 if batchmean else len(x["student"]))


def wsld_mmrazor(case: Case, x: LossInputs) -> Tensor:
    return _weight(case) * wsld_loss(x["student"], x["teacher"], _target(x), temperature=_temperature(case, 2.0))


def kl_mmrazor(case: Case, x: LossInputs) -> Tensor:
    student, teacher = x["student"], x["teacher"].detach() if case.hyper.get("teacher_detach", True) else x["teacher"]
    loss = kd_loss(student, teacher, temperature=_temperature(case, 1.0), class_dim=1)
    return _weight(case) * _reduced(case, loss, student, default="batchmean")


def patient_kd_logits(case: Case, x: LossInputs) -> Tensor:
    student, alpha = x["student"], _number(case, "alpha", default=0.7)
    kd = kd_loss(student, x["teacher"], temperature=_temperature(case, 10.0)) / student.shape[1]
    return alpha * kd + (1 - alpha) * F.cross_entropy(student, _target(x))


def tinybert_logits(case: Case, x: LossInputs) -> Tensor:
    temperature = _temperature(case, 1.0)
    loss = soft_target_cross_entropy(x["student"], x["teacher"], temperature=temperature)
    return loss / temperature**2 / x["student"].shape[1]


def distilbert(case: Case, x: LossInputs) -> Tensor:
    """Three terms under the attention mask; labels of -100 are none."""
    student, teacher, attended, labels = x["student"], x["teacher"], x["attention_mask"], x["target"]
    assert case.hyper.get("mlm", True), "a causal language model shifts its labels: no case"
    kept = (labels != -100) if case.hyper.get("restrict_ce_to_mask") else attended
    weights = case.hyper["alphas"]
    hidden = x["student_hidden"], x["teacher_hidden"]
    terms = {
        "ce": lambda: kd_loss(student, teacher, mask=kept, temperature=_temperature(case, 2.0)),
        "mlm": lambda: F.cross_entropy(student.flatten(0, 1), labels.flatten()),
        "mse": lambda: regression_loss(student, teacher, mask=kept) * student.shape[-1],
        "cos": lambda: regression_loss(*hidden, mask=attended, distance="cosine"),
    }
    return torch.stack([weight * terms[name]() for name, weight in weights.items() if weight]).sum()


def cat_kd(case: Case, x: LossInputs) -> Tensor:
    loss = cat_kd_loss(
        x["student"],
        x["teacher"],
        resolution=int(case.hyper.get("CAM_RESOLUTION", 2)),
        normalize=bool(case.hyper.get("IF_NORMALIZE", False)),
        binarize=bool(case.hyper.get("IF_BINARIZE", False)),
    )
    return _number(case, "CAT_loss_weight", default=1.0) * loss


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
    "skd_instance": skd_instance,
    "skd_direction": skd_direction,
    "deit_soft": deit,
    "deit_hard": deit,
    "tfkd_reg": tfkd_reg,
    "tfkd_self": tfkd_self,
    "tfkd_label_smoothing": tfkd_label_smoothing,
    "ttm": ttm,
    "wttm": ttm,
    "sdd_kd": sdd,
    "sdd_dkd": sdd,
    "sdd_nkd": sdd,
    "sdd_kd_maps": sdd_maps,
    "nkd": nkd,
    "nkd_sdd": nkd,
    "uskd": uskd,
    "lskd_dkd": lskd_dkd,
    "mlkd_cc": mlkd,
    "mlkd_bc": mlkd,
    "dkd_mmrazor": dkd_mmrazor,
    "wsld_mmrazor": wsld_mmrazor,
    "kl_mmrazor": kl_mmrazor,
    "cat_kd": cat_kd,
    "patient_kd_logits": patient_kd_logits,
    "tinybert_logits": tinybert_logits,
    "distilbert": distilbert,
}
