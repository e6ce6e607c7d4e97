"""`python -m lit_distill.convert`: weights that load as before, and configs that compose, run and drop nothing."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors import safe_open

from lit_distill._command.command import conf_dir
from lit_distill.convert import main
from lit_distill.data.sources import FrameFolders
from lit_distill.models import PPTSMResNet, PPTSMv2, WeightsError, load_weights
from lit_distill.paddlevideo.config import ConfigError, Conversion, convert_config
from lit_distill.paddlevideo.convert import convert_weights
from lit_distill.training import train
from published_shapes import published_shapes

# Weights


def saved(path: Path, network: PPTSMv2 | PPTSMResNet, prefix: str = "") -> Path:
    """The network as Paddle saves it, more behind a prefix if the file exists."""
    state = network.state_dict()
    arrays = pickle.loads(path.read_bytes()) if path.exists() else {}
    for key, shape in published_shapes(state, network.published_key).items():
        native = network.native_key(key)
        value = state[native] if native in state else torch.zeros(shape)
        part = "1." + key[5:] if key.startswith("head.") else "0." + key
        arrays[prefix + part if prefix else key] = (value.T if value.ndim == 2 else value).contiguous().numpy()
    path.write_bytes(pickle.dumps(arrays))
    return path


def student(**options: Any) -> PPTSMv2:
    return PPTSMv2(6, 8, **{"scale": 0.125, "depths": (1, 2, 2, 1), "class_expand": 16, **options})


@pytest.mark.parametrize(
    ("model", "make"),
    [
        ("pptsmv2", student),
        ("pptsmv2", lambda: student(temporal_attention=False)),
        ("pptsm_resnet18", lambda: PPTSMResNet(18, 6, 8, width=0.125)),
        ("pptsm_resnet50", lambda: PPTSMResNet(50, 6, 8, width=0.125)),
    ],
)
def test_converted_weights_are_the_networks_own(
    model: str, make: Callable[[], PPTSMv2 | PPTSMResNet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make(), make()
    path = saved(tmp_path / "net.pdparams", source)
    assert main([str(path), str(tmp_path / "net.safetensors"), "--model", model]) == 0
    out = capsys.readouterr().out
    assert "matched" in out
    assert "net.safetensors" in out
    report = load_weights(target, tmp_path / "net.safetensors")
    assert report.complete
    clip = torch.rand(2, 8, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(target.eval()(clip), source.eval()(clip))
    with safe_open(tmp_path / "net.safetensors", "pt") as stored:
        assert stored.metadata()["model"] == model
        assert len(stored.metadata()["source_sha256"]) == 64
    assert not list(tmp_path.glob("*.tmp"))


def test_an_image_network_starts_a_video_network_after_conversion_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pdparams", PPTSMv2(1000, 8, temporal_attention=False, scale=0.125, class_expand=16))
    convert_weights(path, tmp_path / "net.safetensors", model="pptsmv2")
    report = load_weights(PPTSMv2(6, 8, scale=0.125, class_expand=16), tmp_path / "net.safetensors")
    assert sorted(report.missing) == sorted(
        ["fc.weight", "fc.bias", "temporal_attention.fc.weight", "temporal_attention.fc.bias"]
    )


def test_one_of_several_networks(tmp_path: Path) -> None:
    networks = {"Teacher": student(), "Student": student()}
    for name, network in networks.items():
        path = saved(tmp_path / "net.pdparams", network, f"{name}.")
    with pytest.raises(WeightsError, match="several networks that fit, Student, Teacher"):
        convert_weights(path, tmp_path / "net.safetensors", model="pptsmv2")
    assert convert_weights(f"{path}#Student", tmp_path / "net.safetensors", model="pptsmv2").name == "Student"
    target = student()
    load_weights(target, tmp_path / "net.safetensors")
    assert torch.equal(target.fc.weight, networks["Student"].fc.weight)


def test_the_network_of_a_lightning_checkpoint(tmp_path: Path) -> None:
    source = student()
    torch.save(
        {"state_dict": {f"models.Student.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "last.ckpt"
    )
    convert_weights(tmp_path / "last.ckpt", tmp_path / "net.safetensors", model="pptsmv2")
    target = student()
    assert load_weights(target, tmp_path / "net.safetensors").complete
    assert torch.equal(target.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["net.pdparams", "out.safetensors", "--model", "pptsm_resnet50"],
            "belongs to pptsm_resnet50|is no pptsm_resnet50",
        ),
        (["gone.pdparams", "out.safetensors", "--model", "pptsmv2"], "no weights file at"),
        (["net.pdparams", "out.pth", "--model", "pptsmv2"], "the target is a .safetensors file"),
        (["net.pdparams", "no/out.safetensors", "--model", "pptsmv2"], "in a folder that exists"),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "net.pdparams", student())
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert any(part in error for part in message.split("|"))
    assert not (tmp_path / "out.safetensors").exists()


# Configs

FRAMES, SIZE = 8, 32


def normal_pipeline(*crops: str, valid: bool) -> str:
    return f"""
        decode:
            name: "FrameDecoder"
        sample:
            name: "Sampler"
            num_seg: {FRAMES}
            seg_len: 1
            valid_mode: {valid}
        transform:
            - Scale:
                short_size: 40
{"".join(f"            - {crop}" for crop in crops)}            - Image2Array:
            - Normalization:
                mean: [0.485, 0.456, 0.406]
                std: [0.229, 0.224, 0.225]
"""


TRAIN_CROPS = (
    "MultiScaleCrop:\n                target_size: 40\n",
    f"RandomCrop:\n                target_size: {SIZE}\n",
    "RandomFlip:\n",
)
SPLIT = """
        format: "FrameDataset"
        data_prefix: "frames"
        file_path: "{}.list"
        suffix: 'img_{{:05}}.jpg'"""
COMMON = f"""
DATASET:
    batch_size: 2
    num_workers: 0
    train:{SPLIT.format("train")}
    valid:{SPLIT.format("val")}
    test:{SPLIT.format("val")}

PIPELINE:
    train:{normal_pipeline(*TRAIN_CROPS, valid=False)}
    valid:{normal_pipeline(f"CenterCrop:{chr(10)}                target_size: {SIZE}{chr(10)}", valid=True)}

OPTIMIZER:
  name: 'Momentum'
  momentum: 0.9
  learning_rate:
    iter_step: True
    name: 'CustomWarmupCosineDecay'
    max_epoch: 12
    warmup_epochs: 2
    warmup_start_lr: 0.001
    cosine_base_lr: 0.004
  weight_decay:
    name: 'L2'
    value: 2e-4
  use_nesterov: True

MIX:
    name: "Mixup"
    alpha: 0.3

METRIC:
    name: 'CenterCropMetric'

INFERENCE:
    name: 'ppTSM_Inference_helper'
    num_seg: {FRAMES}
    target_size: {SIZE}

model_name: "mine"
log_interval: 7
epochs: 12
"""
DISTILLATION = f"""MODEL:
    framework: "RecognizerDistillation"
    freeze_params_list:
    - False
    - False
    models:
    - Teacher:
        backbone:
            name: "ResNetTweaksTSM"
            pretrained: ""
            depth: 18
            num_seg: {FRAMES}
        head:
            name: "ppTSMHead"
            num_classes: 3
            in_channels: 512
            drop_ratio: 0.4
            std: 0.01
            num_seg: {FRAMES}
    - Student:
        backbone:
            name: "PPTSM_v2"
            num_seg: {FRAMES}
            use_temporal_att: True
            class_num: 3
            class_expand: 64
        head:
            name: "MoViNetHead"
    loss:
        Train:
            - name: "DistillationCELoss"
              model_name_pairs: ["Student", "GroundTruth"]
            - name: "DistillationCELoss"
              loss_weight: 0.5
              model_name_pairs: ["Teacher", "GroundTruth"]
            - name: "DistillationDMLLoss"
              model_name_pairs: ["Student", "Teacher"]
        Val:
            - name: "DistillationCELoss"
              model_name_pairs: ["Student", "GroundTruth"]
{COMMON}"""
ALONE = f"""MODEL:
    framework: "Recognizer2D"
    backbone:
        name: "ResNetTweaksTSM"
        depth: 34
        num_seg: {FRAMES}
    head:
        name: "ppTSMHead"
        num_classes: 3
        in_channels: 512
        ls_eps: 0.1
        num_seg: {FRAMES}
{COMMON}"""


def convert(folder: Path, text: str) -> Conversion:
    (folder / "my recipe.v2.yaml").write_text(text)
    return convert_config(folder / "my recipe.v2.yaml", folder / "conf")


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(
            "train",
            overrides=[
                f"hydra.searchpath=[file://{folder / 'conf'}]",
                "experiment=my_recipe_v2",
                f"run_dir={folder / 'run'}",
                *overrides,
            ],
        )


def test_a_distillation_becomes_an_experiment(tmp_path: Path) -> None:
    conversion = convert(tmp_path, DISTILLATION)
    assert conversion.path == tmp_path / "conf" / "experiment" / "my_recipe_v2.yaml"
    assert [remark.key for remark in conversion.left] == ["model_name"]
    assert conversion.different == []
    config = composed(tmp_path)
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    assert values["models"]["Teacher"] | {"width": 1.0} == {
        "_target_": "lit_distill.models.PPTSMResNet",
        "depth": 18,
        "num_classes": 3,
        "num_frames": FRAMES,
        "width": 1.0,
        "pretrained": None,
        "dropout": 0.4,
    }
    assert values["models"]["Student"]["temporal_attention"] is True
    assert values["models"]["Student"]["class_expand"] == 64
    assert {name: (term["pair"], term.get("weight", 1.0)) for name, term in values["losses"].items()} == {
        "ce_student": (["Student", "GroundTruth"], 1.0),
        "ce_teacher": (["Teacher", "GroundTruth"], 0.5),
        "dml": (["Student", "Teacher"], 1.0),
    }
    assert list(values["val_losses"]) == ["ce_student"]
    assert values["frozen"] == []
    assert values["trainer"]["max_epochs"] == 12
    assert values["trainer"]["log_every_n_steps"] == 7
    data = instantiate(config.data)
    assert isinstance(data.source, FrameFolders)
    assert (str(data.root), data.lists["train"]) == ("frames", "../train.list")
    assert (data.size, data.transform.scale, data.transform.flip, data.transform.multi_scale) == (SIZE, 40, 0.5, True)
    assert (data.mix.alpha, data.batch_size, data.num_workers, data.num_classes) == (0.3, 2, 0, 3)
    schedule = instantiate(config.scheduler)
    assert 0.004 * schedule(0) == pytest.approx(0.001)
    assert (schedule.epochs, schedule.warmup_epochs) == (12, 2)
    optimizer = instantiate(config.optimizer)(train.build_module(config).models)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.004, 0.9)
    assert (optimizer.defaults["weight_decay"], optimizer.defaults["nesterov"]) == (2e-4, True)


def test_a_network_alone_becomes_an_experiment(tmp_path: Path) -> None:
    convert(tmp_path, ALONE)
    config = composed(tmp_path)
    module = train.build_module(config)
    assert list(module.models) == ["Student"]
    assert isinstance(module.models["Student"], PPTSMResNet)
    assert config.models.Student.dropout == 0.8, "what ppTSMHead has without drop_ratio"
    assert config.losses.ce.loss.label_smoothing == 0.1
    assert "label_smoothing" not in config.val_losses.ce.loss


@pytest.mark.parametrize(
    ("change", "key", "there", "remark"),
    [
        (("- RandomFlip:\n", "- ColorJitter:\n                hue: 0.1\n"), "ColorJitter", "ColorJitter", "in train"),
        (("epochs: 12\n", "epochs: 12\nPRECISEBN:\n  preciseBN_interval: 5\n"), "PRECISEBN", "PRECISEBN", "statistics"),
        (
            ("epochs: 12\n", "epochs: 12\nnovelty:\n  deep: [{a: 1}]\n"),
            "novelty.deep[0].a",
            "deep",
            "counterpart for 1",
        ),
        (('"DistillationDMLLoss"', '"Distillation3"'), "MODEL.loss.Train[2]", "Distillation3", "for Distillation3"),
        (("'Momentum'", "'AdamW'"), "OPTIMIZER.name", "AdamW", "choose another with optimizer="),
        (("'CustomWarmupCosineDecay'", "'PiecewiseDecay'"), "learning_rate", "learning_rate", "the rate stays at 0.01"),
        (("std: 0.01", "std: 0.02"), "head.std", "std: 0.02", "always starts with a deviation of 0.01"),
        (('"Mixup"', '"Mosaic"'), "MIX", "MIX", "batches are not mixed"),
        (
            ("target_size: 32\n            - Image", "target_size: 36\n            - Image"),
            "CenterCrop",
            "36",
            "data.size=32",
        ),
    ],
)
def test_what_has_no_counterpart_is_listed_by_key_and_line(
    change: tuple[str, str], key: str, there: str, remark: str, tmp_path: Path
) -> None:
    assert change[0] in DISTILLATION
    text = DISTILLATION.replace(*change)
    conversion = convert(tmp_path, text)
    assert train.build_module(composed(tmp_path)) is not None
    (found,) = [item for item in conversion.left if key in item.key]
    assert remark in found.text
    assert there in text.splitlines()[found.line - 1]
    assert f"{found.key} (line {found.line})" in str(conversion)
    assert f"# Not carried over: {found.key} (line {found.line})" in conversion.path.read_text()


def test_a_transform_that_is_absent_is_off(tmp_path: Path) -> None:
    absent = ("            - RandomFlip:\n", "            - MultiScaleCrop:\n                target_size: 40\n")
    text = DISTILLATION
    for lines in absent:
        assert lines in text
        text = text.replace(lines, "")
    assert convert(tmp_path, text).left[0].key == "model_name"
    assert (composed(tmp_path).data.flip, composed(tmp_path).data.multi_scale) == (0.0, False)


def test_frozen_networks_and_what_they_mean(tmp_path: Path) -> None:
    conversion = convert(tmp_path, DISTILLATION.replace("- False\n", "- True\n", 1))
    assert [remark.key for remark in conversion.different] == ["MODEL.freeze_params_list"] * 2
    assert composed(tmp_path).frozen == ["Teacher"]
    with pytest.raises(ValueError, match="Teacher is frozen but has no weights"):
        train.build_module(composed(tmp_path))


def test_cutmix_is_told_apart(tmp_path: Path) -> None:
    conversion = convert(tmp_path, DISTILLATION.replace('"Mixup"', '"Cutmix"'))
    assert "height and width" in conversion.different[0].text
    assert instantiate(composed(tmp_path).data).mix.alpha == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('"PPTSM_v2"', '"MoViNet"'),
            r"line 22, MODEL\.models\[1\]\.Student\.backbone\.name: expected one of PPTSM_v2",
        ),
        (("depth: 18", "depth: 20"), r"line 11, .*depth: expected one of \[18, 34, 50, 101, 152\], got 20"),
        (("class_num: 3", "class_num: 4"), r"the number of classes is 4, but 3 in MODEL\.models\[0\]\.Teacher\.head"),
        ((f"num_seg: {FRAMES}\n            use", "num_seg: 16\n            use"), "the number of frames is 16, but 8"),
        (("in_channels: 512", "in_channels: 2048"), "a ResNet of depth 18 gives 512 channels"),
        (
            ('"RecognizerDistillation"', '"Recognizer3D"'),
            "expected RecognizerDistillation or Recognizer2D, got 'Recognizer3D'",
        ),
        (("- Student:", "- GroundTruth:"), "expected one network with a plain name"),
        (
            ('["Student", "Teacher"]', '["Student", "Nobody"]'),
            "expected Teacher or Student with Teacher or Student, got",
        ),
        (("epochs: 12", "epochs: many"), "line .*, epochs: expected a finite number, got 'many'"),
        (('name: "FrameDecoder"', 'name: "VideoDecoder"'), "the data set goes with FrameDecoder"),
        (('file_path: "train.list"', ""), r"DATASET\.train\.file_path: expected a list file, got none"),
        (("- False\n    models", "models"), "expected true or false for each of Teacher, Student"),
        (("MIX:", "epochs: 3\nMIX:"), "the key stands again on line"),
        (("alpha: 0.3", "alpha: !!python/object/apply:os.system ['touch ran']"), "the tag .*os.system is refused"),
        (("alpha: 0.3", "alpha: ["), "is no YAML"),
    ],
)
def test_configs_that_cannot_be_converted(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in DISTILLATION
    with pytest.raises(ConfigError, match=message) as caught:
        convert(tmp_path, DISTILLATION.replace(*change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "conf").exists()


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "&a [*a]", "a: &a {b: *a}", "? [x, y]\n: 1\n", '"a\\n_target_": 1\n', "\x00"]
)
def test_documents_that_are_no_config(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        convert(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "${oc.create:{_target_: os.getcwd}}", "\\x24{oc.env:HOME}", "$\\u007Boc.env:HOME}", "\\\\${x}"],
)
@pytest.mark.parametrize("place", ["value", "item", "key"])
def test_interpolations_are_refused_however_they_are_written(place: str, text: str, tmp_path: Path) -> None:
    line = {"value": f'x: "{text}"', "item": f'x: ["{text}"]', "key": f'"{text}": 1'}[place]
    with pytest.raises(ConfigError, match=r"interpolation|no plain text"):
        convert(tmp_path, f"{DISTILLATION}\n{line}\n")
    assert not list(tmp_path.rglob("conf/**/*.yaml"))


def test_texts_stay_texts(tmp_path: Path) -> None:
    weights = "$HOME/a: {b}#c.pdparams"
    convert(tmp_path, DISTILLATION.replace('pretrained: ""', f'pretrained: "{weights}"'))
    assert composed(tmp_path).models.Teacher.pretrained == weights


def test_an_experiment_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversion = convert(tmp_path, DISTILLATION)
    conversion.path.write_text("mine")
    assert main([str(conversion.source), str(tmp_path / "conf")]) == 1
    assert "exists: remove it" in capsys.readouterr().err
    assert conversion.path.read_text() == "mine"


def test_a_converted_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    for video in range(4):
        folder = tmp_path / "frames" / f"v{video}"
        folder.mkdir(parents=True)
        for frame in range(1, 11):
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(folder / f"img_{frame:05}.jpg")
        lines.append(f"v{video} 10 {video % 3}\n")
    for name in ("train", "val"):
        (tmp_path / f"{name}.list").write_text("".join(lines))
    (tmp_path / "mine.yaml").write_text(DISTILLATION)
    assert main(["mine.yaml", "conf"]) == 0
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=mine", "run_dir=run"]
        config = compose("train", overrides=[*overrides, "trainer.max_epochs=1", "trainer.accelerator=cpu"])
    results = train.run(config)
    assert "LIT_DISTILL_RUN" not in os.environ, "a program started later would take itself for a part of this run"
    assert results["steps"] == 2
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["preset"]["lr"] == 0.004


def test_an_experiment_replaces_a_link_to_nowhere(tmp_path: Path) -> None:
    experiment = tmp_path / "conf" / "experiment" / "my_recipe_v2.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.symlink_to(tmp_path / "outside.yaml")
    convert(tmp_path, DISTILLATION)
    assert not experiment.is_symlink()
    assert not (tmp_path / "outside.yaml").exists()


LAUGHS = ", ".join(["*z{0}"] * 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('data_prefix: "frames"', 'data_prefix: "simplecache::http://127.0.0.1:9/x"'), "data_prefix: .* a local path"),
        (('data_prefix: "frames"', "data_prefix: s3://bucket"), "data_prefix: .* a local path"),
        (
            ('name: "PPTSM_v2"', 'name: "PPTSM_v2"\n            pretrained: "http://127.0.0.1:9"'),
            "pretrained: .* a local",
        ),
        (("suffix: 'img_{:05}.jpg'", 'suffix: "{0.__class__}"'), "suffix: expected a pattern"),
        (("suffix: 'img_{:05}.jpg'", 'suffix: "{:0999999999}"'), "suffix: expected a pattern"),
        (("epochs: 12\n", "epochs: 12\nz: [" + "1," * 60_000 + "]\n"), "100,?000 bytes"),
        (("epochs: 12\n", "epochs: 12\nz: [" + "1," * 30_000 + "]\n"), "more values than any config"),
        (
            (
                "epochs: 12\n",
                "epochs: 12\n" + "".join(f"z{n}: &z{n} [{LAUGHS.format(n - 1) if n else 1}]\n" for n in range(9)),
            ),
            "more values than any config",
        ),
        (("epochs: 12\n", "epochs: " + "1:" + "59:" * 30_000 + "1\n"), "expected a finite number"),
        (("epochs: 12\n", "epochs: .inf\n"), r"v2\.yaml, line \d+, epochs: expected a finite number, got inf"),
        (("epochs: 12\n", "epochs: .nan\n"), r"v2\.yaml, line \d+, epochs: expected a finite number, got nan"),
        (("epochs: 12\n", "epochs: 1if 1else 2\n"), "epochs: expected a finite number"),  # Python warned of its syntax
    ],
)
def test_hostile_configs_are_refused_before_they_cost(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in DISTILLATION
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, DISTILLATION.replace(*change))
    assert time.process_time() - started < 5.0
    assert not (tmp_path / "conf").exists()
