"""The step of overhead.py by torchdistill's own box, from a configuration of its own shape; imported where it is there.

Its data wrapper, procedures, cross-entropy and optimizer are used as they come. It has no loss of deep mutual learning:
the term is the very module of the other variants in its wrapper.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from torchdistill.core.distillation import DistillationBox
from torchdistill.losses.mid_level import SimpleLossWrapper
from torchdistill.misc.log import MetricLogger, SmoothedValue

from lit_distill.losses import DMLLoss


def term(criterion: dict[str, Any], *, of_teacher: bool) -> dict[str, Any]:
    """A `sub_term` between a network's answer and the labels, weight 1."""
    answer = {"is_from_teacher": of_teacher, "module_path": ".", "io": "output"}
    wrapper = {"key": "SimpleLossWrapper", "kwargs": {"input": answer, "target": {"uses_label": True}}}
    return {"criterion": criterion, "criterion_wrapper": wrapper, "weight": 1.0}


def box(student: nn.Module, teacher: nn.Module, loader: DataLoader[Any]) -> Any:
    """A stage that trains both networks by CE + CE + DML and SGD on the same batches."""
    cross_entropy = {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}}
    of_student, of_teacher = (
        {"is_from_teacher": is_teacher, "module_path": ".", "io": "output"} for is_teacher in (False, True)
    )
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": SequentialSampler},
            "kwargs": {"batch_size": loader.batch_size},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "ce": term(cross_entropy, of_teacher=False),
                    "ce_teacher": term(cross_entropy, of_teacher=True),
                    "dml": {
                        "criterion": SimpleLossWrapper(DMLLoss(), input=of_student, target=of_teacher),
                        "weight": 1.0,
                    },
                }
            },
        },
    }
    return DistillationBox(
        teacher, student, {"train": loader.dataset}, config,
        device=torch.device("cpu"), device_ids=None, distributed=False, lr_factor=1,
    )  # fmt: skip


def run(
    student: nn.Module, teacher: nn.Module, loader: DataLoader[Any], *, metrics: bool
) -> tuple[float, list[Tensor]]:
    """CPU seconds a step, and the losses; with `metrics`, as its examples train: loss, rate and pace in its meters."""
    trained = box(student, teacher, loader)
    trained.pre_epoch_process(epoch=0)
    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    batches = trained.train_data_loader
    times, losses = [], []
    for inputs, target, extra in meters.log_every(batches, 50, "Epoch: [0]") if metrics else batches:
        begun = time.time()
        loss = trained.forward_process(inputs, target, extra)
        trained.post_forward_process(loss=loss)
        if metrics:
            meters.update(loss=loss.item(), lr=trained.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(inputs) / (time.time() - begun))
        times.append(time.process_time())
        losses.append(loss.detach())
    return (times[-1] - times[0]) / (len(times) - 1), losses
