"""Images from noise: their shape and range, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_distill.models import ImageGenerator


def test_images_are_normalized_by_channel() -> None:
    images = ImageGenerator(noise=5, channels=2, side=12, width=8)(torch.randn(16, 5))
    assert images.shape == (16, 2, 12, 12)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.var(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-2, rtol=0)


@pytest.mark.parametrize("wrong", [{"side": 10}, {"width": 7}, {"noise": 0}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ImageGenerator expects"):
        ImageGenerator(**wrong)
