"""The draft of an experiment, and what PaddleVideo's DATASET, PIPELINE, OPTIMIZER, MIX and the rest put into it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lit_distill.paddlevideo.yaml_lines import Key, Remark, Source, Value
from lit_distill.schedules import WarmupCosine

FRAMES = "number of frames"
CLASSES = "number of classes"
_SUFFIX = r"[\w.+ -]*\{:0?\d{0,2}d?\}[\w.+ -]*"


@dataclass
class Draft:
    """An experiment file in the making; Hydra wants the overrides of groups last."""

    source: Source
    models: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    overrides: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    different: list[Remark] = field(default_factory=list)
    _agreed: dict[str, tuple[Key, int]] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        """A section of the body, made when it is first asked for."""
        section: dict[str, Any] = self.body.setdefault(name, {})
        return section

    def differs(self, key: Key, text: str) -> None:
        """Note that ``key`` was carried over, but means something else here."""
        self.different.append(Remark(self.source.name(key), self.source.line(key), text))

    def agree(self, what: str, key: Key, default: int | None = None) -> None:
        """Every network of an experiment has the same frames and classes: raise where the config says otherwise."""
        if not self.source.has(*key) and default is None:
            return
        value = self.source.integer(*key, default=default or 0)
        first_key, first = self._agreed.setdefault(what, (key, value))
        if value != first:
            where = f"{self.source.name(first_key)} (line {self.source.line(first_key)})"
            raise self.source.error(key, f"the {what} is {value}, but {first} in {where}")

    def agreed(self, what: str) -> int:
        """What all parts of the config agreed on."""
        return self._agreed[what][1]

    def share(self, option: str, value: Value, key: Key) -> None:
        """Set ``data.<option>``; there is one for all splits, and the first, that of the training, counts."""
        data = self.section("data")
        if data.setdefault(option, value) != value:
            self.source.remark(key, f"data.{option}={data[option]} is that of all splits")


def dataset(made: Draft) -> None:
    """DATASET: where the videos are, and how many at once."""
    source, data = made.source, made.section("data")
    made.overrides["data"] = "video_list"
    formats = {"FrameDataset": "frames", "VideoDataset": "video"}
    for split, ours in (("train", "train_list"), ("valid", "val_list"), ("test", "test_list")):
        key: Key = ("DATASET", split)
        if not source.has(*key):
            continue
        kind = source.text(*key, "format")
        if kind not in formats:
            raise source.error((*key, "format"), f"expected one of {', '.join(formats)}, got {kind or 'nothing'}")
        made.share("format", formats[kind], (*key, "format"))
        made.share("root", source.text(*key, "data_prefix") or ".", (*key, "data_prefix"))
        if kind == "FrameDataset":
            suffix = source.text(*key, "suffix", default="img_{:05}.jpg")
            if not re.fullmatch(_SUFFIX, suffix):
                raise source.error((*key, "suffix"), f"expected a pattern such as img_{{:05}}.jpg, got {suffix!r}")
            made.share("suffix", suffix, (*key, "suffix"))
        listed = source.text(*key, "file_path")
        if not listed:
            raise source.error((*key, "file_path"), "expected a list file, got none")
        data[ours] = listed if os.path.isabs(listed) else os.path.relpath(listed, str(data["root"]))
    if "train_list" not in data or "val_list" not in data:
        raise source.error(("DATASET",), "expected train and valid")
    data["num_classes"], data["num_frames"] = made.agreed(CLASSES), made.agreed(FRAMES)
    data["batch_size"] = source.integer("DATASET", "batch_size", default=8)
    for theirs, ours in (("valid_batch_size", "eval_batch_size"), ("num_workers", "num_workers")):
        if source.has("DATASET", theirs):
            data[ours] = source.integer("DATASET", theirs, default=0)


def pipeline(made: Draft) -> None:
    """PIPELINE: which frames make a clip, and what is done to them."""
    source = made.source
    for split in ("train", "valid", "test"):
        key: Key = ("PIPELINE", split)
        if not source.has(*key):
            continue
        _decoding(made, key)
        _sampling(made, (*key, "sample"), split)
        allowed = _TRANSFORMS | (_RANDOM_TRANSFORMS if split == "train" else _CENTER_TRANSFORMS)
        for entry in source.children(*key, "transform"):
            for transform in source.children(*entry):
                name = str(transform[-1])
                if name in allowed:
                    source.take(*transform)
                    allowed[name](made, transform)
                else:
                    source.remark(transform, f"no counterpart in {split}")
    data = made.section("data")
    if "size" not in data:
        raise source.error(
            ("PIPELINE", "train", "transform"), "expected a RandomCrop, which says the size of the clips"
        )
    for option, absent in (("multi_scale", False), ("flip", 0.0)):
        data.setdefault(option, absent)


def _decoding(made: Draft, key: Key) -> None:
    expected = {"frames": "FrameDecoder", "video": "VideoDecoder"}[made.section("data")["format"]]
    name = made.source.text(*key, "decode", "name", default=expected)
    if name != expected:
        raise made.source.error((*key, "decode", "name"), f"the data set goes with {expected}, got {name}")
    if made.source.has(*key, "decode", "backend"):
        made.source.remark((*key, "decode", "backend"), "PyAV decodes, and its frames are those of ffmpeg")


def _sampling(made: Draft, key: Key, split: str) -> None:
    source = made.source
    made.agree(FRAMES, (*key, "num_seg"))
    source.expect("Sampler", (*key, "name"), "frames are sampled as by Sampler")
    source.expect(1, (*key, "seg_len"), "a segment gives one frame")
    source.expect(split != "train", (*key, "valid_mode"), "training draws its frames at random, evaluation does not")
    flags = {"select_left": "select_left", "linspace_sample": "linspace", "dense_sample": "dense"}
    chosen = [mode for flag, mode in flags.items() if source.take(*key, flag, default=False) is True]
    mode = chosen[0] if chosen else "plain"
    if split == "test" and mode == "dense" and made.section("data").get("sampling") != "dense":
        made.section("data")["views"] = "dense"
        made.differs(
            key, "data.views=dense, 10 clips x 3 crops, holds in validation too; data.views=center is one view"
        )
    else:
        made.share("sampling", mode, key)


def _scale(made: Draft, key: Key) -> None:
    source = made.source
    made.share("scale", source.integer(*key, "short_size", default=256), (*key, "short_size"))
    fixed, keep = source.take(*key, "fixed_ratio", default=True), source.take(*key, "keep_ratio")
    made.share("aspect", "fixed" if fixed else "keep" if keep else "square", key)
    source.expect(False, (*key, "do_round"), "the longer side is cut to whole pixels")
    source.expect("pillow", (*key, "backend"), "frames are scaled by Pillow's antialiased filter")


def _multi_scale_crop(made: Draft, key: Key) -> None:
    source, data = made.source, made.section("data")
    data["multi_scale"] = True
    side = data.setdefault("scale", 256)
    source.expect(side, (*key, "target_size"), f"crops are resized to data.scale={side}")
    published: dict[str, Value] = {
        "scales": [1, 0.875, 0.75, 0.66],
        "max_distort": 1,
        "fix_crop": True,
        "allow_duplication": False,
        "more_fix_crop": True,
        "backend": "pillow",
    }
    for name, value in published.items():
        source.expect(value, (*key, name), f"always {value}, the origin's default")


def _crop(made: Draft, key: Key) -> None:
    made.share("size", made.source.integer(*key, "target_size", default=224), (*key, "target_size"))
    made.source.expect(True, (*key, "do_round"), "offsets are rounded half to even")
    made.source.expect("pillow", (*key, "backend"), "frames are cropped as bytes")


def _flip(made: Draft, key: Key) -> None:
    made.share("flip", made.source.number(*key, "p", default=0.5), key)


def _image_to_array(made: Draft, key: Key) -> None:
    for name, value in (("transpose", True), ("data_format", "tchw")):
        made.source.expect(value, (*key, name), "clips are always (T, C, H, W)")


def _normalization(made: Draft, key: Key) -> None:
    published: dict[str, Value] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    for name, default in published.items():
        value = made.source.take(*key, name, default=default)
        if not isinstance(value, list) or len(value) != 3:
            raise made.source.error((*key, name), f"expected three numbers, got {value!r}")
        made.share(name, value, (*key, name))
    made.source.expect([3, 1, 1], (*key, "tensor_shape"), "each channel is normalised")
    made.source.expect(False, (*key, "inplace"), "each channel is normalised")


_Handler: TypeAlias = Callable[[Draft, Key], None]
_TRANSFORMS: dict[str, _Handler] = {
    "Scale": _scale,
    "Image2Array": _image_to_array,
    "Normalization": _normalization,
}
_RANDOM_TRANSFORMS: dict[str, _Handler] = {
    "MultiScaleCrop": _multi_scale_crop,
    "RandomCrop": _crop,
    "RandomFlip": _flip,
}
_CENTER_TRANSFORMS: dict[str, _Handler] = {"CenterCrop": _crop}


def optimizer(made: Draft) -> None:
    """OPTIMIZER and epochs: Momentum, its decay and the learning rate."""
    source, preset = made.source, made.section("preset")
    key: Key = ("OPTIMIZER",)
    source.expect("Momentum", (*key, "name"), "Momentum is used: choose another with optimizer=<name>")
    options: dict[str, Any] = {}
    momentum = source.number(*key, "momentum", default=0.9)
    if momentum != 0.9:
        options["momentum"] = momentum
    if source.take(*key, "use_nesterov", default=False) is not True:
        options["nesterov"] = False
    if options:
        made.body["optimizer"] = options
    epochs = source.integer("epochs", default=0)
    if epochs < 1:
        raise source.error(("epochs",), f"expected a number of epochs, got {epochs}")
    preset["epochs"] = epochs
    made.overrides["optimizer"] = "paddle_momentum"
    made.overrides["scheduler"] = _learning_rate(made, (*key, "learning_rate"), epochs)
    preset["weight_decay"] = 0.0
    if source.has(*key, "weight_decay"):
        if source.text(*key, "weight_decay", "name", default="L2") == "L2":
            preset["weight_decay"] = source.number(*key, "weight_decay", "value", default=1e-4)
        else:
            source.remark((*key, "weight_decay"), "only L2 has a counterpart: nothing decays")


def _learning_rate(made: Draft, key: Key, epochs: int) -> str:
    """Put the learning rate into the preset; the name of its schedule."""
    source, preset = made.source, made.section("preset")
    if not source.children(*key):
        preset["lr"] = source.number(*key, default=0.01)
        return "none"
    if source.text(*key, "name") != "CustomWarmupCosineDecay":
        preset["lr"] = source.number(*key, "learning_rate", default=0.01)
        source.remark(key, f"only CustomWarmupCosineDecay has a counterpart: the rate stays at {preset['lr']}")
        return "none"
    base = source.number(*key, "cosine_base_lr", default=0.01)
    if base <= 0:
        raise source.error((*key, "cosine_base_lr"), f"expected a rate above 0, got {base}")
    preset["warmup_epochs"] = source.number(*key, "warmup_epochs", default=10)
    preset["lr"] = base
    scheduler: dict[str, Any] = {}
    start = source.number(*key, "warmup_start_lr", default=base * WarmupCosine.warmup_start) / base
    if start != WarmupCosine.warmup_start:
        scheduler["warmup_start"] = start
    total = source.number(*key, "max_epoch", default=epochs)
    if total != epochs:
        scheduler["epochs"] = total
    if scheduler:
        made.body["scheduler"] = scheduler
    if source.take(*key, "iter_step", default=False) is not True:
        made.differs((*key, "iter_step"), "the rate changes with every step, not with every epoch")
    return "warmup_cosine"


def mix(made: Draft) -> None:
    """MIX: how training batches are mixed."""
    source = made.source
    kind = source.text("MIX", "name")
    options = {
        "Mixup": {"alpha": "alpha"},
        "Cutmix": {"alpha": "alpha"},
        "VideoMix": {"cutmix_prob": "cutmix_probability", "cutmix_alpha": "cutmix_alpha", "mixup_alpha": "mixup_alpha"},
    }
    if kind not in options:
        if kind:
            source.remark(("MIX",), "no counterpart: batches are not mixed")
        return
    values = {
        ours: source.number("MIX", theirs, default=0.5 if "prob" in theirs else 0.2)
        for theirs, ours in options[kind].items()
    }
    made.section("data")["mix"] = {"_target_": f"lit_distill.data.{kind.replace('Cutmix', 'CutMix')}", **values}
    if kind != "Mixup":
        made.differs(("MIX", "name"), "cuts height and width; the origin cuts channels and height by mistake")


def trainer(made: Draft) -> None:
    """Intervals, METRIC and INFERENCE."""
    source = made.source
    for theirs, ours in (("log_interval", "log_every_n_steps"), ("val_interval", "check_val_every_n_epoch")):
        if source.has(theirs):
            made.section("trainer")[ours] = source.integer(theirs, default=1)
    if made.section("data").get("views") == "dense":
        source.expect("MultiCropMetric", ("METRIC", "name"), "top-1 and top-5 are averaged over the views")
    else:
        source.expect(
            "CenterCropMetric", ("METRIC", "name"), "top-1 and top-5 of one view; data.views=dense averages 30"
        )
    if source.has("INFERENCE"):
        source.expect(
            "ppTSM_Inference_helper", ("INFERENCE", "name"), "prediction samples and crops as evaluation does"
        )
        source.expect(made.agreed(FRAMES), ("INFERENCE", "num_seg"), "prediction has the frames of the networks")
        size = made.section("data")["size"]
        source.expect(size, ("INFERENCE", "target_size"), f"prediction has data.size={size}")
