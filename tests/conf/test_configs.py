"""Every file under conf/ composes, is admitted as an untrusted config, and builds what it describes."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir, help_text
from lit_distill._command.overrides import arguments_of
from lit_distill._module.preflight import example_batch
from lit_distill.callbacks import TeacherCache
from lit_distill.module import DistillModule
from lit_distill.runs.resume import differing
from lit_distill.searching.space import axes_of
from lit_distill.training.fit import build_module
from lit_distill.training.stages import stages_of
from lit_distill.untrusted.check import check_targets, read_config
from lit_distill.untrusted.plain import resolved

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
COMMANDS = [path.stem for path in FILES if len(path.parts) == 1]
EXPERIMENTS = [path.stem for path in FILES if path.parts[0] == "experiment"]
MUST_BE_CHOSEN = {  # what a command's user has to say, and its config leaves open
    "train": ["experiment=baseline_pptsmv2"],
    "doctor": ["experiment=baseline_pptsmv2"],
    "index": ["data=moving_digits"],
}
DATA = "moving_digits_tiny"
SMALL = ["data.batch_size=4", "data.eval_batch_size=4"]  # half the clips and half the time of the preset's
HALF_WITHOUT_LABELS = ("semi_pptsmv2", "ssld_pptsmv2")  # too few labels in four clips
IMAGES = ["data=image_folder", "data.num_classes=5", "data.size=64"]
# name: ??? in two of their files
IMAGE_NETWORKS = {
    "torchvision": "mobilenet_v3_small",
    "timm": "mobilenetv3_small_050",
    "small_resnet": None,
}  # name: ???


def has_images(experiment: str) -> bool:
    return experiment.endswith(("_image", "_images"))


def composed(*overrides: str, run_dir: Path) -> DictConfig:
    """A config of `train`, all of which the allow-list of untrusted configs admits."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", open_data([*overrides, f"run_dir={run_dir}"]))
    check_targets(OmegaConf.to_container(config, resolve=False), run_dir=run_dir)
    return config


def group(name: str) -> list[str]:
    return [path.stem for path in FILES if path.parts[0] == name]


def test_every_group_is_covered_here() -> None:
    covered = {
        "data",
        "model",
        "loss",
        "optimizer",
        "scheduler",
        "trainer",
        "callbacks",
        "logger",
        "teacher",
        "teacher_cache",
        "experiment",
        "weight",
        "balance",
        "sweep",
    }
    assert {path.parts[0] for path in FILES if len(path.parts) > 1} == covered


@pytest.mark.parametrize("name", group("data"))
def test_data_are_silent_on_the_defaults_of_their_constructor(name: str) -> None:
    """But for the root, which users set, and for what models take from them by interpolation."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("index", [f"data={name}"])
    given = cast(dict[str, Any], OmegaConf.to_container(config.data))
    defaults = arguments_of(given.pop("_target_"))
    restated = {key for key, value in given.items() if not differing(value, defaults[key])}
    assert restated <= {"root", "num_frames", "size"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_config_at_the_top_is_a_commands_and_has_its_help(name: str, tmp_path: Path) -> None:
    assert importlib.util.find_spec(f"lit_distill.{name}") is not None
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        compose(name, MUST_BE_CHOSEN.get(name, []))
    assert f"python -m lit_distill.{name} " in help_text(name)
    assert "Exit codes: " in help_text(name)


@pytest.mark.parametrize("name", group("data"))
def test_data(name: str, tmp_path: Path) -> None:
    images = IMAGES if name == "image_folder" else []
    experiment = "baseline_image" if "image" in name else "baseline_pptsmv2"
    config = composed(f"experiment={experiment}", f"data={name}", *images, run_dir=tmp_path)
    data = instantiate(config.data, _convert_="all")
    assert data.num_classes == config.data.num_classes
    assert ({"size"} if "image" in name else {"num_frames", "size"}) <= set(config.data)
    reference = composed("experiment=baseline_pptsmv2", "data=kinetics400", run_dir=tmp_path)
    assert set(config.preset) == set(reference.preset), "every data set sets the same preset keys"


@pytest.mark.parametrize("name", [n for n in group("model") if n != "image_generator"])  # which is no classifier
def test_model(name: str, tmp_path: Path) -> None:
    overrides = ["experiment=baseline_pptsmv2", f"data={DATA}"]
    if name in IMAGE_NETWORKS:
        of_name = [f"models.Student.name={IMAGE_NETWORKS[name]}"] if IMAGE_NETWORKS[name] else []
        overrides = [f"experiment=baseline_{'image' if of_name else 'digits_images'}", *IMAGES, *of_name]
    config = composed(*overrides, f"model@models.Student={name}", run_dir=tmp_path)
    model = instantiate(config.models.Student).eval()
    data = config.data
    frames = [] if name in IMAGE_NETWORKS else [data.num_frames]
    with torch.no_grad():
        logits = model(torch.zeros(1, *frames, 3, data.size, data.size))
    assert logits.shape == (1, data.num_classes)


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """One composition with a term for each loss."""
    terms = [f"+loss@losses.{name}.loss={name}" for name in group("loss")]
    config: DictConfig = composed(
        "experiment=baseline_pptsmv2", *terms, run_dir=tmp_path_factory.mktemp("losses")
    ).losses
    return config


@pytest.mark.parametrize("name", group("loss"))
def test_loss(name: str, losses: DictConfig) -> None:
    assert isinstance(instantiate(losses[name].loss), torch.nn.Module)


def test_a_loss_takes_the_place_of_another(tmp_path: Path) -> None:
    config = composed("experiment=baseline_pptsmv2", "loss@losses.ce.loss=dkd", run_dir=tmp_path)
    assert type(instantiate(config.losses.ce.loss)).__name__ == "DKDLoss"


@pytest.mark.parametrize(
    ("kind", "name"),
    [*itertools.product(["optimizer"], group("optimizer")), *itertools.product(["scheduler"], group("scheduler"))],
)
def test_optimizer_and_scheduler(kind: str, name: str, tmp_path: Path) -> None:
    config = composed("experiment=dml_pptsmv2", f"{kind}={name}", f"data={DATA}", run_dir=tmp_path)
    module = build_module(config)
    assert callable(module._scheduler_factory)
    module._scheduler_factory = None
    optimizer: Any = module.configure_optimizers()
    held = {id(p) for parameters in optimizer.param_groups for p in parameters["params"]}
    assert held == {id(p) for p in module.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", group("trainer"))
def test_trainer(name: str, tmp_path: Path) -> None:
    config = composed("experiment=baseline_pptsmv2", f"trainer={name}", f"data={DATA}", run_dir=tmp_path)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        with pytest.raises(Exception, match=r"gpu|CUDA|GPU") as caught:
            instantiate(config.trainer)
        assert isinstance(caught.value.__cause__, MisconfigurationException)
    else:
        assert instantiate(config.trainer).max_epochs == config.preset.epochs


@pytest.mark.parametrize(
    ("kind", "name"),
    [*itertools.product(["callbacks"], group("callbacks")), *itertools.product(["logger"], group("logger"))],
)
def test_callbacks_and_loggers(kind: str, name: str, tmp_path: Path) -> None:
    config = composed("experiment=baseline_pptsmv2", f"{kind}={name}", run_dir=tmp_path)
    if name in ("wandb", "mlflow"):
        pytest.importorskip(name)
    for node in config[kind].values():
        assert instantiate(node) is not None


@pytest.mark.parametrize("name", group("sweep"))
def test_sweep(name: str) -> None:
    experiment = {"layers": "fitnet"}.get(name, name)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("search", [f"sweep={name}", f"train=['experiment={experiment}_pptsmv2']"])
        axes = axes_of(config)
    assert {axis.key for axis in axes} == set(config.space)


@pytest.mark.parametrize("name", group("balance"))
def test_balance(name: str, tmp_path: Path) -> None:
    config = composed("experiment=dml_pptsmv2", f"balance={name}", f"data={DATA}", run_dir=tmp_path)
    balance = build_module(config).composer.balance
    assert balance is not None
    assert balance.terms == ("ce_teacher", "ce", "dml")


@pytest.mark.parametrize("name", group("weight"))
def test_weight(name: str, tmp_path: Path) -> None:
    config = composed("experiment=baseline_pptsmv2", f"+weight@losses.ce.weight={name}", run_dir=tmp_path)
    weight = build_module(config).composer.terms["ce"].weight_at
    epochs = config.trainer.max_epochs
    assert {weight(0.0), weight(epochs)} & {1.0}, "one end is the whole weight"
    assert weight(0.0) != weight(epochs)


@pytest.mark.parametrize("name", group("teacher"))
def test_teacher(name: str, tmp_path: Path) -> None:
    config = composed("experiment=kd_pptsmv2", f"teacher={name}", f"data={DATA}", run_dir=tmp_path)
    if config.frozen:
        with pytest.raises(
            ValueError, match=r"Teacher is frozen but has no weights: give models\.Teacher\.pretrained="
        ):
            build_module(config)
    else:
        assert "ce_teacher" in build_module(config).composer.terms


@pytest.mark.parametrize("name", group("teacher_cache"))
@pytest.mark.parametrize("data", group("data"))
def test_teacher_cache(name: str, data: str, tmp_path: Path) -> None:
    images = IMAGES if data == "image_folder" else []
    experiment = "kd_image" if "image" in data else "kd_pptsmv2"
    config = composed(f"experiment={experiment}", f"data={data}", *images, f"teacher_cache={name}", run_dir=tmp_path)
    if name == "on":
        assert isinstance(instantiate(config.teacher_cache), TeacherCache)
        assert instantiate(config.data, _convert_="all").views_per_sample == config.data.views_per_sample >= 1
    else:
        assert name == "off"
        assert not config.teacher_cache
        assert "views_per_sample" not in config.data


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips are made by whichever experiment takes the first step, for all of them."""
    return tmp_path_factory.mktemp("clips")


LEAVE_FILES = ("best", "last", "preemption", "progress")  # preemption needs last


def take_steps(config: DictConfig, module: DistillModule) -> tuple[set[str], set[str]]:
    """Two batches of training and one of validation give finite terms; the student's parameters, and the changed."""
    student = module.models[module.student]
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=1, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[instantiate(node) for name, node in config.callbacks.items() if name not in LEAVE_FILES],
    )  # fmt: skip
    trainer.fit(module, datamodule=instantiate(config.data, _convert_="all"))
    figures = trainer.callback_metrics
    wanted = {"train/loss", "val/loss"} | {f"val/{model}/top1" for model in config.models}
    wanted |= {f"train/{term}" for term in config.losses}
    wanted |= {f"val/{term}" for term in config.val_losses or config.losses}
    assert wanted <= figures.keys()
    assert all(math.isfinite(value) for value in figures.values()), figures
    after = dict(student.named_parameters())
    kept = [key for key in before if key in after]
    assert len(kept) >= 0.9 * len(before)
    assert all(value.isfinite().all() for value in student.state_dict().values())
    return set(kept), {key for key in kept if not torch.equal(before[key], after[key])}


def small_config(name: str, clips: Path, run_dir: Path) -> DictConfig:
    """An experiment on few and small samples."""
    small = [] if name in HALF_WITHOUT_LABELS else SMALL
    data = IMAGES if has_images(name) else [f"data={DATA}", f"data.root={clips}", *small]
    return composed(f"experiment={name}", *data, run_dir=run_dir)


def configs_of_stages(config: DictConfig, folder: Path) -> list[DictConfig]:
    """The configs to train by, one after another, without what earlier stages leave once they are trained."""
    stages = stages_of(config)
    for stage in stages[1:]:
        for model in stage.config.start:
            stage.config.models[model].pretrained = None
        stage.config.start = {}
    configs = [stage.config for stage in stages] or [config]
    for each in configs:
        for frozen in each.frozen:  # its weights come from a file, as a user gives them
            weights = folder / f"{frozen}.safetensors"
            save_file(instantiate(each.models[frozen]).state_dict(), weights)
            each.models[frozen].pretrained = str(weights)
    return configs


@pytest.fixture(scope="module")
def data_of() -> Callable[[DictConfig], Any]:
    """A config's data, the example that training tries first and the first batch, once for all of the same data."""
    made: dict[str, Any] = {}

    def of(config: DictConfig) -> Any:
        key = OmegaConf.to_yaml(config.data, resolve=True)
        if key not in made:
            data = instantiate(config.data, _convert_="all")
            data.prepare_data()
            data.setup("fit")
            loader = data.train_dataloader()
            batches = example_batch(loader), next(iter(loader))
            made[key] = data, *(data.on_after_batch_transfer(batch, 0) for batch in batches)
        return made[key]

    return of


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name: str, clips: Path, tmp_path: Path, data_of: Callable[[DictConfig], Any]) -> None:
    """All its terms are finite on a batch and bring gradients to the whole Student: a first step without a Trainer."""
    config = small_config(name, clips, tmp_path)
    stored = resolved(yaml.safe_load(OmegaConf.to_yaml(config)))  # as the commands after training read config.yaml back
    assert stored["losses"] == OmegaConf.to_container(config.losses, resolve=True)
    learning, names = set[str](), set[str]()
    for each in configs_of_stages(config, tmp_path):
        seed_everything(0, verbose=False)
        module = build_module(each)
        student = module.student  # as built: of several candidates a validation chooses
        if has_images(name):  # tests/test_image_experiments.py trains these
            continue
        data, example, batch = data_of(each)
        module.expect_labels_of(data)
        module.build(example, dataset_size=len(data.train_dataloader().dataset), num_classes=data.num_classes)
        inputs, target, index, entries = module.unpacked(batch)
        with module.composer.capture(module.named, epoch=0.0) as signals:
            module.run_models(inputs, signals)
        result = module.composer(signals, target, index=index, batch=entries, epoch=0.0)
        assert set(result.names) == set(each.losses)
        assert result.values.isfinite().all()
        torch.autograd.backward(result.total)
        parameters = dict(module.models[student].named_parameters())
        names = set(parameters)  # those of the last stage count
        learning |= {key for key, value in parameters.items() if value.grad is not None and value.grad.any()}
    assert student == "Student"
    assert len(learning & names) >= 0.9 * len(names)


@pytest.mark.slow  # the step itself is that of tests/module, the published data's keys are those of test_data
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_trains(name: str, clips: Path, tmp_path: Path) -> None:
    config = small_config(name, clips, tmp_path)
    names, changed = set[str](), set[str]()
    for each in configs_of_stages(config, tmp_path):
        seed_everything(0, verbose=False)
        module = build_module(each)
        if not has_images(name):
            names, now = take_steps(each, module)
            changed |= now
    assert len(changed & names) >= 0.9 * len(names)
    large = ["data.num_classes=1000"] if has_images(name) else ["data=kinetics400"]
    published = composed(f"experiment={name}", *large, run_dir=tmp_path)
    OmegaConf.save(published, tmp_path / "config.yaml", resolve=False)  # as a run leaves it
    assert read_config(tmp_path / "config.yaml", run_dir=tmp_path) == OmegaConf.to_container(published, resolve=True)
    assert {n: m._target_ for n, m in published.models.items()} == {n: m._target_ for n, m in config.models.items()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_overrides_only_and_short(name: str) -> None:
    lines = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# "), "the second line says what it is"
    assert len(lines) <= 25


def test_the_origins_experiment_is_the_origins(tmp_path: Path) -> None:
    config = composed("experiment=dml_pptsmv2", "data=kinetics400", run_dir=tmp_path)
    assert config.models.Teacher._target_ == "lit_distill.models.PPTSMResNet"
    assert config.models.Teacher.depth == 50
    assert config.models.Student._target_ == "lit_distill.models.PPTSMv2"
    assert config.frozen == []
    pairs = {name: (term.loss._target_.rpartition(".")[2], list(term.pair)) for name, term in config.losses.items()}
    assert pairs == {
        "ce": ("CrossEntropyLoss", ["Student", "GroundTruth"]),
        "ce_teacher": ("CrossEntropyLoss", ["Teacher", "GroundTruth"]),
        "dml": ("DMLLoss", ["Student", "Teacher"]),
    }
    assert all(term.get("weight", 1.0) == 1.0 for term in config.losses.values())
    assert list(config.val_losses) == ["ce"]
    assert list(config.val_losses.ce.pair) == ["Student", "GroundTruth"]


def test_method_models_and_data_vary_independently(tmp_path: Path) -> None:
    config = composed(
        "experiment=dml_pptsmv2", "model@models.Teacher=pptsmv2", "data=kinetics400", "trainer=ddp", run_dir=tmp_path
    )
    assert config.models.Teacher._target_ == "lit_distill.models.PPTSMv2"
    assert config.models.Teacher.num_classes == 400
    assert config.trainer.strategy == "ddp"
    assert config.trainer.max_epochs == 120
