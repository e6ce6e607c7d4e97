"""PaddleVideo's YAML configs of PP-TSMv2 and PP-TSM, as experiments of this library."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_distill._command.arguments import shell_word
from lit_distill._files import expand_home, write_text
from lit_distill.models.paddle_keys import RESNET_DEPTHS
from lit_distill.paddlevideo.training import CLASSES, FRAMES, Draft, dataset, mix, optimizer, pipeline, trainer
from lit_distill.paddlevideo.yaml_lines import ConfigError, Key, Remark, Source, Value

__all__ = ["ConfigError", "Conversion", "convert_config"]

GROUND_TRUTH = "GroundTruth"
_ADVICE: dict[str, str] = {
    "model_name": "the run folder names the files of a run",
    "log_level": "logging is Hydra's: hydra.verbose",
    "PRECISEBN": "BatchNorm's running statistics are used as they are",
    "GRADIENT_ACCUMULATION": "depends on the number of devices: set trainer.accumulate_grad_batches",
    "DATASET.num_retries": "an unreadable file is never swapped for another: it is an error that names the file",
}


@dataclass(frozen=True)
class Conversion:
    """What became of a config; ``str()`` of it is what the command prints.

    Attributes:
        source: the config.
        path: the experiment file.
        different: keys that were carried over, but mean something else here.
        left: keys that were not carried over, and why.
    """

    source: Path
    path: Path
    different: Sequence[Remark]
    left: Sequence[Remark]

    def __str__(self) -> str:
        lines = [f"written {self.path}"]
        for title, remarks in (("carried over with a difference", self.different), ("not carried over", self.left)):
            lines += [f"{title}:", *(f"  {remark}" for remark in remarks)] if remarks else [f"{title}: nothing"]
        folder = shell_word(str(self.path.parent.parent))
        return "\n".join(
            [
                *lines,
                "run it:",
                f"  python -m lit_distill.train --config-dir {folder} experiment={self.path.stem}",
            ]
        )


@dataclass
class _Model:
    """One network of the config."""

    name: str
    key: Key  # of the mapping with backbone and head
    config: str  # in conf/model
    options: dict[str, Any]


def convert_config(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Conversion:
    """Write ``folder/experiment/<stem>.yaml`` from a PaddleVideo config of PP-TSMv2 and PP-TSM networks.

    Read are the frameworks ``RecognizerDistillation`` and ``Recognizer2D`` with the backbones ``PPTSM_v2`` and
    ``ResNetTweaksTSM``: MODEL with its losses and frozen networks, DATASET, PIPELINE, OPTIMIZER, MIX, METRIC,
    INFERENCE, epochs. The experiment is complete; its data, sizes and rates can be overridden like any other's. What
    has no counterpart is listed by key and line, in the result and at the top of the file.

    Args:
        source: the config. It is read as plain data: tags are refused.
        folder: your folder of configs, for ``--config-dir``.

    Raises:
        ConfigError: it is no such config, contradicts itself, or names networks that this library does not have.
        FileExistsError: the experiment exists.
    """
    document = Source(expand_home(source))
    target = expand_home(folder) / "experiment" / f"{re.sub(r'[^A-Za-z0-9_-]', '_', document.path.stem)}.yaml"
    if target.exists():
        raise FileExistsError(f"{target} exists: remove it, or convert into another folder")
    made = Draft(document)
    _losses(made, _models(made))
    for part in (dataset, pipeline, optimizer, mix, trainer):
        part(made)
    for name, text in _ADVICE.items():
        key: Key = tuple(name.split("."))
        if document.has(*key):
            document.remark(key, text)
    left = sorted([*document.remarks, *document.rest()], key=lambda remark: remark.line)
    write_text(target, _written(made, left))
    return Conversion(document.path, target, made.different, left)


def _written(made: Draft, left: Sequence[Remark]) -> str:
    lines = ["# @package _global_", f"# From PaddleVideo's {ascii(made.source.path.name)[1:-1]}."]
    lines += [f"# With a difference: {remark}." for remark in made.different]
    lines += [f"# Not carried over: {remark}." for remark in left]
    overrides = [f"override /{group}: {option}" for group, option in made.overrides.items()]
    lines += ["defaults:", *(f"  - {entry}" for entry in (*made.defaults, *overrides, "_self_")), ""]
    body: str = yaml.safe_dump(made.body, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    written = "\n".join(lines) + "\n" + body
    read = {key: value for key, value in yaml.safe_load(written).items() if key != "defaults"}
    if read != yaml.safe_load(body) or "${" in written:  # a config of ours is code: nothing of the source may be in it
        raise ConfigError(f"{made.source.path} gives an experiment that reads back as another: it is not written")
    return written


# MODEL


def _models(made: Draft) -> list[_Model]:
    source = made.source
    framework = source.text("MODEL", "framework")
    if framework == "RecognizerDistillation":
        keys = [_only_child(source, entry) for entry in source.children("MODEL", "models")]
        models = [_model(made, str(key[-1]), key) for key in keys]
    elif framework == "Recognizer2D":
        models = [_model(made, "Student", ("MODEL",))]
    else:
        got = repr(framework) if framework else "nothing"
        raise source.error(("MODEL", "framework"), f"expected RecognizerDistillation or Recognizer2D, got {got}")
    made.models = [model.name for model in models]
    if not models or len(set(made.models)) != len(models):
        raise source.error(("MODEL", "models"), f"expected networks of different names, got {made.models}")
    made.defaults += [f"/model@models.{model.name}: {model.config}" for model in models]
    made.body["models"] = {model.name: model.options for model in models}
    if "Student" not in made.models:
        made.body["student"] = made.models[-1]
        made.differs(("MODEL", "models"), f"none is called Student: the accuracy of {made.models[-1]} chooses the best")
    _frozen(made, models)
    return models


def _only_child(source: Source, key: Key) -> Key:
    children = source.children(*key)
    names = [str(child[-1]) for child in children]
    if len(names) != 1 or not re.fullmatch(r"[A-Za-z]\w*", names[0], re.ASCII) or names[0] == GROUND_TRUTH:
        raise source.error(key, f"expected one network with a plain name, got {names}")
    return children[0]


def _frozen(made: Draft, models: Sequence[_Model]) -> None:
    key: Key = ("MODEL", "freeze_params_list")
    value = made.source.take(*key)
    if value is None:
        return
    if not isinstance(value, list) or len(value) != len(models) or not all(isinstance(item, bool) for item in value):
        raise made.source.error(key, f"expected true or false for each of {', '.join(made.models)}, got {value!r}")
    frozen = [model for model, is_frozen in zip(models, value, strict=True) if is_frozen]
    if frozen:
        names = ", ".join(model.name for model in frozen)
        made.body["frozen"] = [model.name for model in frozen]
        made.differs(key, f"{names} is in eval mode too; the origin leaves its dropout and BatchNorm in train mode")
    for model in frozen:
        if not model.options["pretrained"]:
            made.differs(key, f"a frozen network needs weights: give models.{model.name}.pretrained")


def _model(made: Draft, name: str, key: Key) -> _Model:
    source = made.source
    backbone, head = (*key, "backbone"), (*key, "head")
    builders = {"PPTSM_v2": ("MoViNetHead", _pptsm_v2), "ResNetTweaksTSM": ("ppTSMHead", _pptsm_resnet)}
    kind, head_kind = source.text(*backbone, "name"), source.text(*head, "name")
    if kind not in builders:
        raise source.error((*backbone, "name"), f"expected one of {', '.join(builders)}, got {kind or 'nothing'}")
    expected, build = builders[kind]
    if head_kind != expected:
        raise source.error((*head, "name"), f"{kind} goes with {expected}, got {head_kind or 'nothing'}")
    config, options = build(made, backbone, head)
    return _Model(name, key, config, {"pretrained": source.text(*backbone, "pretrained") or None, **options})


def _pptsm_v2(made: Draft, backbone: Key, head: Key) -> tuple[str, dict[str, Any]]:
    source = made.source
    options: dict[str, Any] = {"temporal_attention": source.take(*backbone, "use_temporal_att", default=False) is True}
    defaults: dict[str, tuple[str, Value]] = {
        "scale": ("scale", 1.0),
        "depths": ("depths", [2, 2, 6, 2]),
        "class_expand": ("class_expand", 1280),
        "dropout_prob": ("dropout", 0.2),
    }
    for theirs, (ours, default) in defaults.items():
        value = source.take(*backbone, theirs, default=default)
        if value != default:
            options[ours] = value
    source.expect(True, (*backbone, "use_last_conv"), "the last convolution is always there; the origin fails without")
    source.expect(False, (*backbone, "use_ssld"), "no weights are downloaded: give them as pretrained")
    for key, default in (((*backbone, "num_seg"), 8), ((*head, "num_seg"), None)):
        made.agree(FRAMES, key, default)
    for key, default in (((*backbone, "class_num"), 400), ((*head, "num_classes"), None)):
        made.agree(CLASSES, key, default)
    return "pptsmv2", options


def _pptsm_resnet(made: Draft, backbone: Key, head: Key) -> tuple[str, dict[str, Any]]:
    source = made.source
    depth = source.integer(*backbone, "depth", default=50)
    if depth not in RESNET_DEPTHS:
        raise source.error((*backbone, "depth"), f"expected one of {list(RESNET_DEPTHS)}, got {depth}")
    channels = 2048 if depth >= 50 else 512
    if source.take(*head, "in_channels", default=channels) != channels:
        raise source.error((*head, "in_channels"), f"a ResNet of depth {depth} gives {channels} channels")
    source.expect(0.01, (*head, "std"), "the classifier always starts with a deviation of 0.01")
    made.agree(FRAMES, (*backbone, "num_seg"), 8)
    made.agree(FRAMES, (*head, "num_seg"))
    made.agree(CLASSES, (*head, "num_classes"), 400)
    return f"pptsm_resnet{depth}", {"dropout": source.number(*head, "drop_ratio", default=0.8)}


# Losses


def _losses(made: Draft, models: Sequence[_Model]) -> None:
    source = made.source
    if source.text("MODEL", "framework") == "Recognizer2D":
        _recognizer_losses(made)
        return
    for model in models:
        for name in ("ls_eps", "loss_cfg"):
            if source.has(*model.key, "head", name):
                source.remark((*model.key, "head", name), "RecognizerDistillation never uses the loss of a head")
    for stage, section in (("Train", "losses"), ("Val", "val_losses")):
        key: Key = ("MODEL", "loss", stage)
        for entry in source.children(*key):
            _loss_term(made, entry, section)
        if section not in made.body and (stage == "Train" or source.has(*key)):
            raise source.error(key, "expected a DistillationCELoss or DistillationDMLLoss, got none")


def _recognizer_losses(made: Draft) -> None:
    term = {"pair": ["Student", GROUND_TRUTH]}
    smoothing = made.source.number("MODEL", "head", "ls_eps", default=0.0)
    made.defaults += ["/loss@losses.ce.loss: cross_entropy", "/loss@val_losses.ce.loss: cross_entropy"]
    made.body["losses"] = {"ce": {**term, "loss": {"label_smoothing": smoothing}} if smoothing else term}
    made.body["val_losses"] = {"ce": {**term}}


def _loss_term(made: Draft, key: Key, section: str) -> None:
    source = made.source
    kind, pair = source.text(*key, "name"), source.take(*key, "model_name_pairs")
    if kind not in ("DistillationCELoss", "DistillationDMLLoss"):
        source.remark(key, f"no counterpart for {kind or 'a loss without a name'}; add your own term to {section}")
        return
    mutual = kind == "DistillationDMLLoss"
    seconds = made.models if mutual else [GROUND_TRUTH]
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in made.models or pair[1] not in seconds:
        expected = f"{' or '.join(made.models)} with {' or '.join(seconds)}"
        raise source.error((*key, "model_name_pairs"), f"expected {expected}, got {pair!r}")
    term: dict[str, Any] = {"pair": [str(name) for name in pair]}
    weight = source.number(*key, "loss_weight", default=1.0)
    if weight != 1.0:
        term["weight"] = weight
    if mutual:
        activation, eps = source.take(*key, "act", default="softmax"), source.number(*key, "eps", default=1e-12)
        options = {"activation": activation} if activation != "softmax" else {}
        options |= {"eps": eps} if eps != 1e-12 else {}
        if options:
            term["loss"] = options
    stem = "dml" if mutual else f"ce_{str(pair[0]).lower()}"
    terms = made.section(section)
    name = next(name for name in (stem, *(f"{stem}_{i}" for i in range(2, 1000))) if name not in terms)
    made.defaults.append(f"/loss@{section}.{name}.loss: {'dml' if mutual else 'cross_entropy'}")
    terms[name] = term
