"""Which runs a comparison is made of, and whether they can be compared: known before the first one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from lit_distill._command.arguments import as_hydra, literal
from lit_distill._command.command import conf_dir
from lit_distill._files import expand_home
from lit_distill.runs.names import STUDENT_FILE
from lit_distill.runs.resume import differing
from lit_distill.training.preset import preset_weights, set_preset_start

_GIVEN = ("experiment", "seed", "hydra.run.dir", "run_dir", "resume", "ckpt_path", "doctor")
_AMOUNT = ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches", "overfit_batches", "max_time")
ACCOUNT = ("+callbacks.account._target_=lit_distill.callbacks.Account", "+callbacks.account.folder=${run_dir}")


@dataclass(frozen=True)
class PlannedRun:
    """One training of a strategy: its absolute folder, and the arguments of `train` that make it."""

    name: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    config: DictConfig = field(repr=False, compare=False)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the command that trains it, here or on from where it was."""
        return (*self.overrides, f"hydra.run.dir={literal(str(self.folder))}", "resume=auto")


@dataclass(frozen=True)
class Strategy:
    """One line of the table: an experiment with its own overrides, and who teaches, in words."""

    name: str
    experiment: str
    own: tuple[str, ...]
    teacher: str
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Attributes:
        teacher: the training of the Teacher that is frozen in others; None if none is, or one was given.
        weights: of the frozen Teacher; None if none is frozen.
        strategies: in their order.
        reference: name of the one that the others are compared with.
        seeds: of the runs.
    """

    teacher: PlannedRun | None
    weights: str | None
    strategies: tuple[Strategy, ...]
    reference: str
    seeds: tuple[int, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Those of the strategies, seed by seed, so that what is done at any time is paired."""
        return tuple(strategy.runs[k] for k in range(len(self.seeds)) for strategy in self.strategies)


def make_plan(config: DictConfig) -> Plan:
    """Compose every run of a composed `compare.yaml` and hold them against each other.

    Raises:
        ValueError: a setting is out of range, an experiment does not exist or is a run of stages or generations, a run
            would differ from the reference's in its data, its Student or its number of updates.
    """
    names, seeds = _names(config.experiments), _seeds(config.seeds)
    reference = names[0] if config.reference is None else str(config.reference)
    for what, unknown in (
        ("reference", {reference} - set(names)),
        ("overrides", set(config.overrides) - set(names)),
        ("variants", set(config.variants) - set(names)),
    ):
        if unknown:
            raise ValueError(f"{what} names {', '.join(sorted(unknown))}, not in experiments=[{','.join(names)}]")
    given = tuple(str(override) for override in config.train)
    for override in given:
        key = override.lstrip("+~").partition("=")[0]
        if key in _GIVEN:
            raise ValueError(f"{key} is what compare sets itself, for each run; leave out {override}")
    folder = expand_home(config.folder).absolute()
    configs = None if config.config_dir is None else expand_home(config.config_dir).absolute()
    if configs is not None:
        if not configs.is_dir():
            raise ValueError(f"--config-dir {config.config_dir} is no folder")
        given = (f"hydra.searchpath=[{literal(f'file://{configs}')}]", *given)
    with _configs():
        known = _experiments(configs)
        found = {name: _experiment(str(config.variants.get(name, name)), config.suffix, known) for name in names}
        owns = {name: tuple(str(override) for override in config.overrides.get(name) or ()) for name in names}
        looks = {
            name: _planned(name, seeds[0], folder / name, found[name], (*given, *owns[name])).config for name in names
        }
        for name, look in looks.items():
            _require_one_training(name, look)
        learns = {name: _needs_weights(config, name, found[name], looks[name]) for name in names}
        teacher, weights = None, None
        if any(learns.values()):
            teacher, weights = _teacher(config, folder, given, known)
        strategies = []
        for name in names:
            weighted = preset_weights(looks[name], (*given, *owns[name]))
            own = (*(f"++losses.{term}.weight={_as_value(weight)}" for term, weight in weighted.items()), *owns[name])
            taught = ("teacher=frozen", f"models.Teacher.pretrained={literal(str(weights))}") if learns[name] else ()
            first = _planned(name, seeds[0], folder / name / f"seed{seeds[0]}", found[name], (*given, *taught, *own))
            runs = (first, *(_of_seed(first, seed) for seed in seeds[1:]))
            strategies.append(Strategy(name, found[name], owns[name], _teacher_text(runs[0]), runs))
    plan = Plan(teacher, weights, tuple(strategies), reference, seeds)
    _require_pairs(plan)
    for run in (*([teacher] if teacher else []), *plan.runs):
        set_preset_start(run.config)  # as its command will, so that a folder is known by its config
    return plan


def _names(given: Any) -> list[str]:
    names = [str(name) for name in given] if isinstance(given, ListConfig) else []
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"experiments is a list of at least two different names, such as [baseline,kd], got {given}")
    if bad := [name for name in names if not name.replace("_", "").replace("-", "").isalnum() or name == "teacher"]:
        raise ValueError(f"experiments are names of letters, digits, - and _, none of them 'teacher', got {bad}")
    return names


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return tuple(range(given))
    seeds = list(given) if isinstance(given, ListConfig) else []
    if not seeds or len(set(seeds)) != len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds is how many (from 0 on), or a list of different ones such as [0,3], got {given}")
    return tuple(seeds)


@contextmanager
def _configs() -> Iterator[None]:
    if GlobalHydra.instance().is_initialized():  # within the command, whose configs are the same folder
        yield
        return
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def _experiments(folder: Path | None) -> list[str]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    own = [] if folder is None else [file.stem for file in (folder / "experiment").glob("*.yaml")]
    return sorted({*hydra.config_loader.get_group_options("experiment"), *own})


def _experiment(name: str, suffix: str, known: Sequence[str]) -> str:
    for candidate in (f"{name}_{suffix}", name):
        if candidate in known:
            return candidate
    short = sorted(option.removesuffix(f"_{suffix}") for option in known)
    raise ValueError(f"there is no experiment {name}_{suffix} or {name}; there are {', '.join(short)}")


def _require_one_training(name: str, look: DictConfig) -> None:
    """Refuse a run of several trainings: its updates and samples are those of no other run."""
    for key in ("stages", "generations"):
        if look[key]:
            raise ValueError(
                f"{name} is a run of several trainings ({key}), and compare pairs runs of equal updates: leave it out, "
                "and train it by itself"
            )


def _needs_weights(config: DictConfig, name: str, experiment: str, look: DictConfig) -> bool:
    """Whether a strategy learns from a trained Teacher: it has one that is no peer and has no weights yet."""
    if not (config.teacher.experiment or config.teacher.weights) or name in config.peers:
        return False
    teacher = look.models.get("Teacher")
    is_peer = experiment.removesuffix(f"_{config.suffix}") in config.peers
    return not is_peer and teacher is not None and look.student != "Teacher" and not teacher.get("pretrained")


def _as_value(value: Any) -> str:
    """A plain value as Hydra's overrides have it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_value(part)}" for key, part in value.items()) + "}"
    return str(value)


def _teacher(
    config: DictConfig, folder: Path, given: Sequence[str], known: Sequence[str]
) -> tuple[PlannedRun | None, str]:
    options = config.teacher
    if options.weights is not None:
        weights = expand_home(options.weights).absolute()
        path = Path(str(weights).partition("#")[0])
        if not path.is_file():
            raise ValueError(f"teacher.weights={options.weights} is no file")
        return None, str(weights)
    experiment = _experiment(options.experiment, config.suffix, known)
    own = [f"model@models.Student={options.model}"] if options.model is not None else []
    own += [f"trainer.max_epochs={options.epochs}"] if options.epochs is not None else []
    run = _planned("teacher", options.seed, folder / "teacher", experiment, (*given, *own, *options.overrides))
    return run, str(run.folder / STUDENT_FILE)


def _planned(name: str, seed: int, folder: Path, experiment: str, overrides: Sequence[str]) -> PlannedRun:
    arguments = (f"experiment={experiment}", f"seed={seed}", "doctor=false", *overrides, *ACCOUNT)
    config = compose("train", as_hydra([*arguments, "resume=auto"]), return_hydra_config=True)
    config.run_dir = str(folder)
    return PlannedRun(name, seed, folder, arguments, config)


def _of_seed(run: PlannedRun, seed: int) -> PlannedRun:
    """The same run of another seed: composing it again would take half a second and give the same."""
    folder, config = run.folder.with_name(f"seed{seed}"), run.config.copy()
    config.seed, config.run_dir = seed, str(folder)
    arguments = tuple(f"seed={seed}" if argument == f"seed={run.seed}" else argument for argument in run.overrides)
    return PlannedRun(run.name, seed, folder, arguments, config)


def plain(config: DictConfig) -> DictConfig:
    """A composed config as a run stores it: without Hydra's own part."""
    copy = config.copy()
    with open_dict(copy):
        copy.pop("hydra", None)
    return copy


def _teacher_text(run: PlannedRun) -> str:
    config = run.config
    others = [str(name) for name in config.models if name != student_of(config)]
    return ", ".join(
        f"{network_name(config, name)}, {'frozen' if name in config.frozen else 'learns along'}" for name in others
    )


def student_of(config: DictConfig) -> str:
    """The name of the model that is trained and compared."""
    return "Student" if config.student == "best" else str(config.student)


def network_name(config: DictConfig, name: str) -> str:
    """What a model of a composed config is called: the choice of its group, else its class."""
    choices: Mapping[str, Any] = config.hydra.runtime.choices
    chosen = choices.get(f"model@models.{name}") or choices.get(f"/model@models.{name}")
    if chosen == "pptsm_resnet":  # of the depth that the data's preset says
        return f"{chosen}{config.models[name].depth}"
    return str(chosen or config.models[name].get("_target_", "?").rpartition(".")[2])


def _require_pairs(plan: Plan) -> None:
    """Hold every strategy to the reference's data, Student and number of updates, as their configs have them."""
    first = next(strategy for strategy in plan.strategies if strategy.name == plan.reference).runs[0].config
    for strategy in plan.strategies:
        config = strategy.runs[0].config
        for what, why in (
            ("data", "its samples would be others"),
            (f"models.{student_of(config)}", "its Student would be another network"),
            ("trainer", "its updates would be others"),
        ):
            one, other = (OmegaConf.to_container(OmegaConf.select(c, what), resolve=True) for c in (first, config))
            assert isinstance(one, dict)
            assert isinstance(other, dict)
            if what == "trainer":
                one, other = ({key: tree.get(key) for key in _AMOUNT} for tree in (one, other))
            if keys := sorted(differing(one, other, what)):
                values = ", ".join(f"{key}={OmegaConf.select(config, key)}" for key in keys[:5])
                raise ValueError(
                    f"{strategy.name} is no pair of {plan.reference}: it has {values}, {why}; give both the same, "
                    f"by overrides.{strategy.name}=[…] or for all"
                )
