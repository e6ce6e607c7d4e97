"""The plain Student's accuracy in the embedded benchmark, measured before: what a run's own is held against.

``plain.json`` is written by ``python benchmarks/strategies.py --plain`` from a comparison. Without it nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf

from lit_distill.models.shipped import is_shipped, read_card
from lit_distill.runs.artifacts import read_json
from lit_distill.runs.resume import differing

FILE: Final = Path(__file__).with_name("plain.json")
_SAME_SAMPLES = (
    "root",
    "seed",
    "num_workers",
    "prefetch",
    "cache",
    "cache_gb",
    "cache_dir",
    "index",
    "eval_batch_size",
)
"""Keys of data that change no sample of a training but by the seed."""
_AMOUNT = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
)


def settings_of(config: DictConfig) -> dict[str, Any]:
    """What the accuracy of a config's Student depends on beside the method and the seed, as plain data."""

    def part(name: str) -> dict[str, Any]:
        found = OmegaConf.to_container(config[name], resolve=True)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}

    student = part("models")["Student" if config.student == "best" else config.student]
    weights = student.get("pretrained")
    return {
        "data": {key: value for key, value in part("data").items() if key not in _SAME_SAMPLES},
        "student": student,
        "weights": read_card(weights)["sha256"] if weights and is_shipped(weights) else weights,
        "optimizer": part("optimizer"),
        "scheduler": part("scheduler"),
        "trainer": {key: value for key, value in part("trainer").items() if key in _AMOUNT},
    }


def plain_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``plain.json`` keeps of a comparison: the reference's accuracies, and the settings that they belong to.

    Raises:
        ValueError: a run of the reference is missing, or there is one seed.
    """
    runs = record["strategies"][record["reference"]]["runs"]
    if len(runs) < 2 or any(run["top1"] is None for run in runs):
        raise ValueError(f"the plain reference needs two or more finished runs of {record['reference']}")
    return {
        "command": record["command"],
        "date": record["date"],
        "version": record["versions"]["lit_distill"],
        "seeds": record["seeds"],
        "validation": [round(run["val_top1"], 4) for run in runs],
        "test": [round(run["top1"], 4) for run in runs],
        "settings": record["settings"],
    }


def gain_lines(config: DictConfig, results: Mapping[str, Any]) -> list[str]:
    """What a run's Student gains over the plain one of the same settings; or that none was measured for them."""
    student = results.get("student", config.student)
    top1 = results.get("best", {}).get(f"val/{student}/top1")
    if top1 is None:
        return []
    known = read_json(FILE)
    if not known:
        return []
    keys = sorted(differing(known["settings"], settings_of(config)))
    if "data._target_" in keys:
        return [
            "no plain reference was measured on these data; python -m lit_distill.compare measures what a method gains"
        ]
    if keys:
        also = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        return [
            f"no plain reference was measured for these settings ({', '.join(keys[:3])}{also} differ); python -m "
            "lit_distill.compare measures what the method gains on them"
        ]
    values = known["validation"]
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return [
        f"the plain student of these settings has {mean:.1f} ± {spread:.1f} % on validation ({len(values)} seeds, "
        f"lit_distill {known['version']}, {known['date']}), this run {100 * top1:.1f} %: "
        f"{100 * top1 - mean:+.1f} points{_share(config, results['best'], 100 * top1, mean)}"
    ]


def _share(config: DictConfig, best: Mapping[str, float], top1: float, plain: float) -> str:
    """How much of the way from the plain Student to the best frozen Teacher a run has gone, all in percent."""
    reached = {name: 100 * best[f"val/{name}/top1"] for name in config.frozen if f"val/{name}/top1" in best}
    name = max(reached, key=lambda name: reached[name], default=None)
    if name is None or reached[name] <= plain:
        return ""
    return f", {100 * (top1 - plain) / (reached[name] - plain):.0f} % of the way to {name}'s {reached[name]:.1f} %"
