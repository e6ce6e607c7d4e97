"""What `train` does: it trains what a config describes, and leaves a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lit_distill._command.overrides import typed_overrides
from lit_distill._screen import Screen
from lit_distill.runs.artifacts import read_results
from lit_distill.runs.resume import clear_run_environment, locate_run, print_on_rank_zero, resolve_environment
from lit_distill.training.fit import build_module, fit
from lit_distill.training.plain import gain_lines
from lit_distill.training.preset import describe_weight, set_preset_start, set_preset_weights
from lit_distill.training.run_stages import run_stages
from lit_distill.training.stages import stages_of
from lit_distill.training.summary import show_summary

__all__ = ["build_module", "main", "run"]


def run(config: DictConfig) -> dict[str, Any]:
    """Train what a composed config describes, with ``run_dir`` set, and write its run folder.

    Returns:
        The content of ``results.json``; nothing on ranks other than the first.

    Raises:
        ValueError: the config describes something that cannot be trained; nothing has been written then but the config.
    """
    try:
        return _run(config)
    finally:
        clear_run_environment()


def _run(config: DictConfig) -> dict[str, Any]:
    lines = set_preset_start(config)
    point = locate_run(config)
    if point.finished:
        return read_results(point.folder)
    stages = stages_of(config)
    for stage in stages:
        lines += [f"stage {stage.name}: {line}" for line in set_preset_start(stage.config)]
    for line in lines:
        print_on_rank_zero(line)
    if stages:
        return run_stages(config, stages, point)
    fitted = fit(config)
    if fitted.results:
        show_summary(Screen(), fitted.module, fitted.results, Path(config.run_dir), gain_lines(config, fitted.results))
    return fitted.results


def main(config: DictConfig) -> float | None:
    """Train an experiment; with `-m` and a sweeper the value to optimise is returned."""
    hydra, typed = HydraConfig.get(), typed_overrides()
    config.run_dir = hydra.runtime.output_dir
    resolve_environment(config, typed)
    for term, weight in set_preset_weights(config, typed).items():
        Screen().print(f"weight of {term}, from the data's preset: {describe_weight(weight)}", highlight=False)
    results = run(config)
    value = results.get("best", {}).get(f"val/{config.student}/top1")
    return None if value is None else float(value)
