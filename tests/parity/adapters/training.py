"""Adapters for golden training: some optimizer steps of one network, and one distillation step of two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lit_distill.losses import dml_loss
from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.models.paddle_keys import is_fused_branch
from lit_distill.optim import paddle_momentum
from lit_distill.schedules import WarmupCosine
from parity.harness import Case, CaseAdapter
from parity.rules import Array, build_network, load_rule_weights, rule_video


def check_train_steps(case: Case) -> None:
    """Logits, losses, first gradients, running statistics, learning rates and final weights of a short training."""
    arrays, meta = case.arrays(), case.meta
    network = build_network(meta["config"], batch_norm="published").train()
    load_rule_weights(network)
    settings = meta["optimizer"]
    assert (settings["name"], settings["weight_decay"]["name"]) == ("Momentum", "L2")
    rates = settings["learning_rate"]
    assert rates["name"] == "CustomWarmupCosineDecay"
    base = rates["cosine_base_lr"]
    optimizer = paddle_momentum(
        {"Student": network},
        lr=base,
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"]["value"],
        nesterov=settings["use_nesterov"],
    )
    schedule = WarmupCosine(
        epochs=rates["max_epoch"],
        warmup_epochs=rates["warmup_epochs"],
        warmup_start=rates["warmup_start_lr"] / base,
    )
    scheduler = LambdaLR(optimizer, lambda step: schedule(step / meta["iters_per_epoch"]))

    for step in range(meta["steps"]):
        ordinary = next(group for group in optimizer.param_groups if group["name"] == "Student/weights")
        np.testing.assert_allclose(ordinary["lr"], meta["lrs"][step], rtol=1e-12)
        logits = network(rule_video(meta["input_seeds"][step], meta["input_shape"]))
        loss = _mixed_cross_entropy(logits, *(arrays[f"{name}_{step}"] for name in ("label_a", "label_b", "lam")))
        _close(case, f"logits_{step}", logits, arrays[f"logits_{step}"])
        _close(case, f"loss_{step}", loss, arrays[f"loss_{step}"])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
            _check_summaries(case, network, "grad0_", arrays, gradients)
            _check_summaries(case, network, "buf0_", arrays, network.state_dict())
        optimizer.step()
        scheduler.step()

    _check_summaries(case, network, "final_", arrays, network.state_dict())
    with torch.inference_mode():
        logits = network.eval()(rule_video(meta["eval_seed"], meta["input_shape"]))
    _close(case, "eval_logits_after", logits, arrays["eval_logits_after"])


def check_distill_step(case: Case) -> None:
    """Terms, total, gradients of both networks and metrics of PaddleVideo's mutual learning."""
    arrays, meta = case.arrays(), case.meta
    config = meta["config"]
    depth = int(config["teacher"].split("depth ")[1].split()[0])
    teacher = PPTSMResNet(depth, config["class_num"], config["num_seg"], batch_norm="published").double().eval()
    attention = config["student"].endswith("use_temporal_att=True")
    student = PPTSMv2(config["class_num"], config["num_seg"], temporal_attention=attention, batch_norm="published")
    student = student.double().eval()
    keys = load_rule_weights(teacher, _teacher_key) + load_rule_weights(student, _student_key)
    assert keys == meta["n_keys"]
    with torch.no_grad():
        teacher.fc.weight.mul_(meta["teacher_fc_weight_multiplier"])

    video = rule_video(meta["input_seed"], meta["input_shape"])
    logits = {"student": student(video), "teacher": teacher(video)}
    labels = [arrays[name] for name in ("label_a", "label_b", "lam")]
    terms = {f"ce_{name}": _mixed_cross_entropy(value, *labels) for name, value in logits.items()}
    terms["dml"] = dml_loss(logits["student"], logits["teacher"])
    total = torch.stack(list(terms.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]

    for name, value in {**terms, "train_loss": total}.items():
        _close(case, name, value, arrays[name])
    for name, value in logits.items():
        _close(case, f"{name}_logits", value, arrays[f"{name}_logits"])
    _close(case, "val_loss", F.cross_entropy(logits["student"], _indices(labels[0])), arrays["val_loss"])
    for k in (1, 5):
        hits = [_hits(logits["student"], _indices(label), k) for label in labels[:2]]
        lam = torch.from_numpy(labels[2])
        _close(case, f"train_top{k}", lam * hits[0] + (1 - lam) * hits[1], arrays[f"train_top{k}"])
        _close(case, f"val_top{k}", hits[0], arrays[f"val_top{k}"])
    for network, rename in ((teacher, _teacher_key), (student, _student_key)):
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        checked = _check_summaries(case, network, "grad_", arrays, gradients, rename=rename)
        assert checked, f"{case}: no gradient of {type(network).__name__} was compared"


def _teacher_key(key: str) -> str:
    return f"Teacher.1.{key.removeprefix('head.')}" if key.startswith("head.") else f"Teacher.0.{key}"


def _student_key(key: str) -> str:
    return f"Student.0.{key}"


def _mixed_cross_entropy(logits: Tensor, label_a: Array, label_b: Array, lam: Array) -> Tensor:
    share = float(lam.mean())
    return share * F.cross_entropy(logits, _indices(label_a)) + (1 - share) * F.cross_entropy(logits, _indices(label_b))


def _indices(label: Array) -> Tensor:
    return torch.from_numpy(label.reshape(-1))


def _hits(logits: Tensor, label: Tensor, k: int) -> Tensor:
    return (logits.topk(k).indices == label[:, None]).any(dim=1).double().mean()


def _check_summaries(
    case: Case,
    network: PPTSMv2 | PPTSMResNet,
    prefix: str,
    arrays: Mapping[str, Array],
    tensors: Mapping[str, Tensor | None],
    rename: Callable[[str], str] | None = None,
) -> int:
    """Compare [norm, sum, first 8 values] in Paddle's layout, of every array with this prefix that the network has."""
    names = {rename(key) if rename else key: key for key in _published_names(network)}
    checked = 0
    for array, published in arrays.items():
        key = names.get(array.removeprefix(prefix)) if array.startswith(prefix) else None
        if key is None:
            continue
        native = network.native_key(key)
        assert native is not None
        tensor = tensors[native]
        assert tensor is not None, f"{case}: no gradient for {native}"
        values = (tensor.T if tensor.ndim == 2 else tensor).detach().flatten()
        summary = torch.cat([torch.stack([values.norm(), values.sum()]), values[:8]])
        _close(case, array, summary, published)
        checked += 1
    left = {n.removeprefix(prefix) for n in arrays if n.startswith(prefix)} - names.keys()
    if rename is None:
        assert all(map(is_fused_branch, left)), f"{case}: nothing of ours is {sorted(left)[:3]}"
        unused = (arrays[f"{prefix}{name}"] for name in left if prefix == "grad0_")
        assert not any(array.size for array in unused), f"{case}: the fused branch learns"
    return checked


def _published_names(network: PPTSMv2 | PPTSMResNet) -> Iterable[str]:
    return (key for name in network.state_dict() if (key := network.published_key(name)) is not None)


def _close(case: Case, what: str, ours: Tensor, published: Array) -> None:
    tolerance = case.meta["tolerance"]
    np.testing.assert_allclose(
        ours.detach().numpy().reshape(published.shape),
        published,
        rtol=float(tolerance["rtol"]),
        atol=float(tolerance["atol"]),
        err_msg=f"{case}: {what}",
    )


ADAPTERS: dict[str, CaseAdapter] = {
    "train_steps": check_train_steps,
    "distill_step": check_distill_step,
}
