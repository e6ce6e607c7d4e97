"""Where a training step of an untrusted run spends its time and memory, measured again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from lit_distill.diagnosis.cost import Cost, measure
from lit_distill.runs.opened import Run
from lit_distill.training.fit import build_module
from lit_distill.untrusted.check import check_targets

_BUILT = ("models", "losses", "val_losses", "optimizer", "scheduler", "balance")
_NAMED = ("frozen", "student", "inputs", "candidates", "replaced_frozen", "train_only", "start", "fresh")


def training_cost(run: Run, *, steps: int, data: Mapping[str, Any] | None = None) -> Cost:
    """Time a few training steps of a run on this machine's CPU; nothing of the run changes.

    Args:
        run: opened by its folder.
        steps: timed ones, after one to warm up.
        data: arguments of the data module to replace, as for :meth:`lit_distill.runs.opened.Run.data`.

    Raises:
        ValueError: the config names what is not admitted, or something that cannot be trained.
        FileNotFoundError: the data or a weights file is not there.
    """
    folder = run.folder if run.stage is None else run.stage
    config = run.config
    parts = check_targets({key: config.get(key) for key in _BUILT}, allow=run.allow, run_dir=folder)
    rest = {key: config.get(key) for key in _NAMED}
    # callbacks are named, not built: its name says whether one updates a frozen model
    callbacks = {key: node for key, node in (config.get("callbacks") or {}).items() if node}
    tree = {**parts, **rest, "callbacks": callbacks, "run_dir": str(folder.absolute())}
    tree["replaced_frozen"], tree["train_only"] = (tree[key] or [] for key in ("replaced_frozen", "train_only"))
    trainer = config.get("trainer") or {}
    module = build_module(OmegaConf.create(tree))
    return measure(
        module, run.data(**{str(key): value for key, value in (data or {}).items()}), steps=steps,
        epochs=max(1, int(trainer.get("max_epochs") or 1)), accumulate=int(trainer.get("accumulate_grad_batches") or 1),
    )  # fmt: skip
