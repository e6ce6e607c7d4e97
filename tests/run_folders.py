"""Run folders for tests of what comes after training: made in a second, with everything that a run leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lit_distill._command.arguments import OF_A_RUN
from lit_distill._command.command import conf_dir
from lit_distill.checkpoints import write_checkpoint
from lit_distill.data import write_video
from lit_distill.models.identity import state_of
from lit_distill.runs import artifacts

CLASSES = ("jump", "run", "swim")
VIDEOS = [  # frames, frames a second, height, width: all lengths, rates and shapes that training may not have had
    (20, 25, 48, 64), (5, 10, 48, 64), (12, 50, 64, 48), (33, 25, 32, 96), (9, 25, 40, 40), (70, 30, 48, 64),
    (3, 5, 32, 32),
]  # fmt: skip


def composed(command: str, *overrides: str) -> DictConfig:
    """The config of a command as its command line gives it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, OF_A_RUN.overrides(overrides))


def video_root(root: Path) -> Path:
    """Seven videos that look different, with the list test.txt; train.txt and val.txt name the first three."""
    root.mkdir()
    lines = []
    for number, (frames, fps, height, width) in enumerate(VIDEOS):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        pixels[..., number % 3] //= 1 + number
        write_video(root / f"{number}.mp4", pixels, fps=fps)
        lines.append(f"{number}.mp4 {number % 3}\n")
    for name, chosen in (("test.txt", lines), ("train.txt", lines[:3]), ("val.txt", lines[:3])):
        (root / name).write_text("".join(chosen))
    return root


def video_overrides(root: Path) -> list[str]:
    return [
        "experiment=dml_pptsmv2", "data=video_list", f"data.root={root}", "+data.test_list=test.txt",
        "data.num_classes=3", "data.num_frames=4", "data.size=28", "+data.scale=32", "data.batch_size=3",
        "+data.num_workers=0", "+data.index=false", f"+data.class_names=[{','.join(CLASSES)}]",
        "preset.student_scale=0.25", "preset.student_depths=[1,1,1,1]", "preset.student_expand=16",
        "preset.teacher_width=0.125",
    ]  # fmt: skip


def write_run(folder: Path, overrides: Sequence[str], *, class_names: Sequence[str] = CLASSES) -> Path:
    """What a run of an experiment with two models leaves, its weights random; ``last.ckpt`` holds others than ``best``.

    A frozen model gets the weights file that ``overrides`` name.
    """
    config = composed("train", *overrides, f"run_dir={folder}")
    states: dict[str, dict[str, Any]] = {}
    for seed, checkpoint in enumerate(("last", "best")):
        torch.manual_seed(seed)
        models = {name: lively(instantiate(node)) for name, node in config.models.items()}
        states[checkpoint] = {
            f"models.{name}.{key}": value
            for name, model in models.items()
            if name not in config.frozen
            for key, value in model.state_dict().items()
        }
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    for checkpoint, state in states.items():
        stored = {"state_dict": state, "pytorch-lightning_version": "2.6.0", "epoch": 0}
        write_checkpoint(stored, folder / "checkpoints" / f"{checkpoint}.ckpt")
    for name in config.frozen:
        models[name] = instantiate(config.models[name])
    card = {
        "model": OmegaConf.to_container(config.models.Student, resolve=True),
        "input": OmegaConf.to_container(config.inputs, resolve=True).get("Student"),  # type: ignore[union-attr]
        "data": OmegaConf.to_container(config.data, resolve=True),
        "class_names": list(class_names),
        "teachers": artifacts.teacher_card(models, "Student"),
    }
    artifacts.write_student(folder, state_of({"state_dict": states["best"]}, "Student"), card)
    artifacts.write_json(folder / "results.json", {"experiment": "dml_pptsmv2"})
    return folder


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Random weights that tell inputs apart: statistics as after training, a wide last layer."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.normal_(0.0, 3.0)
    last.bias.zero_()
    return model


def environment() -> dict[str, str]:
    """Of a command that is run as a user would."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
