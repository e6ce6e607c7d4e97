"""`python -m lit_distill.train experiment=<name>`: compose the config, build, train, and leave a run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn

from lit_distill import artifacts
from lit_distill._cli import command, quiet_lightning
from lit_distill._files import write_text
from lit_distill.callbacks import Interrupted
from lit_distill.checkpoints import read_checkpoint
from lit_distill.data import ImageFolderDataModule
from lit_distill.diagnosis import diagnose
from lit_distill.module import DistillModule
from lit_distill.resume import ResumePoint, find_resume_point, hand_on, handed_on, wait_for_first_process


def run(config: DictConfig) -> dict[str, Any]:
    """Train what a composed config describes and write its run folder.

    Args:
        config: the composed ``train.yaml``, with ``run_dir`` set.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: the config describes something that cannot be trained; nothing has been written then but the config.
    """
    started = time.perf_counter()
    started_at = datetime.now(timezone.utc)
    point = _begin(config)
    folder = point.folder
    if point.finished:
        results: dict[str, Any] = json.loads((folder / artifacts.RESULTS_FILE).read_text())
        return results
    seed_everything(config.seed, workers=True, verbose=False)
    # first the data: what its config lacks is not to be told of the models, which take it from there
    datamodule: LightningDataModule = instantiate(config.data, _convert_="all")
    module = build_module(config)
    callbacks: list[Callback] = [instantiate(c) for c in config.callbacks.values() if c is not None]
    loggers = [instantiate(c) for c in config.logger.values() if c is not None]
    plugins = [instantiate(config.checkpoint_io), *instantiate(config.trainer.get("plugins") or [])]
    trainer: Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers, plugins=plugins)
    if trainer.is_global_zero:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=False))

    checkpoint = next((c for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    results = {
        "experiment": _experiment_name(),
        "started": started_at.isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": artifacts.versions(),
        "interrupted": False,
    }
    if config.doctor and not config.ckpt_path and trainer.is_global_zero:
        _look_first(module, datamodule)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
    except Interrupted as end:
        if trainer.is_global_zero:
            results |= _reached(trainer, checkpoint, started) | {"interrupted": end.signal.name}
            artifacts.write_json(folder / artifacts.RESULTS_FILE, results)
        wait_for_first_process()
        raise
    if not trainer.is_global_zero:
        return {}
    results |= _reached(trainer, checkpoint, started)
    best_path = checkpoint.best_model_path if checkpoint is not None else ""
    if best_path and Path(best_path).is_file():  # on_error=warn may never have written it
        stored = read_checkpoint(best_path)
        state = artifacts.state_of(stored, module.student)
    else:
        state = module.models[module.student].state_dict()
    artifacts.write_student(folder, state, _card(config, module, datamodule, results))
    artifacts.write_json(folder / artifacts.RESULTS_FILE, results)  # the last file: it says that the run is finished
    show_summary(Console(), module, results, folder)
    return results


def _look_first(module: DistillModule, datamodule: LightningDataModule) -> None:
    """Print what a quick diagnosis finds; it costs a few samples of each model, and nothing of the training changes."""
    diagnosis = diagnose(module, datamodule, samples=4, validation_samples=16)
    console = Console()
    for finding in diagnosis.findings:
        console.print(f"[yellow]look:[/yellow] {finding}", soft_wrap=True, highlight=False)
    if diagnosis.findings:
        console.print("(python -m lit_distill.doctor with the same arguments tells more; doctor=false leaves this out)")


def _begin(config: DictConfig) -> ResumePoint:
    """Where the run begins; ``run_dir`` and ``ckpt_path`` of the config say so from here on."""
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume is auto or null, came {config.resume!r}; a file is given by ckpt_path=<file>")
    if config.resume and config.ckpt_path:
        raise ValueError("resume=auto finds its checkpoint itself: leave out resume or ckpt_path")
    begun = Path(config.run_dir).absolute()
    point = handed_on()
    if point is None:
        point = ResumePoint(begun, None, False, "")
        if config.resume:
            hydra = HydraConfig.get() if HydraConfig.initialized() else None
            named = hydra is None or hydra.mode != RunMode.RUN or any("run.dir=" in o for o in hydra.overrides.hydra)
            point = find_resume_point(config, begun, siblings=not named)
            _tell(point.message)
        hand_on(point)
    if begun != point.folder and begun.is_dir() and not any(begun.iterdir()):
        with suppress(OSError):  # another process of the job may have removed it
            begun.rmdir()
    config.run_dir = str(point.folder)
    if point.checkpoint is not None:
        config.ckpt_path = str(point.checkpoint)
    return point


@rank_zero_only
def _tell(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)


def _reached(trainer: Trainer, checkpoint: ModelCheckpoint | None, started: float) -> dict[str, Any]:
    final = _figures(trainer.callback_metrics)
    return {
        "final": final,
        "best": _best_figures(checkpoint) or final,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(time.perf_counter() - started, 1),
    }


def build_module(config: DictConfig) -> DistillModule:
    """The DistillModule of a composed config: its models, terms, optimizer and schedule.

    Raises:
        ValueError: a frozen model has no weights, or the module refuses what it is given.
    """
    if not config.models:
        raise ValueError("the config names no models; choose an experiment, such as experiment=dml_pptsmv2")
    models: dict[str, nn.Module] = {}
    moved = {node.get("teacher") for node in config.callbacks.values() if node and "EMATeacher" in str(node._target_)}
    for name, node in config.models.items():
        if name in config.frozen and name not in moved and "pretrained" in node and not node.pretrained:
            raise ValueError(
                f"{name} is frozen but has no weights: give models.{name}.pretrained=<file> (.safetensors, .ckpt, .pth "
                f"or .pdparams), for example the student.safetensors of a run that trained it; "
                "a random network teaches nothing"
            )
        models[str(name)] = instantiate(node)
        report = getattr(models[str(name)], "load_report", None)
        if report is not None:
            Console().print(f"{name}: {report}", highlight=False, soft_wrap=True)
        if name in config.frozen and report is not None and not report.complete:
            raise ValueError(f"{name} is frozen but its weights file does not fill it:\n{report}")
    return DistillModule(
        models=models,
        losses=_terms(config.losses),
        val_losses=_terms(config.val_losses) if config.val_losses else None,
        frozen=list(config.frozen),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        student=config.student,
        replaced_frozen=list(config.replaced_frozen),
    )


def _terms(node: DictConfig) -> dict[str, Any]:
    return {str(name): instantiate(term, _convert_="all") for name, term in node.items()}


def _figures(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(metrics.items()) if name.startswith(("train/", "val/"))}


def _best_figures(checkpoint: ModelCheckpoint | None) -> dict[str, float]:
    """The validation figures of the epoch that the best checkpoint was saved in."""
    if checkpoint is None or not Path(checkpoint.best_model_path).is_file():
        return {}
    stored = read_checkpoint(checkpoint.best_model_path)
    return {"epoch": stored["epoch"] + 1, **stored["lit_distill"]["figures"]}


def _card(
    config: DictConfig, module: DistillModule, datamodule: LightningDataModule, results: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model": OmegaConf.to_container(config.models[module.student], resolve=True),
        "initialised": artifacts.loaded_from(module.models[module.student]),
        "data": OmegaConf.to_container(config.data, resolve=True),
        "class_names": list(getattr(datamodule, "class_names", None) or []),
        "teachers": artifacts.teacher_card(module.named, module.student),
        "losses": {name: repr(term) for name, term in module.composer.terms.items()},
        "figures": results["best"],
        "experiment": results["experiment"],
        "seed": results["seed"],
        "versions": results["versions"],
    }


def _experiment_name() -> str:
    return str(HydraConfig.get().runtime.choices["experiment"]) if HydraConfig.initialized() else ""


def show_summary(console: Console, module: DistillModule, results: dict[str, Any], folder: Path) -> None:
    """Print every model's accuracy, where the run's files are and what to do next."""
    table = Table(title=f"{results['experiment'] or 'run'}: validation at the best epoch of {results['epochs']}")
    table.add_column("model")
    table.add_column("role")
    for column in ("parameters", "top-1", "top-5"):
        table.add_column(column, justify="right")
    for name, model in module.models.items():
        role = "frozen teacher" if name in module.frozen else ("student" if name == module.student else "peer")
        accuracy = [results["best"].get(f"val/{name}/{metric}") for metric in ("top1", "top5")]
        shown = ["" if value is None else f"{100 * value:.2f} %" for value in accuracy]
        table.add_row(name, role, f"{sum(p.numel() for p in model.parameters()):,}", *shown)
    console.print(table)
    here = Path.cwd()
    shown_folder = str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
    console.print(f"trained {results['steps']} steps in {results['seconds']:.0f} s; the run folder is", soft_wrap=True)
    console.print(f"  {shown_folder}", soft_wrap=True, highlight=False)
    console.print("next: distill from what was trained here, for example")
    console.print(f"  {next_command(module, shown_folder)}", soft_wrap=True, highlight=False)


def next_command(module: DistillModule, folder: str) -> str:
    """A command that goes on from this run: distil from its best teacher, or go mutual with a student alone."""
    kind = "image" if isinstance(module.trainer.datamodule, ImageFolderDataModule) else "pptsmv2"  # type: ignore[attr-defined]
    peers = [name for name in module.models if name != module.student and name not in module.frozen]
    if peers:
        weights = f"{folder}/checkpoints/best.ckpt#{peers[0]}"
        return f"python -m lit_distill.train experiment=kd_{kind} models.Teacher.pretrained='{weights}'"
    return f"python -m lit_distill.train experiment=dml_{kind}"


@command("train")
def main(config: DictConfig) -> float | None:
    """Train an experiment; with `-m` and a sweeper the value to optimise is returned."""
    quiet_lightning()
    config.run_dir = HydraConfig.get().runtime.output_dir
    results = run(config)
    value = results.get("best", {}).get(f"val/{config.student}/top1")
    return None if value is None else float(value)


if __name__ == "__main__":
    main()
