"""Adapters of the data kind: frame tables, geometry, whole pipelines with Mixup, and the learning-rate schedule."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lit_distill.data.mixing import Mix
from lit_distill.data.sampling import FrameSampling, Mode, linspace_frames
from lit_distill.data.transforms import (
    Aspect,
    ClipTransform,
    center_box,
    crop,
    multi_scale_box,
    multi_scale_offsets,
    multi_scale_sizes,
    normalize,
    resize,
    scaled_size,
)
from lit_distill.schedules import WarmupCosine
from parity.harness import Case, CaseAdapter

TABLE = re.compile(
    r"(?P<mode>plain|linspace|dense|select_left|frame_interval(?P<interval>\d+))"
    r"(_start(?P<start>\d+)_end(?P<end>\d+))?(_(?P<stage>train|valid))?_(?P<format>frame|video)"
    r"(_seglen(?P<length>\d+))?(_(?P<source>py|np)(random)?seed(?P<seed>\d+))?"
)


class NumpyLegacy(random.Random):
    """numpy's global generator in the shape of Python's: the reference drew from either."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.state = np.random.RandomState(seed)

    def randint(self, a: int, b: int) -> int:
        return int(self.state.randint(a, b + 1))


class Recorded(random.Random):
    """Gives the recorded results of the reference's random calls, in their order."""

    def __init__(self, calls: Sequence[Sequence[Any]]) -> None:
        super().__init__(0)
        self.calls: Iterator[Sequence[Any]] = iter(calls)

    def _next(self, name: str) -> Sequence[Any]:
        call = next(self.calls)
        assert call[0] == name, f"the reference called {call[0]} next, not {name}"
        return call[1:]

    def choice(self, seq: Any) -> Any:
        (result,) = self._next("choice")
        assert tuple(result) in seq
        return tuple(result)

    def randint(self, a: int, b: int) -> int:
        low, high, result = self._next("randint")
        assert (low, high) == (a, b)
        return int(result)

    def random(self) -> float:
        return float(self._next("random")[0])


def sampler(case: Case) -> None:
    for name, table in read(case)["tables"].items():
        match = TABLE.fullmatch(name)
        assert match is not None, f"{case}: no rule reads the table {name}"
        assert table, f"{case}: the table {name} is empty"
        for key, expected in table.items():
            segments, length = map(int, key.split("/"))
            assert frames_of(match, segments, length) == expected, f"{case}: {name} {key}"


def frames_of(match: re.Match[str], segments: int, length: int) -> list[int]:
    first = 1 if match["format"] == "frame" else 0
    if match["start"]:
        return linspace_frames(segments, length, span=(int(match["start"]), int(match["end"])))
    modes: Mapping[str, Mode] = {m: m for m in ("plain", "linspace", "dense", "select_left")}
    sampling = FrameSampling(
        num_frames=segments,
        mode=modes.get(match["mode"], "interval"),
        segment_length=int(match["length"] or 1),
        frame_interval=int(match["interval"] or 1),
    )
    if match["stage"] == "train":
        rng = NumpyLegacy(int(match["seed"])) if match["source"] == "np" else random.Random(int(match["seed"]))
        return sampling.training(length, rng, first)
    clips = sampling.evaluation(length, first, clips=10 if sampling.mode == "dense" else 1)
    return [frame for clip in clips for frame in clip]


def geometry(case: Case) -> None:
    data = read(case)
    aspects: Mapping[str, tuple[Aspect, bool, int]] = {
        "default": ("fixed", False, 256),
        "keep_ratio": ("keep", False, 256),
        "keep_ratio_round": ("keep", True, 256),
        "square": ("square", False, 256),
        "short340": ("fixed", False, 340),
    }
    for name, sizes in data["scale"].items():
        aspect, rounded, short = aspects[name]
        for size, expected in sizes.items():
            assert list(scaled_size(*sides(size), short, aspect=aspect, rounded=rounded)) == expected, (name, size)
    for size, boxes in data["center_crop_box"].items():
        for name, expected in boxes.items():
            box = center_box(*sides(size), 224, rounded=name == "round")
            assert [box.left, box.top, box.left + box.width, box.top + box.height] == expected, (size, name)
    (multi_scale,) = (key for key in data if key.startswith("multiscale_crop_target"))
    target = int(multi_scale.removeprefix("multiscale_crop_target"))
    for size, choices in data[multi_scale].items():
        crops = [list(pair) for pair in multi_scale_sizes(*sides(size), target)]
        assert crops == choices["size_choices_wh"], size
        for pair, expected in choices["offset_choices"].items():
            width, height = sides(pair)
            assert [list(o) for o in multi_scale_offsets(*sides(size), (width, height))] == expected, (size, pair)


def pipelines(case: Case) -> None:
    runs = read(case)
    assert runs
    for meta in runs:
        with np.load(case.folder / meta["file"]) as archive:
            arrays = {name: archive[name] for name in archive.files}
        (mixing if "cls" in meta else pipeline)(meta, arrays)


def pipeline(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    frames = arrays["frames"]
    rng, side = Recorded(meta["random_calls_in_order"]), meta["multiscale_target"]
    transform = ClipTransform(size=meta["crop"], scale=meta["short_size"])
    scaled = transform.scaled(frames)
    np.testing.assert_array_equal(scaled, arrays["after_scale"])
    height, width = scaled.shape[1:3]
    resized = resize(crop(scaled, multi_scale_box(width, height, side, rng)), side, side)
    np.testing.assert_array_equal(resized, arrays["after_multiscale"])
    views = {"valid_out": transform.center(frames)}
    if side == meta["short_size"]:  # as in every published recipe
        views["train_out"] = transform.training(frames, Recorded(meta["random_calls_in_order"]))
    for name, view in views.items():
        clip = torch.from_numpy(np.ascontiguousarray(view.transpose(0, 3, 1, 2)))
        floats = normalize(clip, meta["mean"], meta["std"]).numpy()
        np.testing.assert_allclose(floats, arrays[name], rtol=0, atol=1e-6, err_msg=name)


def mixing(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    partner = torch.from_numpy(arrays["perm"])
    labels = torch.from_numpy(arrays["label_a"]).flatten()
    np.testing.assert_array_equal(labels[partner], arrays["label_b"].flatten())
    weight = torch.tensor(float(arrays["beta_draw"] if meta["cls"] == "Mixup" else arrays["lam"][0]))
    np.testing.assert_array_equal(weight.expand(len(labels)), arrays["lam"])
    clips, target = Mix(partner, weight)(torch.from_numpy(arrays["imgs"]), labels, int(labels.max()) + 1)
    if meta["cls"] == "Mixup":  # the reference's Cutmix cuts channels instead of the width: only its targets are right
        np.testing.assert_allclose(clips, arrays["out_imgs"], rtol=1e-6, atol=1e-6)
    expected = torch.zeros_like(target)
    rows = torch.arange(len(labels))
    expected[rows, labels] += weight
    expected[rows, labels[partner]] += 1 - weight
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-7)


def learning_rate(case: Case) -> None:
    data = read(case)
    config = data["dml16_config"]
    schedule = WarmupCosine(
        epochs=config["max_epoch"],
        warmup_epochs=config["warmup_epochs"],
        warmup_start=config["warmup_start_lr"] / config["cosine_base_lr"],
    )
    starts = data["lr_at_epoch_start"]
    assert len(starts["values"]) == config["max_epoch"]
    for epoch, expected in enumerate([*starts["values"], starts["after_last_step"]]):
        # the reference adds 1 / num_iters up step by step, and is off from the closed form by that much
        assert abs(config["cosine_base_lr"] * schedule(epoch) - expected) < 1e-14, epoch
    (steps,) = (key for key in data if key.startswith("per_iteration"))
    iterations = int(steps.rsplit("num_iters", 1)[1])
    for step, expected in enumerate(data[steps]):
        assert abs(config["cosine_base_lr"] * schedule(step / iterations) - expected) < 1e-14, step


def read(case: Case) -> Any:
    return json.loads(case.path.read_text())


def sides(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


def data(case: Case) -> None:
    """Every case of the kind, by the name of its file."""
    by_file = {
        "sampler": sampler,
        "geometry": geometry,
        "pipelines": pipelines,
        "lr_schedule": learning_rate,
    }
    (stem,) = (stem for stem in by_file if case.path.stem.startswith(stem))
    by_file[stem](case)


ADAPTERS: dict[str, CaseAdapter] = {"data": data}
