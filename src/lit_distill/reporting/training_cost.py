"""Where a training step of an untrusted run spends its time and memory, measured again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_distill.diagnosis.cost import Cost, measure
from lit_distill.runs.run import Run
from lit_distill.training.fit import build_module, with_noise
from lit_distill.untrusted.building import build
from lit_distill.untrusted.networks import held_to
from lit_distill.untrusted.showing import short_errors

_NAMED = (
    "models", "losses", "val_losses", "data_free", "optimizer", "scheduler", "balance",
    "frozen", "student", "inputs", "candidates", "replaced_frozen", "train_only", "start", "fresh",
    "frozen_weights",
)  # fmt: skip


def training_cost(run: Run, *, steps: int, data: Mapping[str, Any] | None = None) -> Cost:
    """Time training steps of a run on this CPU, after one to warm up; nothing of the run changes.

    Raises:
        ValueError: the config names what is not admitted, or something that cannot be trained.
        FileNotFoundError: the data or a weights file is not there.
    """
    folder = run.folder if run.stage is None else run.stage
    config = run.config
    # callbacks are named, not built: its name says whether one updates a frozen model
    callbacks = {key: node for key, node in (config.get("callbacks") or {}).items() if isinstance(node, Mapping)}
    tree = {key: config.get(key) for key in _NAMED} | {"callbacks": callbacks, "run_dir": str(folder.absolute())}
    tree |= {key: tree[key] or [] for key in ("frozen", "fresh", "replaced_frozen", "train_only")}
    tree["allow_random_teacher"] = config.get("allow_random_teacher", True)  # older runs were not asked
    trainer = config.get("trainer") or {}

    def built(node: Any, **_: str) -> Any:
        return build(node, allow=run.allow, run_dir=folder, weights_bytes=size)

    size = run.weights_bytes
    with held_to(size, str(folder)), short_errors():
        module = build_module(tree, build=built)
    for name, network in module.models.items():
        run.within_memory(name, network)
    held = run.data(**{str(key): value for key, value in (data or {}).items()})
    return measure(
        module, with_noise({"seed": 0, **config}, held), steps=steps,
        epochs=max(1, int(trainer.get("max_epochs") or 1)), accumulate=int(trainer.get("accumulate_grad_batches") or 1),
    )  # fmt: skip
