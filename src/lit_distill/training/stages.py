"""A run of several stages: what each of them is, as the config of an ordinary run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_distill.callbacks.exact_resume import seed_of
from lit_distill.runs.names import BEST_CHECKPOINT, LAST_CHECKPOINT, STAGES, STUDENT_FILE

_OWN_KEYS = ("start", "fresh")  # of a stage, besides overrides of the config
_NOT_OVERRIDDEN = ("run_dir", "ckpt_path", "resume", "stages", "generations", "generation", "student_from")
_PROCESSES = ("devices", "num_nodes", "strategy", "accelerator")
_FRESH = "fresh"
_BEST = "@best"


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its place from 1, and the config of a run in the stage's own folder."""

    number: int
    name: str
    config: DictConfig

    @property
    def folder(self) -> Path:
        """``stages/<number>_<name>`` in the run folder."""
        return Path(self.config.run_dir)


def stages_of(config: DictConfig) -> list[Stage]:
    """The stages that a composed config describes, with ``run_dir`` set; none for an ordinary run.

    ``stages`` maps names to overrides of the config's own nodes, in order. Mappings are merged; a node that names
    another ``_target_`` replaces; a model, term or stage that is null is left out. Besides, a stage may say

    - ``start``: where a model begins: ``<stage>/<Model>`` as that earlier stage left it, ``<stage>/<Model>@best`` at
      its best validation, or ``fresh``. By default a model begins as the newest earlier stage that trained it left it,
      and as its own config says where there was none.
    - ``fresh``: parts, such as ``Student.temporal_attention``, that are reinitialized in a model that is not.

    Optimizer, schedule, epochs and the losses' own parameters start from scratch in each stage, and so do the random
    numbers: a later stage has its own seed, a function of the run's.

    ``generations=n`` makes n stages instead (born-again networks): in each the Student is reinitialized, and learns
    from ``generation.teacher``, which from the second on is the best Student of the generation before, frozen. The
    first learns without the terms that name the teacher, unless that has weights (``pretrained``). ``generation.first``
    and ``generation.later`` are overrides.

    Raises:
        ValueError: a stage that can't be, and why.
    """
    base: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    plans = {name: plan for name, plan in (base.get("stages") or {}).items() if plan is not None}
    generations = base.get("generations")
    if plans and generations is not None:
        raise ValueError("a run has stages or generations, not both: leave one of them out")
    if generations is not None:
        plans = _generations(base, generations)
    if not plans:
        return []
    if base.get("ckpt_path"):
        raise ValueError(
            "ckpt_path is of an ordinary run; one of several stages is resumed by resume=auto, in its unfinished stage"
        )
    if base.get("student_from", "last") not in ("last", "best"):
        raise ValueError(f"student_from is last or best, got {base['student_from']!r}")
    stages: list[Stage] = []
    places = _Places()
    for number, (name, plan) in enumerate(plans.items(), 1):
        _check(str(name), plan, base)
        tree = _derived(base, plan, number, str(name))
        tree["start"] = places.start(str(name), number, tree, plan.get("start") or {})
        tree["fresh"] = list(plan.get("fresh") or [])
        for model in tree["start"]:
            if "pretrained" in tree["models"][model]:
                tree["models"][model]["pretrained"] = None
        stages.append(Stage(number, str(name), OmegaConf.create(tree)))
    return stages


def first_stage(config: DictConfig) -> DictConfig:
    """The config of what is trained first: that of the first stage, or of the run itself."""
    stages = stages_of(config)
    return stages[0].config if stages else config


def moved_models(callbacks: Mapping[Any, Any]) -> set[str]:
    """Frozen models that a callback of a config moves: EMA teachers, which need no weights and are in checkpoints."""
    return {
        str(node.get("teacher")) for node in callbacks.values() if node and "EMATeacher" in str(node.get("_target_"))
    }


def _generations(base: Mapping[str, Any], count: Any) -> dict[str, dict[str, Any]]:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"generations is a number from 1, got {count!r}")
    plan: Mapping[str, Any] = base.get("generation") or {}
    teacher, student = str(plan.get("teacher", "Teacher")), str(base["student"])
    if teacher == student or student not in base["models"]:
        raise ValueError(f"generation.teacher={teacher} learns from student={student}: name a model, and another one")
    given = (base["models"].get(teacher) or {}).get("pretrained")
    others = [name for name in base["frozen"] if name != teacher]
    first: dict[str, Any] = {"frozen": [*others, teacher]} if given else _without(base, teacher, others)
    own = {key: None if key == "pretrained" else value for key, value in base["models"][student].items()}
    stages = {"generation_1": _merged(first, plan.get("first") or {})}
    for number in range(2, count + 1):
        later = {
            "models": {teacher: own},
            "frozen": [*others, teacher],
            "start": {student: _FRESH, teacher: f"generation_{number - 1}/{student}{_BEST}"},
        }
        stages[f"generation_{number}"] = _merged(later, plan.get("later") or {})
    return stages


def _without(base: Mapping[str, Any], model: str, frozen: list[str]) -> dict[str, Any]:
    """Overrides that leave out a model and the terms that name it."""
    dropped: dict[str, Any] = {"models": {model: None}, "frozen": frozen}
    for kind in ("losses", "val_losses"):
        terms = {name: term for name, term in (base.get(kind) or {}).items() if term is not None}
        named = [name for name, term in terms.items() if model in _models_of(term)]
        if terms and len(named) == len(terms):
            raise ValueError(
                f"the first generation has no {model} yet, and all {kind} name it: add a term on the labels, or give "
                f"weights by models.{model}.pretrained=<file>"
            )
        dropped[kind] = dict.fromkeys(named)
    return dropped


def _models_of(term: Mapping[str, Any]) -> set[str]:
    texts = [term.get("pair"), term.get("target")]
    found = set()
    while texts:
        item = texts.pop()
        if isinstance(item, str):
            found.add(re.split(r"[.:]", item)[0])
        elif isinstance(item, list):
            texts += item
    return found


def _check(name: str, plan: Any, base: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(f"the name of a stage is letters, digits, _ and -, got {name!r}")
    if not isinstance(plan, Mapping):
        raise ValueError(f"stages.{name} is a mapping of overrides, got {plan!r}")
    for key in plan:
        if key in _NOT_OVERRIDDEN:
            raise ValueError(f"stages.{name}.{key}: {key} is the run's, not a stage's")
        if key not in base and key not in _OWN_KEYS:
            raise ValueError(f"stages.{name}.{key}: the config has no {key}; it has {', '.join(map(str, base))}")
    for key in plan.get("trainer") or {}:
        if key in _PROCESSES:
            raise ValueError(f"stages.{name}.trainer.{key}: all stages run in the same processes; give trainer.{key}")


def _derived(base: Mapping[str, Any], plan: Mapping[str, Any], number: int, name: str) -> dict[str, Any]:
    """The config of a stage, without where its models begin."""
    overrides = {key: value for key, value in plan.items() if key not in _OWN_KEYS}
    tree: dict[str, Any] = _merged(base, overrides)
    for kind in ("models", "losses", "val_losses"):
        tree[kind] = {key: node for key, node in (tree.get(kind) or {}).items() if node is not None}
    if tree.get("teacher_cache"):  # it serves the stages that have something frozen, and that stands still
        named, moved = tree["teacher_cache"].get("models"), moved_models(tree["callbacks"])
        still = [name for name in tree["frozen"] if name not in moved]
        kept = still if named is None else [name for name in named if name in still]
        shown = None if named is None else kept
        tree["teacher_cache"] = {**tree["teacher_cache"], "models": shown} if kept else None
    if number > 1 and "seed" not in plan:
        tree["seed"] = seed_of(base["seed"], "stage", number) % 2**31
    tree |= {
        "run_dir": str(Path(base["run_dir"]).absolute() / STAGES / f"{number}_{name}"),
        "resume": None, "stages": {}, "generations": None,
    }  # fmt: skip
    return tree


class _Places:
    """Where earlier stages leave their models, relative to the folder of any stage."""

    def __init__(self) -> None:
        self._stages: dict[str, dict[str, tuple[str | None, str | None]]] = {}  # each model's last and best

    def start(self, stage: str, number: int, tree: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
        """The file that each model of a stage begins from; and what it will leave itself is noted."""
        if unknown := set(given) - set(tree["models"]):
            raise ValueError(f"stages.{stage}.start: {sorted(unknown)} are no models of it: {list(tree['models'])}")
        if stage in self._stages:
            raise ValueError(f"two stages are named {stage}")
        begun = {name: self._begin(stage, name, given.get(name)) for name in tree["models"]}
        folder = f"../{number}_{stage}"
        moved = moved_models(tree["callbacks"])
        self._stages[stage] = {}
        for name in tree["models"]:
            best = f"{folder}/{STUDENT_FILE}" if name == tree["student"] else f"{folder}/{BEST_CHECKPOINT}#{name}"
            learns = name not in tree["frozen"] or name in moved
            left = (f"{folder}/{LAST_CHECKPOINT}#{name}", best) if learns else (begun[name], begun[name])
            self._stages[stage][name] = left
        return {name: place for name, place in begun.items() if place is not None}

    def _begin(self, stage: str, model: str, given: str | None) -> str | None:
        if given is None:
            kept = [models[model][0] for models in self._stages.values() if model in models]
            return next((place for place in reversed(kept) if place is not None), None)
        if given == _FRESH:
            return None
        other, _, name = given.removesuffix(_BEST).partition("/")
        where = f"stages.{stage}.start.{model}={given}"
        if other not in self._stages:
            raise ValueError(f"{where}: expected fresh or <earlier stage>/<Model>; earlier are {list(self._stages)}")
        if name not in self._stages[other]:
            raise ValueError(f"{where}: the stage {other} has no model {name!r}; it has {list(self._stages[other])}")
        place = self._stages[other][name][given.endswith(_BEST)]
        if place is None:
            raise ValueError(
                f"{where}: {name} was frozen there, and is what models.{name}.pretrained says; leave it out"
            )
        return place


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if "_target_" in over and over["_target_"] != base.get("_target_"):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
