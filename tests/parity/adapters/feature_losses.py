"""Adapters from golden cases to the library's feature losses, by family.

Every one of them reads the case's hyperparameters, and fills in what a source takes for granted.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses.base import Example
from lit_distill.losses.feature.afd import AFDLoss, afd_loss
from lit_distill.losses.feature.attention_transfer import attention_transfer_loss
from lit_distill.losses.feature.distance import distance_loss
from lit_distill.losses.feature.factor_transfer import factor_transfer_loss
from lit_distill.losses.feature.fitnet import fitnet_loss
from lit_distill.losses.feature.fsp import fsp_loss
from lit_distill.losses.feature.nst import nst_loss
from lit_distill.losses.feature.overhaul import OverhaulLoss, overhaul_margin, partial_l2
from lit_distill.losses.feature.regression import Projector, RegressionLoss, Scale
from lit_distill.losses.feature.vid import VIDLoss
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


ADAPTERS: dict[str, LossAdapter] = {
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
