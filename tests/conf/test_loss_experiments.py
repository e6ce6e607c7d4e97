"""Every experiment trains for an epoch on the embedded data: finite terms, another student than at the start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_distill._command.command import conf_dir
from lit_distill.runs.names import STUDENT_FILE
from lit_distill.training.fit import build_module
from lit_distill.training.stages import first_stage, stages_of
from lit_distill.training.train import run

# One of each kind: every other one takes its steps in test_configs.py, and leaves its files as these do. Stages are
# trained in training/test_run_stages.py, ensembles in models/test_ensemble.py.
KINDS = [f"{kind}_pptsmv2" for kind in ("ema", "kd_gradnorm", "semi")]
EXPERIMENTS = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(path.stem for path in (conf_dir() / "experiment").glob("*_pptsmv2.yaml"))
]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips are made by whichever experiment comes first, for all of them."""
    return tmp_path_factory.mktemp("clips")


def compose_experiment(name: str, clips: Path, run_dir: Path) -> DictConfig:
    overrides = [
        f"experiment={name}", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1",
        "trainer.log_every_n_steps=1", "callbacks.progress=null", "doctor=false", f"data.root={clips}",
        f"run_dir={run_dir}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides)
    for teacher in config.frozen:  # a frozen model needs weights; of which run is not the question here
        weights = run_dir / f"{teacher}.safetensors"
        run_dir.mkdir(exist_ok=True)
        save_file(instantiate(config.models[teacher]).state_dict(), weights)
        config.models[teacher].pretrained = str(weights)
    return config


def initial_student(config: DictConfig) -> dict[str, Tensor]:
    """The student's parameters as the run starts from them."""
    seed_everything(config.seed, workers=True, verbose=False)
    module = build_module(first_stage(config))
    return {name: value.detach().clone() for name, value in module.models[module.student].named_parameters()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_for_an_epoch(name: str, clips: Path, tmp_path: Path) -> None:
    config = compose_experiment(name, clips, tmp_path / "run")
    stages = [stage.config for stage in stages_of(config)] or [config]
    last = stages[-1]

    results = run(config)

    figures = results["final"]
    wanted = {f"train/{term}" for term in last.losses} | {f"val/{term}" for term in last.val_losses or last.losses}
    wanted |= {"train/loss", "val/loss"} | {f"val/{model}/top1" for model in last.models}
    assert wanted <= figures.keys()
    assert all(math.isfinite(value) for value in figures.values()), figures
    before = initial_student(next(stage for stage in stages if "Student" in stage.models))
    after = load_file(tmp_path / "run" / STUDENT_FILE)
    kept = [key for key in before if key in after and after[key].shape == before[key].shape]
    assert len(kept) >= 0.9 * len(before)
    assert sum(not torch.equal(before[key], after[key]) for key in kept) >= 0.9 * len(kept)
    assert all(value.isfinite().all() for value in after.values())
