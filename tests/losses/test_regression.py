from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import Example, RegressionLoss, regression_loss
from lit_distill.losses.feature.regression import make_projector
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [
    Case(RegressionLoss),
    Case(lambda: RegressionLoss(projector="mlp", distance="cosine"), "maps", note="of maps by cosine"),
    Case(lambda: RegressionLoss(projector="orthogonal", scale="layer_norm", distance="smooth_l1"), note="VkD"),
]
# Scaled over the batch, the gradient of two halves is not that of the whole: no case for "standardized".

STUDENT, TEACHER = logits(3, 4, 5, seed=1), logits(3, 4, 6, seed=2)
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
DISTANCES = ["mse", "cosine", "smooth_l1"]


@pytest.mark.parametrize("distance", DISTANCES)
def test_is_a_loop_over_the_places_that_count(distance: str) -> None:
    teacher = logits(3, 4, 5, seed=2)
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": lambda s, t: (s - t).square().mean(),
        "cosine": lambda s, t: 1 - F.cosine_similarity(s, t, dim=0),
        "smooth_l1": lambda s, t: F.smooth_l1_loss(s, t),
    }
    places = [(b, n) for b in range(3) for n in range(4) if MASK[b, n]]
    expected = torch.stack([kinds[distance](STUDENT[b, n], teacher[b, n]) for b, n in places]).mean()
    broken = STUDENT.masked_fill(~MASK[..., None], torch.nan)
    ours = regression_loss(broken, teacher, mask=MASK, distance=distance)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_holds_to_the_checks(distance: str) -> None:
    loss = fresh(lambda: RegressionLoss(projector=None, distance=distance))  # type: ignore[arg-type]
    given = STUDENT, logits(3, 4, 5, seed=2)
    check_gradcheck(loss, *given, wrt=(0, 1))
    check_half_precision(loss, *given)
    check_finite_or_error(loss, *given)
    check_nan_raises(loss, *given)
    check_permutation_invariant(loss, *given)
    check_zero_when_equal(loss, STUDENT)


@pytest.mark.parametrize("projector", ["linear", "mlp", "orthogonal"])
@pytest.mark.parametrize("shapes", [((3, 5), (3, 6)), ((3, 4, 5), (3, 4, 6)), ((3, 5, 2, 2), (3, 6, 4, 4))])
def test_projects_vectors_tokens_and_maps(projector: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    student, teacher = (logits(*shape, seed=n) for n, shape in enumerate(shapes))
    loss = built(lambda: RegressionLoss(projector=projector), Example(student, teacher))  # type: ignore[arg-type]
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(loss, student, teacher)


@pytest.mark.parametrize(("ours", "theirs"), [(4, 7), (5, 5), (7, 4)])
def test_an_orthogonal_projector_keeps_lengths_where_it_widens(ours: int, theirs: int) -> None:
    torch.manual_seed(0)
    projector = make_projector("orthogonal", ours, theirs).double()
    weight = projector.weight
    assert isinstance(weight, Tensor)
    gram = weight.T @ weight if theirs >= ours else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(min(ours, theirs)).double(), rtol=0, atol=1e-6)  # made in float32
    assert not [name for name, _ in projector.named_parameters() if "bias" in name]


def test_scales_the_teacher_by_place_or_by_channel() -> None:
    teacher = logits(3, 4, 5, seed=2)
    layer = RegressionLoss(projector=None, scale="layer_norm")
    torch.testing.assert_close(layer(STUDENT, teacher), F.mse_loss(STUDENT, F.layer_norm(teacher, (5,))))
    length = RegressionLoss(projector=None, scale="length", scale_student=True)
    torch.testing.assert_close(
        length(STUDENT, teacher), F.mse_loss(F.normalize(STUDENT, dim=-1), F.normalize(teacher, dim=-1))
    )
    channel = RegressionLoss(projector=None, scale="standardized", scale_student=True)
    torch.testing.assert_close(channel(3 * STUDENT + 1, teacher), channel(STUDENT, 7 * teacher - 2), rtol=1e-4, atol=0)
    kept = [x[MASK] for x in (STUDENT, teacher)]
    torch.testing.assert_close(channel(STUDENT, teacher, mask=MASK), channel(*kept))


def test_class_tokens_are_left_out_and_grids_resized() -> None:
    tokens, grid = logits(2, 1 + 9, 5, seed=1), logits(2, 5, 6, 6, seed=2)
    loss = RegressionLoss(projector=None, skip=1)
    resized = F.interpolate(tokens[:, 1:].mT.unflatten(2, (3, 3)), (6, 6), mode="bilinear")  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss(tokens, grid), F.mse_loss(resized, grid))
    with pytest.raises(ValueError, match=r"fill a grid of 3 x 3, got 10 .*leave class tokens and registers out"):
        RegressionLoss(projector=None)(tokens, grid)


def test_one_projector_may_serve_all_layers() -> None:
    ours, theirs = [STUDENT, 2 * STUDENT], [TEACHER, TEACHER - 1]
    alone = built(RegressionLoss, Example(ours, theirs))
    shared = built(lambda: RegressionLoss(shared=True), Example(ours, theirs))
    assert len(alone.projectors) == 2
    assert len(shared.projectors) == 1
    single = built(lambda: RegressionLoss(shared=True), Example(STUDENT, TEACHER))
    single.load_state_dict(shared.state_dict())
    each = [single(s, t) for s, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(shared(ours, theirs), each[0] + each[1])


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, TEACHER)
    check_build_is_idempotent(RegressionLoss, example)
    for projector in ("linear", "orthogonal"):
        check_state_dict_round_trip(
            lambda: RegressionLoss(projector=projector),  # noqa: B023
            example,
            lambda loss: loss(STUDENT, TEACHER),
        )


@pytest.mark.parametrize("projector", ["linear", "mlp", "orthogonal"])
def test_compiles_whole(projector: str) -> None:
    loss = built(lambda: RegressionLoss(projector=projector), Example(STUDENT, TEACHER))  # type: ignore[arg-type]
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER, mask=MASK), loss(STUDENT, TEACHER, mask=MASK))


def test_says_what_is_wrong() -> None:
    check_shapes_named(regression_loss, STUDENT, TEACHER)
    check_shapes_named(RegressionLoss(projector=None), STUDENT, logits(2, 4, 5))
    with pytest.raises(ValueError, match=r"without a projector needs equal widths, got \[\(5, 6\)\]"):
        RegressionLoss(projector=None).build(Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"shared projector needs layers of one width.*\[\(5, 6\), \(6, 6\)\]"):
        RegressionLoss(shared=True).build(Example([STUDENT, TEACHER], [TEACHER, TEACHER]))
    loss = built(RegressionLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for \(student, teacher\) widths \[\(5, 6\)\], got \[\(6, 6\)\]"):
        loss.build(Example(TEACHER, TEACHER))
    with pytest.raises(ValueError, match=r"vectors \(B, C\), tokens \(B, N, C\) or maps.*got \(6,\)"):
        loss(logits(6), logits(6))
