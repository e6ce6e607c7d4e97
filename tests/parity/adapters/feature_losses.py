"""Adapters from golden cases to the library's feature losses, by family.

Every one of them reads the case's hyperparameters, and fills in what a source takes for granted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses.base import Example
from lit_distill.losses.feature._prompts import overlap, prompted_masks
from lit_distill.losses.feature.ab import ab_loss
from lit_distill.losses.feature.afd import AFDLoss, afd_loss
from lit_distill.losses.feature.affinity import affinity_loss
from lit_distill.losses.feature.attention_transfer import attention_transfer_loss
from lit_distill.losses.feature.cross_kd import CrossKDLoss
from lit_distill.losses.feature.cwd import cwd_loss
from lit_distill.losses.feature.diffkd import DiffKDLoss
from lit_distill.losses.feature.distance import distance_loss
from lit_distill.losses.feature.factor_transfer import factor_transfer_loss
from lit_distill.losses.feature.fbkd import FBKDLoss
from lit_distill.losses.feature.fitnet import fitnet_loss
from lit_distill.losses.feature.freekd import FreeKDLoss
from lit_distill.losses.feature.fsp import fsp_loss
from lit_distill.losses.feature.kta import kta_loss
from lit_distill.losses.feature.maskd import MasKDLoss, make_head
from lit_distill.losses.feature.mgd import MGDLoss
from lit_distill.losses.feature.norm import norm_loss
from lit_distill.losses.feature.nst import nst_loss
from lit_distill.losses.feature.overhaul import OverhaulLoss, overhaul_margin, partial_l2
from lit_distill.losses.feature.pad import PADLoss, pad_loss
from lit_distill.losses.feature.pefd import PEFDLoss
from lit_distill.losses.feature.pkd import Resize, pkd_loss
from lit_distill.losses.feature.regression import Projector, RegressionLoss, Scale, regression_loss, scaled
from lit_distill.losses.feature.vid import VIDLoss
from lit_distill.losses.feature.vitkd import ViTKDLoss
from lit_distill.losses.response.kd import kd_loss
from lit_distill.losses.response.quality_focal import quality_focal_loss
from parity.harness import Case, LossAdapter, LossInputs, call


def _features(inputs: LossInputs, name: str) -> Tensor | list[Tensor]:
    """``student``, or its levels ``student0``, ``student1``, …."""
    return inputs[name] if name in inputs.inputs else inputs.levels(name)


def _is_mean_over_batch(case: Case) -> bool:
    """Of the two OverHaul sources mdistiller averages over the batch, the authors leave it to their trainer."""
    return str(case.meta["reference"]["repo"]) == "mdistiller"


def _load(loss: nn.Module, params: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Put the case's parameters into ``loss``, in double precision; ``names``: prefix there to prefix here."""
    loss.double()
    state = loss.state_dict()
    for name, value in params.items():
        prefix = max((p for p in names if name.startswith(p)), key=len)
        key = names[prefix] + name[len(prefix) :]
        assert state[key].shape == value.shape, f"{name}: {tuple(value.shape)} for {key} {tuple(state[key].shape)}"
        state[key] = value
    loss.load_state_dict(state)


def _at(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = _features(inputs, "student"), _features(inputs, "teacher")
    return attention_transfer_loss(student, teacher, p=int(case.hyper.get("p", 2)))


def _at_paper(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = _features(inputs, "student"), _features(inputs, "teacher")
    return attention_transfer_loss(
        student, teacher, p=int(case.hyper.get("p", 2)), mode=case.hyper.get("mode", "paper")
    )


def _nst(case: Case, inputs: LossInputs) -> Tensor:
    return nst_loss(_features(inputs, "student"), _features(inputs, "teacher"))


def _factor_transfer(case: Case, inputs: LossInputs) -> Tensor:
    p1, p2 = int(case.hyper.get("p1", 2)), int(case.hyper.get("p2", 1))
    return factor_transfer_loss(inputs["student"], inputs["teacher"], p1=p1, p2=p2)


def _fitnet_hint(case: Case, inputs: LossInputs) -> Tensor:
    return fitnet_loss(_features(inputs, "student"), _features(inputs, "teacher"))


def _vid(case: Case, inputs: LossInputs) -> Tensor:
    given = {name: case.hyper[name] for name in ("mid_channels", "init_pred_var", "eps") if name in case.hyper}
    loss = VIDLoss(**given)
    loss.build(Example(inputs["student"], inputs["teacher"]))
    _load(loss, inputs.params, {"log_scale": "log_scales.0", "regressor.": "regressors.0."})
    value: Tensor = loss(inputs["student"], inputs["teacher"])
    return value


def _fsp(case: Case, inputs: LossInputs) -> Tensor:
    def layers(name: str) -> list[Tensor]:
        ends = [f"{name}_bottom", f"{name}_top"]
        return [inputs[end] for end in ends] if ends[0] in inputs.inputs else inputs.levels(name)

    return fsp_loss(layers("student"), layers("teacher"))


def _ofd_margin(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    return {"margin": overhaul_margin(inputs["bn_weight"], inputs["bn_bias"])}


def _ofd_partial_l2(case: Case, inputs: LossInputs) -> Tensor:
    total = partial_l2(inputs["student"], inputs["teacher"], inputs["margin"])
    return total / len(inputs["student"]) if _is_mean_over_batch(case) else total


def _ofd_full(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = inputs.levels("student"), [t.detach() for t in inputs.levels("teacher")]
    norms = []
    for weight, bias in zip(inputs.levels("teacher_bn_weight"), inputs.levels("teacher_bn_bias"), strict=True):
        norm = nn.BatchNorm2d(len(weight)).double().requires_grad_(False)
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
        norms.append(norm)
    loss = OverhaulLoss(divisor=1.0, pool_teacher=_is_mean_over_batch(case))
    loss.build(Example(student, teacher, teacher_modules=tuple(norms)))

    margins = {k: v.reshape(-1) for k, v in inputs.params.items() if k.startswith("margin")}
    for i, ours in enumerate(loss.margins, start=1):
        torch.testing.assert_close(ours, margins.get(f"margin{i}", ours).float(), rtol=2e-5, atol=1e-6)
    params = {k: v for k, v in inputs.params.items() if k not in margins}
    params |= {f"margin{int(k[6:]) - 1}": v for k, v in margins.items()}
    _load(loss, params, {"Connectors.": "connectors.", "connectors.": "connectors.", "margin": "margin"})
    loss.train(case.hyper.get("bn_mode", "train") == "train")
    per_sample: Tensor = loss(student, teacher)
    return per_sample if _is_mean_over_batch(case) else per_sample * len(student[0])


def _afd(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = inputs.levels("student"), inputs.levels("teacher")
    loss = AFDLoss(qk_dim=int(case.hyper["qk_dim"]))
    loss.build(Example(student, teacher))
    names = {"attention.p_t": "teacher_positions", "attention.p_s": "student_positions"}
    for theirs, ours in (("linear", "0"), ("bn", "1")):
        names[f"attention.linear_trans_s.bilinear.{theirs}."] = f"bilinear.{ours}."
        for i in range(len(student)):
            names[f"attention.linear_trans_s.key_layer.{i}.{theirs}."] = f"keys.{i}.{ours}."
        for i in range(len(teacher)):
            names[f"attention.linear_trans_t.query_layer.{i}.{theirs}."] = f"queries.{i}.{ours}."
    _load(loss, inputs.params, names)
    loss.train(case.hyper.get("bn_mode", "train") == "train")
    value: Tensor = loss(student, teacher)
    return value


def _pc_afd(case: Case, inputs: LossInputs) -> Tensor:
    """PaddleClas gives one student value a unique teacher shape, and says by n_t which is whose."""
    values = inputs.levels("student_value")
    shapes = [tuple(shape) for shape in case.hyper.get("t_shapes", [])]
    unique = list(dict.fromkeys(shapes))
    n_t = case.hyper.get("n_t", [unique.index(shape) for shape in shapes])
    return afd_loss(
        [values[n] for n in n_t],
        inputs.levels("teacher_value"),
        keys=inputs["bilinear_key"],
        queries=inputs["query"],
        student_positions=inputs.params["p_s"],
        teacher_positions=inputs.params["p_t"],
    )


def _pc_distance(case: Case, inputs: LossInputs) -> Tensor:
    return distance_loss(
        inputs["student"],
        inputs["teacher"],
        mode=case.hyper.get("mode", "l2"),
        activation=case.hyper.get("act"),
        delta=float(case.hyper.get("delta", 1.0)),
    )


def _at_mmrazor(case: Case, inputs: LossInputs) -> Tensor:
    return float(case.hyper.get("loss_weight", 1.0)) * attention_transfer_loss(inputs["student"], inputs["teacher"])


def _vkd_loss(projector: Projector | None) -> RegressionLoss:
    return RegressionLoss(projector=projector, scale="layer_norm", distance="smooth_l1", pooled=True)


def _vkd(case: Case, inputs: LossInputs) -> Tensor:
    """The projection is an input, of pooled tokens."""
    projected = F.linear(inputs["student_tokens"], inputs["projection"])
    value: Tensor = float(case.hyper.get("alpha", 1.0)) * _vkd_loss(None)(projected, inputs["teacher"])
    return value


def _vkd_orthogonal(case: Case, inputs: LossInputs) -> Tensor:
    loss = _vkd_loss("orthogonal")
    signals = inputs["student_tokens"], inputs["teacher"]
    loss.build(Example(*signals))
    state = {name.replace("projector.", "projectors.0."): value for name, value in inputs.params.items()}
    return float(case.hyper.get("alpha", 1.0)) * call(loss, state, *signals)


def _vkd_detection(case: Case, inputs: LossInputs) -> Tensor:
    """Rows of the student against maps or tokens of the teacher, group by group."""
    loss = RegressionLoss(projector=None, scale="standardized", scale_student=True, distance="smooth_l1", eps=0.0)
    total = []
    for name in (name.removeprefix("student_") for name in inputs.inputs if name.startswith("student_")):
        teacher = inputs[f"teacher_{name}"].detach()
        is_map = name.startswith("patch") and teacher.ndim == 4
        rows = (teacher.movedim(1, -1) if is_map else teacher).flatten(0, -2)
        total.append(loss(inputs[f"student_{name}"], rows))
    return torch.stack(total).sum()


def _lightly_v2(case: Case, inputs: LossInputs) -> Tensor:
    """Teacher blocks are concatenated at the last one's size."""
    assert case.hyper.get("n_projection_layers", 1) == 1
    levels = [level.detach() for level in inputs.levels("teacher")]
    size = levels[-1].shape[2:]
    teacher = torch.cat([F.interpolate(level, size, mode="bilinear") for level in levels], dim=1)
    loss = RegressionLoss()
    loss.build(Example(inputs["student"], teacher))
    state = {f"projectors.0.{name}": inputs.params[f"head.mlp.{name}"] for name in ("weight", "bias")}
    return call(loss, state, inputs["student"], teacher)


def _patient_kd(case: Case, inputs: LossInputs) -> Tensor:
    scale: Scale | None = "length" if case.hyper.get("normalized_patience", True) else None
    value: Tensor = RegressionLoss(projector=None, scale=scale, scale_student=True)(
        inputs["student"], inputs["teacher"]
    )
    return value


def _ab_torchdistill(case: Case, inputs: LossInputs) -> Tensor:
    """A sum of pairs, and without ``mean`` of samples."""
    student, teacher = inputs.levels("student"), inputs.levels("teacher")
    weights = case.hyper.get("pair_weights", [1] * len(student))
    margin = float(case.hyper.get("margin", 1.0))
    pairs = zip(weights, student, teacher, strict=True)
    loss = torch.stack([weight * ab_loss(s, t, margin=margin) for weight, s, t in pairs]).sum()
    return loss if case.hyper.get("reduction", "mean") == "mean" else loss * len(student[0])


def _ab_repdistiller(case: Case, inputs: LossInputs) -> Tensor:
    """The last of n layers has weight 1, each before it half."""
    student, teacher = (
        [x] if isinstance(x, Tensor) else x for x in (_features(inputs, "student"), _features(inputs, "teacher"))
    )
    margin = float(case.hyper.get("margin", 1.0))
    levels = [ab_loss(s, t, margin=margin) for s, t in zip(student, teacher, strict=True)]
    return 3 / 1000 * torch.stack([x / 2 ** (len(levels) - 1 - i) for i, x in enumerate(levels)]).sum()


def _ab_mmrazor(case: Case, inputs: LossInputs) -> Tensor:
    loss = ab_loss(inputs["student"], inputs["teacher"], margin=float(case.hyper.get("margin", 1.0)))
    return float(case.hyper.get("loss_weight", 1.0)) * 3 / 1000 * loss


def _pad(case: Case, inputs: LossInputs) -> Tensor:
    """The log-variance is an input, or what the branch of the case's parameters gives."""
    student, eps = inputs["student"], float(case.hyper.get("eps", 1e-6))
    scale = 1 if case.hyper.get("reduction", "mean") == "mean" else len(student)
    if "log_variance" in inputs.inputs:
        return scale * pad_loss(student, inputs["teacher"], inputs["log_variance"], eps=eps)
    loss = PADLoss(eps=eps)
    loss.build(Example(student, inputs["teacher"]))
    loss.train(case.hyper.get("bn_mode", "train") == "train")
    state = {n: x for n, x in loss.double().state_dict().items() if not n.endswith("num_batches_tracked")}
    layers = {"linear": "0", "fc": "0", "bn": "1", "norm": "1"}
    for name, value in inputs.params.items():
        *_, layer, kind = name.split(".")
        state[f"variance.{layers.get(layer, layer)}.{kind}"] = value
    return scale * call(loss, state, student, inputs["teacher"])


def _cwd(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = _features(inputs, "student"), _features(inputs, "teacher")
    loss = cwd_loss(student, teacher, temperature=float(case.hyper.get("tau", 1.0)))
    return float(case.hyper.get("loss_weight", 1.0)) * loss


def _cwd_official(case: Case, inputs: LossInputs) -> Tensor:
    """Of ``channel_mean`` and ``none`` the squared error alone: both compare features that are no probabilities."""
    student, teacher = inputs["student"], inputs["teacher"].detach()
    kind, distance = case.hyper.get("norm_type", "none"), case.hyper.get("divergence", "mse")
    if kind in ("channel", "spatial"):
        return cwd_loss(
            student,
            teacher,
            over="positions" if kind == "channel" else "channels",
            distance=distance,
            temperature=float(case.hyper.get("temperature", 1.0)) if distance == "kl" else 1.0,
        )
    assert distance == "mse"
    if kind == "channel_mean":
        return regression_loss(student.mean(dim=(2, 3)), teacher.mean(dim=(2, 3)))
    return regression_loss(student[:1], teacher[:1]) * student.shape[1] / len(student)


def _pkd(case: Case, inputs: LossInputs) -> Tensor:
    resize: Resize = "student" if case.hyper.get("resize_stu", True) else "teacher"
    loss = pkd_loss(_features(inputs, "student"), _features(inputs, "teacher"), resize=resize)
    return float(case.hyper.get("loss_weight", 1.0)) * loss


def _kta(case: Case, inputs: LossInputs) -> Tensor:
    """Averaged over features, too, where p is 1; without ``mean`` a sum over samples."""
    p, q = int(case.hyper.get("p", 1)), int(case.hyper.get("q", 2))
    student = inputs["student"]
    samples = 1 if case.hyper.get("reduction", "mean") == "mean" else len(student)
    features = student[0].numel() if p == 1 and samples == 1 else 1
    return samples / features * kta_loss(student, inputs["teacher"], p=p, q=q)


def _affinity(case: Case, inputs: LossInputs) -> Tensor:
    samples = 1 if case.hyper.get("reduction", "mean") == "mean" else len(inputs["student"])
    return samples * affinity_loss(inputs["student"], inputs["teacher"], of="channels")


def _pefd(case: Case, inputs: LossInputs) -> Tensor:
    """Paddle's linear layers are the other way round."""
    student, teacher = inputs["student"], inputs["teacher"]
    if case.hyper.get("mode", "flatten") == "flatten":
        student, teacher = student.flatten(1), teacher.flatten(1)
    loss = PEFDLoss(projectors=int(case.hyper.get("num_projectors", 3)))
    loss.build(Example(student, teacher))
    names = {name: name.replace("projectors.", "layers.").replace(".conv", "") for name in inputs.params}
    return call(loss, {names[name]: x.mT if x.ndim == 2 else x for name, x in inputs.params.items()}, student, teacher)


def _norm(case: Case, inputs: LossInputs) -> Tensor:
    assert inputs["student"].shape[1] == int(case.hyper.get("co_sponge", 8)) * inputs["teacher"].shape[1]
    return norm_loss(inputs["student"], inputs["teacher"].detach())


def _maskd(case: Case, inputs: LossInputs) -> Tensor:
    student, teacher = inputs.levels("student"), inputs.levels("teacher")
    warmup = case.hyper.get("custom_mask_warmup", 1000)
    loss = MasKDLoss(
        tokens=int(case.hyper.get("num_tokens", 6)),
        weighted=bool(case.hyper.get("weight_mask", True)),
        student_mask=bool(case.hyper.get("custom_mask", True)),
        frozen=False,
        diversity=0.0,
    )
    loss.build(Example(student, teacher))
    loss.set_epoch(loss.warmup_epochs if case.hyper.get("iteration", 0) >= warmup else 0.0)
    names = {
        "mask_token": "prompts.{}",
        **{f"prob.{n}.{x}": f"heads.{{}}.{n}.{x}" for n in (0, 2) for x in ("weight", "bias")},
    }
    state = {}
    for name, value in inputs.params.items():
        _, level, rest = name.split(".", 2)
        state[names[rest].format(level)] = value
    return float(case.hyper.get("loss_weight", 1.0)) * call(loss, state, student, teacher)


def _maskd_tokens(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    """What the tokens learn beforehand: masks that differ, on features that the teacher still understands."""
    masks = prompted_masks(inputs.params["mask_token"], inputs["teacher"])
    weighted = masks
    if case.hyper.get("weight_mask", True):
        head = make_head(len(inputs["teacher"][0]), masks.shape[1]).double()
        state = {n.removeprefix("prob."): x for n, x in inputs.params.items() if n.startswith("prob.")}
        weighted = masks * call(head, state, inputs["teacher"]).softmax(dim=1)
    return {"loss": overlap(masks).mean(), "masked": inputs["teacher"] * weighted.sum(dim=1, keepdim=True)}


def _freekd(case: Case, inputs: LossInputs) -> Tensor:
    """The first prompts are those of low frequencies, which nothing uses."""
    assert case.hyper.get("wavelet", "haar") == "haar"
    student, teacher = inputs.levels("student"), inputs.levels("teacher")
    prompts, levels = int(case.hyper.get("num_tokens", 2)), int(case.hyper.get("levels", 3))
    loss = FreeKDLoss(prompts=prompts, levels=levels, frozen=False, diversity=0.0)
    loss.build(Example(student, teacher))
    state = {f"tokens.{n}": inputs.params[f"mask_modules.{n}.mask_token"][1:] for n in range(len(student))}
    return float(case.hyper.get("loss_weight", 1.0)) * call(loss, state, student, teacher)


def _vitkd(case: Case, inputs: LossInputs) -> Tensor:
    """The draw is an input, of which the smallest are kept."""
    student = [*inputs["student_low"].unbind(1), inputs["student_high"]]
    teacher = [*inputs["teacher_low"].unbind(1), inputs["teacher_high"]]
    loss = ViTKDLoss(
        alpha=float(case.hyper.get("alpha_vitkd", 3e-5)),
        beta=float(case.hyper.get("beta_vitkd", 3e-6)),
        ratio=float(case.hyper.get("lambda_vitkd", 0.5)),
    )
    loss.build(Example(student, teacher))
    hidden = loss._hidden_by(inputs["uniform"].detach())
    loss._draw_hidden = lambda tokens: hidden  # type: ignore[method-assign]
    names = {f"align2.{n}.": f"projectors.{n}." for n in range(len(student) - 1)} | {
        "align.": f"projectors.{len(student) - 1}.",
        "generation.": "generation.",
    }
    state = {"token": inputs.params["mask_token"].flatten()}
    for theirs, ours in names.items():
        state |= {ours + n.removeprefix(theirs): x for n, x in inputs.params.items() if n.startswith(theirs)}
    return call(loss, state, student, teacher)


_FBKD_NAMES = {
    "student.channel_wise_adaptation": "channel",
    "student.spatial_wise_adaptation": "spatial",
    "student.adaptation_layers": "adaptation",
    "student.non_local_adaptation": "relation",
    "student.student_non_local": "student_block",
    "teacher.teacher_non_local": "teacher_block",
}
_FBKD_PARTS = {"g": "value", "theta": "query", "phi": "key", "conv_out.conv": "out.0", "conv_out.bn": "out.1"}


def _fbkd_name(name: str) -> str:
    module = next(prefix for prefix in _FBKD_NAMES if name.startswith(prefix + "."))
    rest, _, kind = name.removeprefix(module + ".").rpartition(".")
    part = rest if rest in _FBKD_PARTS or not rest else rest.split(".")[0]
    return ".".join(["layers.0", _FBKD_NAMES[module], *([_FBKD_PARTS[part]] if part else []), kind])


def _fbkd(case: Case, inputs: LossInputs) -> Tensor:
    """Sub-sampled blocks pool by 2 and then by the stride."""
    hyper = case.hyper
    loss = FBKDLoss(
        mask_weight=float(hyper.get("mask_l2_weight", 7e-5)),
        channel_weight=float(hyper.get("channel_weight", 4e-3)),
        spatial_weight=float(hyper.get("spatial_weight", 4e-3)),
        relation_weight=float(hyper.get("nonlocal_weight", 7e-5)),
        temperature=float(hyper.get("spatial_T", 0.5)),
        reduction=int(hyper.get("reduction", 2)),
        pool=2 * int(hyper.get("maxpool_stride", 2)) if hyper.get("sub_sample", False) else 1,
        affinity=hyper.get("mode", "dot_product"),
    )
    loss.build(Example(inputs["student"], inputs["teacher"]))
    loss.train(hyper.get("bn_mode", "train") == "train")
    state = {_fbkd_name(name): value for name, value in inputs.params.items()}
    return float(hyper.get("loss_weight", 1.0)) * call(loss, state, inputs["student"], inputs["teacher"])


def _crosskd_divisor(case: Case, default: float) -> float:
    """The number of boxes, to which mmdet adds the eps of float32."""
    factor = case.hyper.get("avg_factor")
    return default if factor is None else float(factor) + torch.finfo(torch.float32).eps


def _crosskd_qfl(case: Case, inputs: LossInputs) -> Tensor:
    weights = inputs["label_weight"].detach()
    beta = float(case.hyper.get("beta", 1.0))
    loss = quality_focal_loss(inputs["student"], inputs["teacher"].detach(), mask=weights, beta=beta)
    scale = float(case.hyper.get("loss_weight", 1.0)) * weights.sum()
    return scale / _crosskd_divisor(case, len(weights)) * loss


def _crosskd_kl(case: Case, inputs: LossInputs) -> Tensor:
    student, weights = inputs["student"], inputs["weight"].detach()
    loss = kd_loss(student, inputs["teacher"].detach(), mask=weights, temperature=float(case.hyper.get("T", 1)))
    classes = 1 if case.hyper.get("class_reduction", "mean") == "sum" else student.shape[1]
    scale = float(case.hyper.get("loss_weight", 1.0)) * weights.sum() / classes
    return scale / _crosskd_divisor(case, len(weights)) * loss


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Judge(nn.Module):
    """A loss of predictions as a module."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.function(student, teacher)


class _Crossed(nn.Module):
    """A loss with the teacher's head, so that its parameters are the case's."""

    def __init__(self, layers: list[nn.Module], judge: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.head = nn.Sequential(*layers)
        self.loss = CrossKDLoss(teacher_head="Teacher", loss=_Judge(judge))
        self.loss.build(Example(torch.zeros(1), torch.zeros(1), models={"Teacher": self.head}))

    def forward(self, student: Tensor, hidden: Tensor, prediction: Tensor) -> Tensor:
        value: Tensor = self.loss(student, [hidden, prediction])
        return value


def _crosskd_branch(
    case: Case, inputs: LossInputs, branch: str, last: str, judge: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """One branch of the head of a GFL detector: convolutions with GroupNorm, and the last one."""
    params = inputs.params
    state: dict[str, Tensor] = {}
    layers: list[nn.Module] = []
    groups = re.search(r"GroupNorm\((\d+)\)", str(case.hyper.get("head", "GroupNorm(2)")))
    assert groups
    for number in range(int(case.hyper.get("reused_teacher_head_idx", 3)), int(case.hyper.get("stacked_convs", 4))):
        name = f"head.{branch}_convs.{number}"
        out, into = params[f"{name}.0.weight"].shape[:2]
        state |= {f"head.{len(layers)}.weight": params[f"{name}.0.weight"]}
        state |= {f"head.{len(layers) + 1}.{kind}": params[f"{name}.1.{kind}"] for kind in ("weight", "bias")}
        layers += [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.GroupNorm(int(groups[1]), out), nn.ReLU()]
    out, into = params[f"head.{last}.weight"].shape[:2]
    state |= {f"head.{len(layers)}.{kind}": params[f"head.{last}.{kind}"] for kind in ("weight", "bias")}
    layers.append(nn.Conv2d(into, out, 3, padding=1))
    if branch == "reg":
        state |= {f"head.{len(layers)}.scale": params["scale"]}
        layers.append(_Scale())
    prediction = inputs["teacher_cls_score" if branch == "cls" else "teacher_bbox_pred"].detach()
    hidden = inputs[f"teacher_{branch}_hold"].detach()
    return call(_Crossed(layers, judge), state, inputs[f"student_{branch}_hold"], hidden, prediction)


def _crosskd_gfl(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    """Boxes are distributions of their four sides, weighed by the teacher's best class."""
    hyper, labelled = case.hyper, inputs["label_weight"].detach().flatten()
    score = inputs["teacher_cls_score"].detach()
    confidence = score.sigmoid().amax(dim=1).flatten() * (labelled != 0)
    bins = int(hyper.get("reg_max", 16)) + 1
    eps = torch.finfo(torch.float32).eps

    def of_classes(student: Tensor, teacher: Tensor) -> Tensor:
        rows = [x.movedim(1, -1).flatten(0, -2) for x in (student, teacher)]
        loss = quality_focal_loss(*rows, mask=labelled, beta=float(hyper.get("beta", 1.0)))
        return loss * labelled.sum() / _crosskd_divisor(case, len(labelled))

    def of_sides(student: Tensor, teacher: Tensor) -> Tensor:
        rows = [x.movedim(1, -1).reshape(-1, bins) for x in (student, teacher)]
        loss = kd_loss(*rows, mask=confidence.repeat_interleave(4), temperature=float(hyper.get("reg_T", 1)))
        return loss * 4 / (4 + eps) / (1 if hyper.get("class_reduction", "sum") == "sum" else bins)

    classes = _crosskd_branch(case, inputs, "cls", "gfl_cls", of_classes) * float(hyper.get("cls_loss_weight", 1.0))
    sides = _crosskd_branch(case, inputs, "reg", "gfl_reg", of_sides) * float(hyper.get("reg_loss_weight", 4.0))
    return {"loss": classes + sides, "term_cls": classes, "term_reg": sides}


def _fcfd(case: Case, inputs: LossInputs) -> Tensor:
    """Sums of terms: divergences of logits, of the student and of mixed networks, and errors of bridged features."""
    temperature, epoch = float(case.hyper.get("T", 4.0)), float(case.hyper.get("epoch", 20))
    teacher = inputs["teacher"].detach()
    total = F.cross_entropy(inputs["student"], inputs["target"])
    for logits in (inputs["student"], *inputs.levels("student_mix")):
        total = total + kd_loss(logits, teacher, temperature=temperature)
    stages = [stage.detach() for stage in inputs.levels("teacher_stage")]
    errors = []
    for number, stage in enumerate(stages):
        for feature in inputs.levels(f"student_stage{number}_"):
            errors.append(regression_loss(feature, stage))
            if number == len(stages) - 1:
                errors.append(regression_loss(*(x.relu().mean(dim=(2, 3)) for x in (feature, stage))))
    weight = float(case.hyper.get("weight_l2", 5.0)) * min(1.0, (epoch + 1) / 20)
    return total + weight * torch.stack(errors).sum()


def _norm_logits(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    factor = float(case.hyper.get("ceta", 2.5))
    student, teacher = (factor * scaled(inputs[name], "layer_norm", eps=1e-7) for name in ("student", "teacher"))
    ce = F.cross_entropy(student, inputs["target"])
    kd = kd_loss(student, teacher, temperature=float(case.hyper.get("kd_T", 4.0)))
    return {"loss": ce + kd, "term_ce": ce, "term_kd": kd}


_DIFFKD_NAMES = {
    "trans.": "adapter.0.",
    "model.time_embedding.": "denoiser.times.",
    "model.pred.": "denoiser.layers.",
    "noise_adapter.feat.": "share.0.layers.",
    "noise_adapter.pred.": "share.0.head.",
    "proj.": "projector.",
    "ae.": "",
}


def _diffkd(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    """The draws are inputs."""
    student, teacher = inputs["student"], inputs["teacher"].detach()
    kernel_size: Any = int(case.hyper.get("kernel_size", 3))
    given = dict(inputs.params)
    kept = given.pop("buf.alphas_cumprod", None)
    state = {}
    for name, value in given.items():
        prefix = next(prefix for prefix in _DIFFKD_NAMES if name.startswith(prefix))
        state[_DIFFKD_NAMES[prefix] + name.removeprefix(prefix)] = value

    def draw(latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, other = (inputs[name].detach().reshape(latent.shape) for name in ("noise", "ddim_noise"))
        return noise, other, inputs["timesteps"]

    def of(**weights: float) -> Tensor:
        loss = DiffKDLoss(
            steps=int(case.hyper.get("inference_steps", 5)),
            latent=int(case.hyper["ae_channels"]) if case.hyper.get("use_ae") else None,
            kernel_size=kernel_size,
            distance="kl" if kernel_size == 1 else "mse",
            temperature=float(case.hyper.get("tau", 1.0)),
            **{f"{name}_weight": weights.get(name, 0.0) for name in ("denoised", "noise", "reconstruction")},
        )
        loss.build(Example(student, teacher))
        if kept is not None:
            torch.testing.assert_close(loss.kept.double(), kept, rtol=1e-6, atol=1e-9)
        loss.train(case.hyper.get("bn_mode", "train") == "train")
        loss._draw = draw  # type: ignore[method-assign]
        own = {name: value.clone() if "running" in name else value for name, value in state.items()}
        return call(loss, own, student, teacher)

    kd, noise, reconstruction = of(denoised=1.0), of(noise=1.0), of(reconstruction=1.0)
    terms = {"term_kd": kd, "term_diffusion": noise, "term_ae": reconstruction, "term_rec": reconstruction}
    return {"loss": kd + noise + reconstruction, **terms}


def _mgd(case: Case, inputs: LossInputs) -> Tensor:
    """The draw is an input: a value above 1 - λ is masked."""
    ratio = float(case.hyper.get("lambda_mgd", 0.65))
    loss = MGDLoss(
        alpha=float(case.hyper.get("alpha_mgd", 2e-5)),
        mask_ratio=ratio,
        mask="channel" if case.hyper.get("mask_on_channel", False) else "spatial",
    )
    loss.build(Example(inputs["student"], inputs["teacher"]))
    kept = (inputs["uniform"].detach() <= 1 - ratio).double()
    loss._draw_mask = lambda features: kept  # type: ignore[method-assign]
    state = {name.removeprefix("connector."): value for name, value in inputs.params.items()}
    return call(loss, state, inputs["student"], inputs["teacher"])


ADAPTERS: dict[str, LossAdapter] = {
    "ab": _ab_repdistiller,
    "ab_torchdistill": _ab_torchdistill,
    "ab_mmrazor": _ab_mmrazor,
    "pad_l2": _pad,
    "cwd": _cwd,
    "cwd_official": _cwd_official,
    "pkd": _pkd,
    "kta": _kta,
    "affinity": _affinity,
    "pefd": _pefd,
    "norm_n_to_one": _norm,
    "maskd": _maskd,
    "maskd_tokens": _maskd_tokens,
    "freekd": _freekd,
    "vitkd": _vitkd,
    "fbkd": _fbkd,
    "crosskd_qfl": _crosskd_qfl,
    "crosskd_kl": _crosskd_kl,
    "crosskd_gfl": _crosskd_gfl,
    "fcfd": _fcfd,
    "norm_logits": _norm_logits,
    "diffkd": _diffkd,
    "mgd": _mgd,
    "at": _at,
    "at_paper": _at_paper,
    "nst": _nst,
    "factor_transfer": _factor_transfer,
    "fitnet_hint": _fitnet_hint,
    "vid": _vid,
    "fsp": _fsp,
    "ofd_margin": _ofd_margin,
    "ofd_partial_l2": _ofd_partial_l2,
    "ofd_full": _ofd_full,
    "afd": _afd,
    "pc_afd": _pc_afd,
    "pc_distance": _pc_distance,
    "at_mmrazor": _at_mmrazor,
    "vkd": _vkd,
    "vkd_orthogonal": _vkd_orthogonal,
    "vkd_detection": _vkd_detection,
    "lightly_v2_step": _lightly_v2,
    "patient_kd": _patient_kd,
}
