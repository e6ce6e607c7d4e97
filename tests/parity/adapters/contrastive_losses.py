"""Adapters from golden cases to knowledge review and contrastive representation distillation, by family."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_distill.losses.base import Example
from lit_distill.losses.feature.review_kd import review_kd_loss
from lit_distill.losses.relation.crd import CRDLoss
from parity.harness import Case, LossAdapter, LossInputs


def review_hcl(case: Case, x: LossInputs) -> Tensor:
    students, teachers = x.levels("student"), x.levels("teacher")
    settings = {name: case.hyper[name] for name in ("levels",) if name in case.hyper}
    if students:
        return review_kd_loss(students, teachers, **settings)
    return review_kd_loss(x["student"], x["teacher"], **settings)


def crd(case: Case, x: LossInputs) -> dict[str, Tensor]:
    """Two calls in training: the first sets the normalisers and moves the banks, the second scores against those."""
    names = {"feat_dim": "embedding_dim", "nce_k": "negatives", "nce_t": "temperature", "nce_m": "momentum"}
    settings = {ours: case.hyper[theirs] for theirs, ours in names.items() if theirs in case.hyper}
    # The published module keeps these two in a float32 tensor.
    settings |= {n: torch.tensor(settings[n]).item() for n in ("temperature", "momentum") if n in settings}
    loss = CRDLoss(**settings, dataset_size=case.hyper.get("n_data", len(x.params["contrast.memory_v1"]))).double()
    loss.build(Example(x["student"], x["teacher"]))
    loss.double().load_state_dict(
        {
            "student_head.weight": x.params["embed_s.linear.weight"],
            "student_head.bias": x.params["embed_s.linear.bias"],
            "teacher_head.weight": x.params["embed_t.linear.weight"],
            "teacher_head.bias": x.params["embed_t.linear.bias"],
            "student_bank": x.params["contrast.memory_v1"],
            "teacher_bank": x.params["contrast.memory_v2"],
            "classes": loss.classes,
            "log_normalizers": loss.log_normalizers,
        }
    )
    contrast = x["contrast_idx"]
    target = [x["idx"], torch.zeros(len(x["idx"]), dtype=torch.long)]
    first = loss(x["student"], x["teacher"], target, contrast)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    second = loss(x["student"], x["teacher"], target, contrast)
    return {
        "loss": first,
        "loss_second_call": second,
        "z_params_after_first": torch.cat(
            [
                first.new_tensor([loss.negatives, loss.temperature]),
                state["log_normalizers"].exp(),
                first.new_tensor([loss.momentum]),
            ]
        ),
        "memory_v1_after_first": state["student_bank"],
        "memory_v2_after_first": state["teacher_bank"],
    }


ADAPTERS: dict[str, LossAdapter] = {"review_hcl": review_hcl, "crd": crd}
