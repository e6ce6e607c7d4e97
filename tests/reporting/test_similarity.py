"""Linear CKA: its defining invariances, values by hand, and features that are what the layers give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lit_distill.models import PPTSMv2
from lit_distill.reporting.similarity import OUTPUT, linear_cka, stage_features, stage_names


def features(samples: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> torch.Tensor:
    turned: torch.Tensor = torch.linalg.qr(features(width, width, seed=9))[0]
    return turned


@pytest.mark.parametrize("debiased", [False, True])
def test_the_same_up_to_rotation_scale_and_shift_is_one(debiased: bool) -> None:
    x = features(12, 5)
    for same in (x, 1e-6 * x, -3e4 * x @ rotation(5), x @ rotation(5) + 100.0):
        assert linear_cka(x, same, debiased=debiased) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("debiased", [False, True])
def test_rotation_and_scale_of_either_change_nothing_and_the_order_neither(debiased: bool) -> None:
    x, y = features(12, 5), features(12, 7, seed=1)
    wanted = linear_cka(x, y, debiased=debiased)
    assert abs(wanted) < 0.999
    assert linear_cka(2.5 * x @ rotation(5), y @ rotation(7) / 7, debiased=debiased) == pytest.approx(wanted)
    assert linear_cka(y, x, debiased=debiased) == pytest.approx(wanted)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    assert linear_cka(x[order], y[order], debiased=debiased) == pytest.approx(wanted)
    assert linear_cka(x[order], y, debiased=debiased) != pytest.approx(wanted), "samples have to be the same"


def test_values_by_hand() -> None:
    # centred: x = (-1, 0, 1), y = (1, -2, 1): the products cancel; z = (-1, -1, 2): 3^2 / (2 * 6)
    x, y, z = (torch.tensor(column).reshape(3, 1) for column in ([0.0, 1.0, 2.0], [4.0, 1.0, 4.0], [0.0, 0.0, 3.0]))
    assert linear_cka(x, y) == pytest.approx(0.0, abs=1e-12)
    assert linear_cka(x, z) == pytest.approx(9 / 12)


def test_the_unbiased_estimate_is_that_of_its_definition() -> None:
    x, y = features(6, 3), features(6, 2, seed=4)
    k, l = x @ x.T, y @ y.T  # noqa: E741

    def hsic(k: torch.Tensor, l: torch.Tensor) -> float:  # noqa: E741
        # the U-statistic over all different samples i, j, q, r: K_ij (L_ij + L_qr - 2 L_iq)
        total, count = 0.0, 0
        for i in range(6):
            for j in set(range(6)) - {i}:
                for q in set(range(6)) - {i, j}:
                    for r in set(range(6)) - {i, j, q}:
                        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
                        count += 1
        return total / count

    wanted = hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))
    assert linear_cka(x, y, debiased=True) == pytest.approx(wanted)


def test_few_samples_of_wide_features_are_not_called_alike() -> None:
    x, y = features(32, 2_000), features(32, 2_000, seed=1)
    assert linear_cka(x, y) > 0.9
    assert abs(linear_cka(x, y, debiased=True)) < 0.1


def test_what_is_the_same_for_all_samples_has_none() -> None:
    assert math.isnan(linear_cka(torch.full((5, 3), 0.1), features(5, 2)))
    assert math.isnan(linear_cka(features(5, 2), torch.full((5, 3), 1e3), debiased=True))


@pytest.mark.parametrize(
    ("x", "y", "debiased"),
    [((4, 2), (5, 2), False), ((4,), (4, 2), False), ((1, 2), (1, 2), False), ((3, 2), (3, 2), True)],
)
def test_other_shapes_are_refused(x: tuple[int, ...], y: tuple[int, ...], debiased: bool) -> None:
    with pytest.raises(ValueError, match="of the same n >="):
        linear_cka(torch.ones(x), torch.ones(y), debiased=debiased)


def test_features_are_the_layers_outputs_averaged_over_positions() -> None:
    torch.manual_seed(0)
    network = PPTSMv2(num_classes=3, num_frames=4, scale=0.25, depths=(1, 1, 1, 1)).eval()
    clips = torch.randn(2, 4, 3, 32, 32)
    layers = stage_names(network)
    assert layers == ("stages.0", "stages.1", "stages.2", "stages.3")
    found = stage_features(network, clips, layers)
    assert list(found) == [*layers, OUTPUT]
    kept: list[torch.Tensor] = []
    stage = network.get_submodule("stages.1")
    handle = stage.register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    with torch.no_grad():
        logits = network(clips)
    handle.remove()
    wanted = kept[0].mean((2, 3)).reshape(2, 4, -1).flatten(1)  # four frames side by side
    torch.testing.assert_close(found["stages.1"], wanted)
    torch.testing.assert_close(found[OUTPUT], logits)


def test_an_activation_in_place_does_not_change_what_a_layer_gave() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(inplace=True))
    with torch.no_grad():
        next(network.parameters()).copy_(-torch.eye(2))
    found = stage_features(network, torch.ones(4, 2), ["0"])
    assert found["0"].tolist() == [[-1.0, -1.0]] * 4


def test_stages_of_networks_of_others() -> None:
    deep = nn.Module()
    deep.blocks = nn.Sequential(*(nn.Identity() for _ in range(12)))
    assert stage_names(deep) == tuple(f"blocks.{n}" for n in (1, 2, 4, 5, 7, 8, 10, 11))
    assert stage_names(nn.Linear(2, 2)) == ()


def test_a_layer_of_other_samples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 gives \(6,\) for 2 samples"):
        stage_features(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (2, 3))), torch.ones(2, 3), ["0"])
