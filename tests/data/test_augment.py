"""Augmentation of clips and images: one draw a clip, a function of its key; and smoothed labels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from lit_distill.data import (
    ClipTransform,
    FrameSampling,
    MovingDigits,
    Sample,
    SampleKey,
    VideoDataset,
    VideoMix,
    write_video,
)
from lit_distill.data.augment import augmentation, augmented, torch_seeded
from lit_distill.data.mixing import class_probabilities, mixer_of
from lit_distill.data.samplers import seeded

from .test_datamodule import fit, make

NAMES: list[Any] = ["autoaugment", "randaugment", "trivialaugment"]
NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 24, 32), dtype=np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_all_frames_get_the_same(name: Any) -> None:
    transform = augmentation(name)
    still = NOISE[:1].expand(4, -1, -1, -1).contiguous()
    changed = 0
    for seed in range(60):
        view = augmented(still, transform, seed)
        assert view.dtype == torch.uint8
        assert all(torch.equal(frame, view[0]) for frame in view)
        changed += not torch.equal(view, still)
    assert changed > 30


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_what_they_are_alone(name: Any) -> None:
    """No frame is made from another, and their order stays."""
    transform = augmentation(name)
    for seed in range(25):
        alone = torch.cat([augmented(frame[None], transform, seed) for frame in NOISE])
        assert torch.equal(augmented(NOISE, transform, seed), alone)


def test_nothing_else_notices_the_draws() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    augmented(NOISE, augmentation("trivialaugment"), 1)
    with torch_seeded("x"):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def still_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of equal frames."""
    path = tmp_path_factory.mktemp("still") / "still.mp4"
    picture = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(path, np.repeat(picture[None], 12, 0))
    return path


def dataset(path: Path, **arguments: Any) -> VideoDataset:
    return VideoDataset(
        [Sample(str(path), 0)] * 6,
        sampling=FrameSampling(num_frames=4),
        transform=ClipTransform(size=28, scale=32),
        **arguments,
    )


def test_a_training_view_is_the_published_one_then_torchvisions(still_video: Path) -> None:
    plain, random_one = dataset(still_video, seed=5), dataset(still_video, augment=augmentation("randaugment"), seed=5)
    reference = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
    differ = 0
    for key in (SampleKey(0, 0), SampleKey(0, 1), SampleKey(3, 1)):
        clip, expected = random_one[key][0], plain[key][0]
        assert isinstance(clip, torch.Tensor)
        assert isinstance(expected, torch.Tensor)
        torch.manual_seed(seeded("augment", 5, *key).getrandbits(63))
        assert torch.equal(clip, reference(expected))
        differ += not torch.equal(clip, expected)
    assert differ


@pytest.mark.parametrize("views", ["center", "dense"])
def test_evaluation_is_not_augmented(still_video: Path, views: Any) -> None:
    one, other = (dataset(still_video, views=views, augment=a) for a in (None, augmentation("randaugment")))
    assert torch.equal(one[0][0], other[0][0])  # type: ignore[arg-type]


def test_workers_change_nothing(videos: Path) -> None:
    arguments: dict[str, Any] = {"augment": "randaugment", "mix": "videomix", "label_smoothing": 0.1}
    alone, helped = (fit(make(videos, num_workers=n, **arguments)).batches for n in (0, 2))
    plain = fit(make(videos)).batches
    for stage in ("train", "val"):
        for one, other in zip(alone[stage], helped[stage], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(alone["train"][0][0], plain["train"][0][0])
    assert torch.equal(alone["val"][0][0], plain["val"][0][0])


def test_an_unknown_augmentation_is_told(videos: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.augment is one of .*'randaugment'.* got 'augmix'"):
        make(videos, augment="augmix")


def test_moving_digits_refuse_what_turns_motions_round(tmp_path: Path) -> None:
    given: dict[str, Any] = {"root": tmp_path, "clips": (20, 20, 20), "digits": (1,), "motions": ("left", "right")}
    assert MovingDigits(**given, augment="randaugment").augment is not None
    with pytest.raises(ValueError, match=r"rotates clips by up to 135 degrees.* choose randaugment or autoaugment"):
        MovingDigits(**given, augment="trivialaugment")


# Labels ---------------------------------------------------------------------------------------------------------------


def test_smoothing_is_that_of_cross_entropy() -> None:
    logits, target = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 1, 3, 3])
    smooth = class_probabilities(target, 5, smoothing=0.2)
    torch.testing.assert_close(smooth.sum(1), torch.ones(6))
    torch.testing.assert_close(F.cross_entropy(logits, smooth), F.cross_entropy(logits, target, label_smoothing=0.2))
    assert torch.equal(class_probabilities(target, 5), F.one_hot(target, 5).float())


def test_smoothing_and_mixing_of_a_batch(videos: Path) -> None:
    """The order of the two makes no difference, and validation keeps its labels."""
    smooth = fit(make(videos, mix="mixup", label_smoothing=0.3)).batches
    sharp = fit(make(videos, mix="mixup")).batches
    for (inputs, target, index), (same_inputs, before, same_index) in zip(smooth["train"], sharp["train"], strict=True):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(index, same_index)
        torch.testing.assert_close(target, before * 0.7 + 0.1)
    assert [target.dtype for _, target, _ in smooth["val"]] == [torch.int64] * len(smooth["val"])
    alone = fit(make(videos, label_smoothing=0.3)).batches["train"]
    for _, target, index in alone:
        torch.testing.assert_close(target, F.one_hot(index // 4, 3) * 0.7 + 0.1)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_smoothing_is_checked(videos: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"data\.label_smoothing must be from 0 to below 1, got"):
        make(videos, label_smoothing=value)


def test_a_mixer_by_its_name(videos: Path) -> None:
    named, given = (fit(make(videos, mix=mix)).batches["train"] for mix in ("videomix", VideoMix()))
    for one, other in zip(named, given, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert mixer_of(None) is None
    draws = [make(videos, mix="cutmix").mix.draw(2, 8, 8, random.Random(s)) for s in range(5)]  # type: ignore[union-attr]
    assert all(draw.box is not None for draw in draws)
    with pytest.raises(ValueError, match=r"data\.mix is one of \['mixup', 'cutmix', 'videomix'\].* got 'blend'"):
        make(videos, mix="blend")
