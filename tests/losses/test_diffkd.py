from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses import DiffKDLoss, Example, diffkd_loss
from losses.cases import Case
from losses.checks import (
    check_all,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_shapes_named,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh


class Constant(nn.Module):
    """Gives one value, whatever comes in."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: Tensor) -> Tensor:
        return self.value


def undrawn() -> DiffKDLoss:
    """A loss whose noise follows from the features, the same in each process."""
    loss = DiffKDLoss()

    def draw(latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return latent.sin(), latent.cos(), torch.full((len(latent),), 300, device=latent.device)

    loss._draw = draw  # type: ignore[method-assign]
    return loss


CASES = [Case(undrawn, "map")]

STUDENT, TEACHER = logits(3, 4, 2, 3, seed=1), logits(3, 5, 2, 3, seed=2)


def test_the_distance_is_a_mean_of_squares_or_a_divergence_of_channels() -> None:
    other = logits(3, 4, 2, 3, seed=3)
    torch.testing.assert_close(diffkd_loss(STUDENT, other), F.mse_loss(STUDENT, other))
    rows = [x.movedim(1, -1).reshape(-1, 4) / 2 for x in (STUDENT, other)]
    expected = 4 * F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")
    torch.testing.assert_close(diffkd_loss(STUDENT, other, distance="kl", temperature=2.0), expected)
    check_all(diffkd_loss, STUDENT, other, wrt=(0, 1))
    check_shapes_named(diffkd_loss, STUDENT, TEACHER)


@pytest.mark.parametrize("latent", [None, 7])
@pytest.mark.parametrize(("kernel_size", "shape"), [(3, (2, 3)), (1, ())])
def test_every_parameter_learns_but_unused_times(latent: int | None, kernel_size: Any, shape: tuple[int, ...]) -> None:
    student, teacher = logits(3, 4, *shape, seed=1), logits(3, 5, *shape, seed=2)
    loss = built(lambda: DiffKDLoss(latent=latent, kernel_size=kernel_size), Example(student, teacher))
    loss(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert bool(loss.encoder) == (latent is not None)


def test_the_parts_add_up() -> None:
    names = ("denoised_weight", "noise_weight", "reconstruction_weight")
    values = []
    for chosen in (names, *((name,) for name in names)):
        weights: Any = {name: float(name in chosen) for name in names}
        loss = built(lambda: DiffKDLoss(latent=6, **weights), Example(STUDENT, TEACHER))  # noqa: B023
        torch.manual_seed(1)
        values.append(loss(STUDENT, TEACHER))
    torch.testing.assert_close(values[0], torch.stack(values[1:]).sum())


def test_a_denoiser_that_knows_the_noise_gives_the_feature() -> None:
    loss = built(DiffKDLoss, Example(TEACHER, TEACHER))
    noise = logits(3, 5, 2, 3, seed=4)
    kept = loss.kept[400].double()
    share = kept.sqrt() / (kept.sqrt() + (1 - kept).sqrt())
    scale = kept.sqrt() / share  # the linear mix is the diffusion's, but for a factor
    loss.share = nn.Sequential(Constant(share.expand(3, 1, 1, 1)))
    loss._noise_in = lambda latent, times: noise / scale  # type: ignore[method-assign]
    torch.testing.assert_close(loss._denoised(TEACHER, noise), TEACHER / scale, rtol=1e-6, atol=1e-9)


def test_noise_follows_the_global_seed_in_training_only() -> None:
    loss = built(DiffKDLoss, Example(STUDENT, TEACHER))
    torch.manual_seed(3)
    first, other = loss(STUDENT, TEACHER), loss(STUDENT, TEACHER)
    torch.manual_seed(3)
    assert torch.equal(first, loss(STUDENT, TEACHER))
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    loss.eval()
    assert torch.equal(loss(STUDENT, TEACHER), loss(STUDENT, TEACHER))
    assert torch.equal(state, torch.get_rng_state())


def test_holds_to_the_checks() -> None:
    loss = fresh(undrawn)
    check_gradcheck(loss, logits(2, 3, 2, 2, seed=1), logits(2, 4, 2, 2, seed=2))
    check_half_precision(loss, STUDENT, TEACHER)
    check_finite_or_error(loss, STUDENT, TEACHER)
    check_nan_raises(loss, STUDENT, TEACHER)
    example = Example(STUDENT, TEACHER)
    check_build_is_idempotent(DiffKDLoss, example)
    check_state_dict_round_trip(DiffKDLoss, example, lambda loss: loss(STUDENT, TEACHER))
    whole = built(undrawn, example)
    compiled: Any = torch.compile(whole, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), whole(STUDENT, TEACHER))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\) of one size, or logits \(N, C\)"):
        DiffKDLoss().build(Example(STUDENT, TEACHER[..., :2]))
    with pytest.raises(ValueError, match="one reference each"):
        DiffKDLoss().build(Example([STUDENT], [TEACHER]))
    loss = built(DiffKDLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for .*\(4, 5\), got \(5, 5\)"):
        loss.build(Example(TEACHER, TEACHER))
