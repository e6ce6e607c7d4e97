"""Adapters from golden cases to losses of queues and tokens, and to those without data, by family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_distill.losses import (
    Example,
    MiniLMv2Loss,
    QueueRelationLoss,
    TinyBERTLoss,
    TokenRelationLoss,
    dafl_loss,
    queue_relation_loss,
)
from lit_distill.losses.response.dafl import Activation
from parity.harness import Case, LossAdapter, LossInputs, call


def lightly_v1_loss(case: Case, inputs: LossInputs) -> Tensor:
    temperature = float(case.hyper.get("temperature", 0.07))
    return queue_relation_loss(inputs["student"], inputs["teacher"], inputs["queue"], temperature=temperature)


def _step(inputs: LossInputs, prefix: str, suffix: str, temperature: float) -> dict[str, Tensor]:
    """One step of the queue: the loss, and the queue after it."""
    queue = inputs["queue"].detach().clone()
    signals = inputs[f"student{suffix}"], inputs[f"teacher{suffix}"].detach()
    loss = QueueRelationLoss(size=len(queue), temperature=temperature)
    loss.build(Example(*signals))
    state = {f"projection.{name}": inputs.params[f"{prefix}.{name}"] for name in ("weight", "bias")}
    return {"loss": call(loss, {**state, "queue.rows": queue}, *signals), "queue_after": queue}


def lightly_v1_step(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    return _step(inputs, "student_projection_head", "", float(case.hyper.get("temperature", 0.07)))


def lightly_v3_step(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    """A queue of global features, and relations between places."""
    made = _step(inputs, "global", "_global", float(case.hyper.get("temperature_global", 0.07)))
    signals = inputs["student_local"], inputs["teacher_local"].detach()
    loss = TokenRelationLoss(temperature=float(case.hyper.get("temperature_local", 0.07)))
    loss.build(Example(*signals))
    state = {f"projection.{name}": inputs.params[f"local.{name}"] for name in ("weight", "bias")}
    local = call(loss, state, *signals)
    total = made["loss"] + float(case.hyper.get("loss_local_weight", 1.0)) * local
    return {"loss": total, "term_global": made["loss"], "term_local": local, "queue_after": made["queue_after"]}


def tinybert(case: Case, inputs: LossInputs) -> dict[str, Tensor]:
    """The last of each k layers of the teacher teaches; embeddings are hidden states."""
    scores, states = ({s: inputs.levels(f"{s}_{kind}") for s in ("student", "teacher")} for kind in ("att", "rep"))
    count = len(scores["student"])
    assert len(scores["teacher"]) % count == 0
    assert case.hyper.get("student_layers", count) == count
    step = len(scores["teacher"]) // count
    teacher = [scores["teacher"][(n + 1) * step - 1] for n in range(count)]
    teacher += [states["teacher"][n * step] for n in range(count + 1)]
    signals = [*scores["student"], *states["student"]], teacher
    state = {f"regression.projectors.0.{name}": inputs.params[f"fit_dense.{name}"] for name in ("weight", "bias")}

    def part(attention: float, hidden: float) -> Tensor:
        loss = TinyBERTLoss(attention=attention, hidden=hidden)
        loss.build(Example(*signals))
        return call(loss, state, *signals)

    return {"loss": part(1.0, 1.0), "term_att": part(1.0, 0.0), "term_rep": part(0.0, 1.0)}


def minilmv2(case: Case, inputs: LossInputs) -> Tensor:
    """Their relations are pairs of 1, 2 and 3 for queries, keys and values, with a weight each."""
    relations = case.hyper.get("relations") or {"1,1": 1 / 3, "2,2": 1 / 3, "3,3": 1 / 3}
    loss = MiniLMv2Loss(
        relation_heads=int(case.hyper["relation_heads"]),
        pairs=[[int(n) - 1 for n in str(pair).strip("()").split(",")] for pair in relations],
        weights=list(relations.values()),
    )
    ours, theirs = ([inputs[f"{side}_{name}"] for name in "qkv"] for side in ("student", "teacher"))
    mask = inputs["attention_mask"] if "attention_mask" in inputs.inputs else None
    value: Tensor = loss(ours, theirs, mask=mask)
    return value


def _dafl(case: Case, inputs: LossInputs, logits: Tensor, feature: Tensor, name: str) -> Tensor:
    weights: dict[str, Any] = dict.fromkeys(("one_hot", "entropy", "activation"), 0.0)
    weights[name] = float(case.hyper.get("loss_weight", 1.0))
    form: Activation = "abs" if case.hyper.get("norm_type", "abs") == "abs" else "norm"
    return dafl_loss(logits, feature, activation_form=form, **weights)


def dafl_onehot(case: Case, inputs: LossInputs) -> Tensor:
    return _dafl(case, inputs, inputs["teacher"], inputs["teacher"].detach(), "one_hot")


def dafl_entropy(case: Case, inputs: LossInputs) -> Tensor:
    return _dafl(case, inputs, inputs["teacher"], inputs["teacher"].detach(), "entropy")


def dafl_activation(case: Case, inputs: LossInputs) -> Tensor:
    return _dafl(case, inputs, torch.zeros(len(inputs["teacher"]), 2).double(), inputs["teacher"], "activation")


ADAPTERS: dict[str, LossAdapter] = {
    "lightly_v1_loss": lightly_v1_loss,
    "lightly_v1_step": lightly_v1_step,
    "lightly_v3_step": lightly_v3_step,
    "tinybert": tinybert,
    "minilmv2": minilmv2,
    "dafl_onehot": dafl_onehot,
    "dafl_entropy": dafl_entropy,
    "dafl_activation": dafl_activation,
}
