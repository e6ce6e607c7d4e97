from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_distill.models import LoadReport, SmallResNet


def test_every_second_stage_halves_the_map() -> None:
    network, shapes = SmallResNet(4, widths=(8, 16, 24, 32), blocks=2), []
    for stage in network.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    assert network(torch.zeros(2, 3, 9, 8)).shape == (2, 4)
    assert shapes == [(2, 8, 9, 8), (2, 16, 5, 4), (2, 24, 5, 4), (2, 32, 3, 2)]
    assert [len(list(stage.children())) for stage in network.stages] == [2, 2, 2, 2]


def test_the_logits_are_the_classifier_of_the_pooled_last_map() -> None:
    network, seen = SmallResNet(3, widths=(8,)).eval(), dict[str, Tensor]()
    network.stages[-1].register_forward_hook(lambda _module, _inputs, output: seen.update(last=output))
    logits = network(torch.randn(5, 3, 6, 6))
    torch.testing.assert_close(logits, network.fc(seen["last"].mean(dim=(2, 3))))


def test_it_starts_from_a_file(tmp_path: Path) -> None:
    saved = SmallResNet(3, widths=(8, 8))
    save_file(saved.state_dict(), tmp_path / "a.safetensors")
    loaded = SmallResNet(3, widths=(8, 8), pretrained=tmp_path / "a.safetensors")
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert isinstance(loaded.load_report, LoadReport)


@pytest.mark.parametrize("given", [{"widths": ()}, {"widths": (8, 0)}, {"widths": (8,), "blocks": 0}])
def test_a_network_of_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SmallResNet expects num_classes, blocks and each of widths"):
        SmallResNet(3, **given)
