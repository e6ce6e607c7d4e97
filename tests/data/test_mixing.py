from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lit_distill.data import CutMix, Mixup, VideoMix
from lit_distill.data.mixing import Mix
from lit_distill.data.transforms import Box

CLIPS = torch.randn(6, 4, 3, 10, 12, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
MIXERS = [Mixup(), CutMix(), VideoMix()]


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: type(mixer).__name__)
def test_targets_are_probabilities_and_the_batch_is_left_alone(mixer: Any) -> None:
    before = CLIPS.clone()
    for seed in range(20):
        clips, target = mixer.draw(6, 10, 12, random.Random(seed))(CLIPS, TARGET, 5)
        assert clips.shape == CLIPS.shape
        assert target.shape == (6, 5)
        assert target.dtype == torch.float32
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        assert target.min() >= 0
    assert torch.equal(CLIPS, before)


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: type(mixer).__name__)
def test_draws_follow_the_generator_only(mixer: Any) -> None:
    one, two, other = (mixer.draw(6, 10, 12, random.Random(seed)) for seed in (4, 4, 5))
    assert torch.equal(one.partner, two.partner)
    assert (one.weight, one.box) == (two.weight, two.box)
    assert not torch.equal(one.partner, other.partner) or one.weight != other.weight


def test_mixup_formula() -> None:
    mix = Mix(torch.tensor([3, 2, 1, 0, 5, 4]), torch.tensor(0.3))
    clips, target = mix(CLIPS, TARGET, 5)
    torch.testing.assert_close(clips[0], 0.3 * CLIPS[0] + 0.7 * CLIPS[3])
    torch.testing.assert_close(target[1], torch.tensor([0.0, 0.3, 0.7, 0.0, 0.0]))


def test_mixing_soft_targets() -> None:
    soft = torch.eye(5)[TARGET] * 0.8 + 0.04
    _, target = Mix(torch.arange(5, -1, -1), torch.tensor(0.25))(CLIPS, soft, 5)
    torch.testing.assert_close(target, 0.25 * soft + 0.75 * soft.flip(0))


def test_cutmix_cuts_height_and_width_of_all_frames_and_channels() -> None:
    box = Box(left=2, top=1, width=5, height=4)
    partner = torch.tensor([1, 2, 3, 4, 5, 0])
    clips, target = Mix(partner, torch.tensor(1 - 20 / 120), box)(CLIPS, TARGET, 5)
    inside = torch.zeros(10, 12, dtype=torch.bool)
    inside[1:5, 2:7] = True
    torch.testing.assert_close(clips[..., inside], CLIPS[partner][..., inside], rtol=0, atol=0)
    torch.testing.assert_close(clips[..., ~inside], CLIPS[..., ~inside], rtol=0, atol=0)
    torch.testing.assert_close(target[0], torch.tensor([100 / 120, 20 / 120, 0, 0, 0]))


def test_cutmix_weight_is_the_area_kept() -> None:
    for seed in range(100):
        mix = CutMix(alpha=1.0).draw(2, 10, 12, random.Random(seed))
        assert mix.box is not None
        assert 0 <= mix.box.left <= mix.box.left + mix.box.width <= 12
        assert 0 <= mix.box.top <= mix.box.top + mix.box.height <= 10
        assert float(mix.weight) == pytest.approx(1 - mix.box.width * mix.box.height / 120)


def test_every_sample_has_its_own_partner() -> None:
    for seed in range(20):
        assert sorted(Mixup().draw(6, 4, 4, random.Random(seed)).partner.tolist()) == list(range(6))


def test_mixup_weights_are_of_a_beta_distribution() -> None:
    rng = random.Random(0)
    weights = torch.stack([Mixup(alpha=0.2).draw(2, 4, 4, rng).weight for _ in range(3000)])
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(0.25 / 1.4, abs=0.01)  # of Beta(a, a): 1 / (4 (2a + 1))


def test_videomix_only_one_kind() -> None:
    for probability in (0.0, 1.0):
        mixer = VideoMix(cutmix_probability=probability)
        assert all((mixer.draw(2, 8, 8, random.Random(s)).box is not None) == probability for s in range(20))


@pytest.mark.parametrize(
    "make", [lambda: Mixup(alpha=0), lambda: CutMix(alpha=-1.0), lambda: VideoMix(mixup_alpha=0.0)]
)
def test_alpha_is_checked(make: Any) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        make()


def test_probability_is_checked() -> None:
    with pytest.raises(ValueError, match="cutmix_probability must be from 0 to 1, got 2"):
        VideoMix(cutmix_probability=2)
