from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lit_distill.models.layers import (
    BiasedBatchNorm2d,
    DownscaleInInferDropout,
    init_convolutions,
    make_divisible,
    make_dropout,
)


def test_biased_running_variance_and_nothing_else_differs() -> None:
    torch.manual_seed(0)
    biased, plain = BiasedBatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    for _ in range(3):
        x = torch.randn(4, 3, 5, 2, dtype=torch.float64)
        before = biased.running_var.clone()  # type: ignore[union-attr]
        assert torch.equal(biased(x), plain(x))
        expected = 0.9 * before + 0.1 * x.var(dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(biased.running_var, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(biased.running_mean, plain.running_mean, rtol=1e-12, atol=1e-15)
    assert biased.num_batches_tracked == plain.num_batches_tracked == 3
    biased.eval(), plain.eval()
    plain.load_state_dict(biased.state_dict())
    assert torch.equal(biased(x), plain(x))


def test_biased_norm_may_run_twice_before_backward() -> None:
    norm = BiasedBatchNorm2d(2)
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    (norm(x) * norm(2 * x)).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.3, 0.5])
def test_downscaled_dropout(p: float) -> None:
    torch.manual_seed(0)
    dropout, ones = DownscaleInInferDropout(p), torch.ones(20000, dtype=torch.float64)
    kept = dropout(ones)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(1 - p, abs=0.02)
    single = float(np.float32(1) - np.float32(p))
    assert dropout.eval()(ones).unique().tolist() == [single]


def test_dropout_modes() -> None:
    assert isinstance(make_dropout(0.3, "upscale_in_train"), nn.Dropout)
    assert isinstance(make_dropout(0.3, "downscale_in_infer"), DownscaleInInferDropout)
    with pytest.raises(ValueError, match=r"dropout_mode expects one of .*'paddle'"):
        make_dropout(0.3, "paddle")  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range(p: float) -> None:
    with pytest.raises(ValueError, match=r"probability in \[0, 1\)"):
        make_dropout(p, "upscale_in_train")


def test_make_divisible_never_loses_a_tenth() -> None:
    for value in range(1, 400):
        rounded = make_divisible(value)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * value


def test_convolutions_start_as_published() -> None:
    torch.manual_seed(0)
    grouped, full = nn.Conv2d(256, 256, 5, groups=256), nn.Conv2d(64, 128, 3)
    norm = nn.BatchNorm2d(4)
    nn.init.constant_(norm.weight, 3.0)
    init_convolutions(nn.Sequential(grouped, full, norm))
    assert grouped.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    assert full.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert full.bias is not None
    assert not full.bias.any()
    assert norm.weight.tolist() == [1.0] * 4
