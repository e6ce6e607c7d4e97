"""One training: what a composed config describes is built, trained, and left in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.text import Text
from torch import Tensor, nn

from lit_distill._lightning import starts_command_again
from lit_distill._module.frozen import FrozenModelChanged
from lit_distill._screen import Screen
from lit_distill._version import versions
from lit_distill.callbacks import Interrupted
from lit_distill.checkpoints import read_checkpoint
from lit_distill.data.noise import NoiseData
from lit_distill.data_free import DataFreeModule
from lit_distill.diagnosis.diagnose import diagnose
from lit_distill.models.identity import load_reports, loaded_from, state_of
from lit_distill.models.weights import has_weights, load_weights, weights_files
from lit_distill.module import DistillModule
from lit_distill.runs import artifacts
from lit_distill.runs.names import RESULTS_FILE, STUDENT_FILE
from lit_distill.runs.resume import wait_for_first_process, write_config
from lit_distill.training.stages import moved_models
from lit_distill.training.start_from import start_from
from lit_distill.untrusted.building import with_tensors


@dataclass(frozen=True)
class Fitted:
    """The trained module, its trainer attached, and ``results.json``, empty on ranks but the first."""

    module: DistillModule
    results: dict[str, Any]


def fit(config: DictConfig) -> Fitted:
    """Train what a composed config describes, and leave checkpoints, metrics and the student in ``config.run_dir``.

    Args:
        config: the composed ``train.yaml``; it resumes from ``ckpt_path`` where that is given.

    Raises:
        ValueError: the config describes something that cannot be trained; nothing has been written then but the config.
        ValueError: something wrote to a frozen model; the student is kept, and ``results.json`` says so.
        Interrupted: a signal ended it, with a checkpoint; ``results.json`` says so.
    """
    started = time.perf_counter()
    started_at = datetime.now(UTC)
    folder = Path(config.run_dir)
    seed_everything(config.seed, workers=True, verbose=False)
    # first the data: what its config lacks must not be reported of the models, which take it from there
    datamodule = build_data(config)
    module = build_module(config)
    callbacks: list[Callback] = [instantiate(c) for c in config.callbacks.values() if c is not None]
    if config.teacher_cache:
        callbacks.append(instantiate(config.teacher_cache))
    loggers = [instantiate(c) for c in config.logger.values() if c is not None]
    plugins = [instantiate(config.checkpoint_io), *instantiate(config.trainer.get("plugins") or [])]
    trainer: Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers, plugins=plugins)
    _refuse_processes_in_a_sweep(trainer)
    if trainer.is_global_zero:
        (folder / RESULTS_FILE).unlink(missing_ok=True)  # of a run that stood here before
        write_config(folder, config)

    checkpoint = next((c for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    results: dict[str, Any] = {
        "experiment": _experiment_name(),
        "started": started_at.isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": versions(),
        "interrupted": False,
    }
    if config.doctor and not config.ckpt_path and trainer.is_global_zero:
        _look_first(module, datamodule)
    changed: FrozenModelChanged | None = None
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
    except FrozenModelChanged as error:
        changed = error  # what was trained is kept all the same
    except Interrupted as end:
        if trainer.is_global_zero:
            results |= _reached(trainer, _best(checkpoint), started) | {"interrupted": end.signal.name}
            artifacts.write_results(folder, results)
        wait_for_first_process()
        raise
    if not trainer.is_global_zero:
        if changed is not None:
            raise ValueError(str(changed)) from changed
        return Fitted(module, {})
    stored = _best(checkpoint)
    results |= _reached(trainer, stored, started)
    if changed is not None:
        results["error"] = str(changed)
    if stored is not None:
        module.student = stored["lit_distill"]["student"]  # of several candidates the best one then
        state = state_of(stored, module.student)
    else:
        state = module.models[module.student].state_dict()
    results["student"] = module.student
    artifacts.write_student(folder, state, _card(config, module, datamodule, results))
    artifacts.write_results(folder, results)  # the last file: it says that the run is finished
    if changed is not None:
        raise ValueError(f"{changed}; the student, and the results until then, are in {folder}") from changed
    return Fitted(module, results)


def _refuse_processes_in_a_sweep(trainer: Trainer) -> None:
    """Lightning's launcher starts processes by the sweep's command line: they would train its first job."""
    sweeps = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeps and trainer.world_size > 1 and starts_command_again(trainer):
        raise ValueError(
            f"a job of this sweep trains in {trainer.world_size} processes, which Lightning would start by the command "
            "line of the whole sweep: give each job one device (trainer.devices=1), start the jobs one by one, or "
            "as jobs of SLURM (hydra/launcher=submitit_slurm), whose tasks are the processes"
        )


def _look_first(module: DistillModule, datamodule: LightningDataModule) -> None:
    """Print what a quick diagnosis finds; it costs a few samples of each model, and nothing of the training changes."""
    diagnosis = diagnose(module, datamodule, samples=4, validation_samples=16)
    console = Screen()
    for finding in diagnosis.findings:
        console.print(Text.assemble(("look:", "yellow"), f" {finding}"), soft_wrap=True, highlight=False)
    if diagnosis.findings:
        console.print("(python -m lit_distill.doctor with the same arguments says more; doctor=false leaves this out)")


def _best(checkpoint: ModelCheckpoint | None) -> dict[str, Any] | None:
    """The best checkpoint, where there is one: on_error=warn may never have written it."""
    path = "" if checkpoint is None else checkpoint.best_model_path
    return read_checkpoint(path) if path and Path(path).is_file() else None


def _reached(trainer: Trainer, best: Mapping[str, Any] | None, started: float) -> dict[str, Any]:
    """Metrics of the last epoch and of the one that the best checkpoint was saved in."""
    final = _figures(trainer.callback_metrics)
    return {
        "final": final,
        "best": final if best is None else {"epoch": best["epoch"] + 1, **best["lit_distill"]["figures"]},
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(time.perf_counter() - started, 1),
    }


def build_data(config: Mapping[str, Any]) -> LightningDataModule:
    """The data module of a composed config; where it trains without data, with noise for them."""
    return with_noise(config, instantiate(config["data"], _convert_="all"))


def with_noise(config: Mapping[str, Any], data: LightningDataModule) -> LightningDataModule:
    """The data, or what trains on noise instead where a config has ``data_free``.

    Raises:
        ValueError: a number of ``data_free.noise`` is missing or below 1.
    """
    if not (generated := config.get("data_free")):
        return data
    noise = dict(generated.get("noise") or {})
    if set(noise) != {"size", "batches", "batch_size"}:
        raise ValueError(f"data_free.noise expects size, batches and batch_size, got {', '.join(noise) or 'nothing'}")
    return NoiseData(data, seed=config["seed"], **noise)


def build_module(
    config: Mapping[str, Any],
    *,
    expected: Mapping[str, Mapping[str, Tensor]] | None = None,
    build: Callable[..., Any] = instantiate,
) -> DistillModule:
    """The DistillModule of a composed config: its models, terms, optimizer and schedule.

    Args:
        config: the composed ``train.yaml``, or that of a stage.
        expected: for a check of a stage before there is anything to begin from: what earlier ones will leave, by place.
        build: makes an object of a part of the config, as Hydra's ``instantiate`` does.

    Raises:
        ValueError: a frozen model has no weights, or the module refuses what it is given.
    """
    if not config["models"]:
        raise ValueError("the config names no models; choose an experiment, such as experiment=dml_pptsmv2")
    models: dict[str, nn.Module] = {}
    starts = config.get("start") or {}  # of a stage, see lit_distill.training.stages
    moved = moved_models(config["callbacks"])
    given = {str(name): file for name, file in (config.get("frozen_weights") or {}).items() if file}
    if strangers := sorted(set(given) - set(config["frozen"])):
        raise ValueError(
            f"frozen_weights names {', '.join(strangers)}, but frozen are {', '.join(config['frozen']) or 'no models'}"
        )
    for name, node in config["models"].items():
        without = [key for key, file in weights_files(node).items() if not file]
        needs = name in config["frozen"] and name not in {*moved, *starts, *given}
        needs = needs and not config.get("allow_random_teacher")
        if needs and not without and not has_weights(node):
            raise ValueError(
                f"{name} is frozen, and nothing in its config says where its weights are from: give "
                f"frozen_weights.{name}=<file> (.safetensors, .ckpt, .pth or .pdparams), or allow_random_teacher=true "
                "if it has them already, or is to be random"
            )
        if needs and without:
            wanted = " ".join(f"models.{f'{name}.{key}'.rstrip('.')}.pretrained=<file>" for key in without)
            raise ValueError(
                f"{name} is frozen but has no weights: give {wanted} (.safetensors, .ckpt, .pth or .pdparams), "
                f"for example the {STUDENT_FILE} of a run that trained it; a random network teaches nothing"
            )
        models[str(name)] = build(node)
        if name in given:
            models[str(name)].load_report = load_weights(models[str(name)], str(given[name]))  # type: ignore[assignment]
        if name in starts:
            models[str(name)].load_report = start_from(  # type: ignore[assignment]
                models[str(name)],
                starts[name],
                name=str(name),
                folder=config["run_dir"],
                fresh=config["fresh"],
                expected=None if expected is None else expected[starts[name]],
            )
        for part, report in load_reports(models[str(name)]).items():
            of = f"{name}.{part}".rstrip(".")
            if expected is None:
                Screen().print(f"{of}: {report}", highlight=False, soft_wrap=True)
            if name in config["frozen"] and not report.complete:
                raise ValueError(f"{of} is frozen but its weights file does not fill it:\n{report}")
    kind: Callable[..., DistillModule] = DistillModule
    if generated := config.get("data_free"):
        losses = _terms(config, "data_free.losses", build)
        kind = partial(DataFreeModule, generator_losses=losses, phases=_plain(generated.get("phases")))
    return kind(
        models=models,
        losses=_terms(config, "losses", build),
        val_losses=_terms(config, "val_losses", build) if config["val_losses"] else None,
        frozen=list(config["frozen"]),
        optimizer=build(config["optimizer"]),
        scheduler=build(config["scheduler"]),
        student=config["student"],
        inputs={str(name): _plain(view) for name, view in (config.get("inputs") or {}).items()},
        answer=_plain(config.get("answer")),
        classes=_plain(config.get("classes")),
        batch=_plain(config.get("batch")),
        candidates=None if config["candidates"] is None else list(config["candidates"]),
        replaced_frozen=list(config["replaced_frozen"]),
        train_only=list(config["train_only"]),
        balance=build(config.get("balance")),
        compile=_plain(config.get("compile")),
    )


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _terms(config: Mapping[str, Any], group: str, build: Callable[..., Any]) -> dict[str, Any]:
    terms: dict[str, Any] = {}
    nodes: Any = config
    for key in group.split("."):
        nodes = nodes.get(key) or {}
    for name, node in nodes.items():
        if build is instantiate:  # below its name, which Hydra's errors then have
            named = OmegaConf.create({group: {name: with_tensors(_plain(node))}}, flags={"allow_objects": True})
            node = named[group][name]
        try:
            terms[str(name)] = build(node, _convert_="all")
        except (ValueError, InstantiationException) as error:
            why: BaseException | None = error
            while isinstance(why, InstantiationException):
                why = why.__cause__
            if not isinstance(why, ValueError):
                raise
            raise ValueError(f"term {str(name)!r}: {why}") from error
    return terms


def _figures(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(metrics.items()) if name.startswith(("train/", "val/"))}


def _card(
    config: DictConfig, module: DistillModule, datamodule: LightningDataModule, results: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": module.student,
        "model": OmegaConf.to_container(config.models[module.student], resolve=True),
        "input": None if module.student not in module.inputs else module.inputs[module.student].arguments,
        "initialised": loaded_from(module.models[module.student]),
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
