"""Adapters from golden cases to the library's relation losses, by family.

Each reads the case's hyperparameters under any of their published names, and fills in what a source takes for granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import (
    Example,
    ICKDLoss,
    ITRDLoss,
    SRDLoss,
    correlation_loss,
    dist_plus_loss,
    ickd_loss,
    kd_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_loss,
    srd_loss,
    sskd_aux_loss,
    sskd_loss,
)
from parity.harness import Case, LossAdapter, LossInputs, call

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


def ickd_torchdistill(case: Case, inputs: LossInputs) -> Tensor:
    """Divided by the batch size once more; pairs have weights of their own."""
    students, teachers = inputs.levels("student"), inputs.levels("teacher")
    weights = case.hyper.get("pair_weights") or [1] * len(students)
    return torch.stack(
        [w * ickd_loss(s, t) / len(s) for w, s, t in zip(weights, students, teachers, strict=True)]
    ).sum()


def ickd_official(case: Case, inputs: LossInputs) -> Tensor:
    """Their connector is a convolution of any kernel and batch normalization; the teacher's is never used."""
    convolution = inputs.params["embed_s.conv2d.weight"]
    loss = ICKDLoss(kernel=convolution.shape[-1])
    loss.build(Example(inputs["student"], inputs["teacher"]))
    loss.train(case.hyper.get("bn_mode", "train") == "train")
    names = {"embed_s.conv2d": "connectors.0.0", "embed_s.l2norm": "connectors.0.1"}
    return call(loss, _renamed(inputs.params, names), inputs["student"], inputs["teacher"])


def _renamed(params: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The parameters whose names begin with a key, under ours; what ours has no use for stays away."""
    return {
        ours + name[len(theirs) :]: value
        for name, value in params.items()
        for theirs, ours in names.items()
        if name.startswith(theirs + ".")
    }


def _logits_kl(inputs: LossInputs, temperature: float) -> Tensor:
    """KL without T²."""
    return kd_loss(inputs["student_logits"], inputs["teacher_logits"], temperature=temperature) / temperature**2


def srd_torchdistill(case: Case, inputs: LossInputs) -> Tensor:
    """Features are standardized by the models; the KL is a mean over samples, or any other of torch."""
    student, teacher = inputs["student"], inputs["teacher"]
    value = srd_loss(student, teacher, exponent=float(case.hyper.get("exponent", 4.0)), bn_eps=None)
    scale = {
        "batchmean": 1.0,
        "sum": float(len(student)),
        "mean": 1 / inputs["student_logits"].shape[1],
    }[case.hyper.get("reduction", "batchmean")]
    return 2 * value + scale * _logits_kl(inputs, float(case.hyper.get("temperature", 1.0)))


def srd_official(case: Case, inputs: LossInputs) -> Tensor:
    assert not case.hyper.get("bn_affine", False)
    assert case.hyper.get("bn_mode", "train") == "train"
    loss = SRDLoss(exponent=case.hyper.get("exponent", 4), bn_eps=case.hyper.get("bn_eps", 1e-4))
    value = _projected(loss, inputs, {"embed": "projection"})
    return 2 * value + _logits_kl(inputs, float(case.hyper.get("T", 1.0)))


def srd_deit(case: Case, inputs: LossInputs) -> Tensor:
    loss = SRDLoss(
        form="correlations",
        exponent=case.hyper.get("exponent", 4),
        bn_eps=case.hyper.get("bn_eps", 0.0),
        eps=case.hyper.get("eps", 1e-5),
    )
    return _projected(loss, inputs, {"embed": "projection"})


def _itrd(case: Case, inputs: LossInputs, correlation: float, mutual: float) -> Tensor:
    loss = ITRDLoss(alpha=case.hyper.get("alpha_it", 1.5), correlation=correlation, mutual=mutual)
    return _projected(loss, inputs, {"embed.linear": "projection"})


def itrd_correlation(case: Case, inputs: LossInputs) -> Tensor:
    return _itrd(case, inputs, correlation=1.0, mutual=0.0)


def itrd_mutual(case: Case, inputs: LossInputs) -> Tensor:
    return _itrd(case, inputs, correlation=0.0, mutual=1.0)


def _projected(loss: SRDLoss | ITRDLoss, inputs: LossInputs, names: Mapping[str, str]) -> Tensor:
    """A loss of one feature a network, whose projector is the case's, if it has one."""
    signals, state = (inputs["student"], inputs["teacher"]), _renamed(inputs.params, names)
    if not state:
        loss.projector = None
    loss.build(Example(*signals))
    return call(loss, state, *signals)


def dist_plus(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    """torchdistill's names, and its form, which adds the correlation of channels."""
    names = {"beta": "beta", "gamma": "gamma", "iota": "iota", "kappa": "kappa", "tau": "temperature", "eps": "eps"}
    given: dict[str, Any] = {o: float(case.hyper[t]) for t, o in names.items() if t in case.hyper}
    sides = [[inputs[side], inputs[f"{side}_feat"]] for side in ("student", "teacher")]

    def part(**weights: float) -> Tensor:
        chosen: dict[str, Any] = given | dict.fromkeys(("beta", "gamma", "iota", "kappa"), 0.0) | weights
        return dist_plus_loss(sides[0], sides[1], eps_form="floor", added=True, **chosen)

    logits = part(**{name: given.get(name, 1.0) for name in ("beta", "gamma")})
    total = dist_plus_loss(sides[0], sides[1], eps_form="floor", added=True, **given)
    return {
        "loss": total,
        "term_channel_as_added": part(iota=1.0),
        "term_spatial": part(kappa=1.0),
        "term_dist": logits,
    }


def sskd_aux(case: Case, inputs: LossInputs) -> Tensor:
    value = sskd_aux_loss(inputs["teacher_ss"])
    views = len(inputs["teacher_ss"]) * 3 // 4
    return value * {"mean": 1, "sum": views}[case.hyper.get("reduction", "mean")]


def sskd(case: Case, inputs: LossInputs) -> Tensor:
    names = {
        "kl_temp": "temperature",
        "ss_temp": "contrast_temperature",
        "tf_temp": "transformed_temperature",
        "ss_ratio": "contrast_share",
        "tf_ratio": "transformed_share",
    }
    given: dict[str, Any] = {ours: case.hyper[theirs] for theirs, ours in names.items() if theirs in case.hyper}
    parts = ("labels", "originals", "contrast", "transformed")
    given |= dict(zip(parts, case.hyper.get("loss_weights") or (), strict=False))
    student, teacher = ([inputs[side], inputs[f"{side}_ss"]] for side in ("student", "teacher"))
    return sskd_loss(student, teacher, inputs["target"], **given)


ADAPTERS: dict[str, LossAdapter] = {
    "sskd_aux": sskd_aux,
    "sskd": sskd,
    "ickd_torchdistill": ickd_torchdistill,
    "ickd_official": ickd_official,
    "srd_torchdistill": srd_torchdistill,
    "srd_official": srd_official,
    "srd_deit": srd_deit,
    "itrd_correlation": itrd_correlation,
    "itrd_mutual": itrd_mutual,
    "dist_plus": dist_plus,
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
