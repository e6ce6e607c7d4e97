from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from lit_distill import DistillModule, LossComposer, LossTerm
from lit_distill.losses import Example, OverhaulLoss, overhaul_loss, overhaul_margin, partial_l2
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip

CASES = [Case(OverhaulLoss, "map")]

STUDENT, TEACHER = checks.logits(3, 4, 3, 5, seed=1, scale=1.0), checks.logits(3, 6, 3, 5, seed=2, scale=1.0)
MARGIN = torch.tensor([-1.0, -0.25, -2.0, -0.5, -0.75, -1.5], dtype=torch.float64)


def norm(channels: int = 6, *, seed: int = 0) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(channels)
    with torch.no_grad():
        module.weight.copy_(checks.logits(channels, seed=seed, scale=1.0))
        module.bias.copy_(checks.logits(channels, seed=seed + 1, scale=1.0))
    return module.requires_grad_(False)


def make(*, divisor: float = 10.0, **options: Any) -> OverhaulLoss:
    return OverhaulLoss(divisor=divisor, **options)


def partial(student: Tensor, teacher: Tensor) -> Tensor:
    shape = [1, -1] + [1] * (student.ndim - 2)
    return partial_l2(student, teacher, MARGIN[: student.shape[1]].reshape(shape))


# ---------------------------------------------------------------- margins


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (-2.0, 0.5), (0.7, -1.5), (3.0, 9.0)])
def test_the_margin_is_the_mean_of_the_negative_responses(gamma: float, beta: float) -> None:
    samples = beta + gamma * torch.randn(2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    margin = overhaul_margin(torch.tensor([gamma]), torch.tensor([beta]))
    assert margin.dtype == torch.float32
    assert margin.item() == pytest.approx(samples[samples < 0].mean().item(), rel=0.05)


def test_a_channel_that_is_hardly_ever_negative_has_three_deviations() -> None:
    s = torch.tensor([1.0, -1.0, 0.5])
    margin = overhaul_margin(s, torch.tensor([3.0895, 3.0895, 9.0]))  # the first two: Φ just above 0.001
    tail = torch.linspace(-12, 0, 400_001, dtype=torch.float64)
    density = (-(tail - 3.0895).square() / 2).exp()
    assert margin[:2].tolist() == pytest.approx([(tail * density).sum().item() / density.sum().item()] * 2, rel=1e-4)
    torch.testing.assert_close(overhaul_margin(s, torch.tensor([3.091, 3.091, 9.0])), -3 * s.abs())


def test_a_constant_channel_has_the_limit() -> None:
    beta = torch.tensor([-2.0, 0.0, 2.0])
    at_zero = overhaul_margin(torch.zeros(3), beta)
    assert at_zero.tolist() == [-2.0, 0.0, 0.0]
    torch.testing.assert_close(overhaul_margin(torch.full((3,), 1e-9), beta), at_zero)


def test_margins_of_extreme_channels_are_finite_and_bad_ones_refused() -> None:
    gamma = torch.tensor([1e-30, 1e30, 1e-30, 1.0], dtype=torch.float64)
    beta = torch.tensor([1e7, 1.0, -1e7, -1e7], dtype=torch.float64)
    assert overhaul_margin(gamma, beta).isfinite().all()
    assert overhaul_margin(torch.ones(2).half(), torch.zeros(2).half()).dtype == torch.float32
    with pytest.raises(ValueError, match="NaN"):
        overhaul_margin(torch.tensor([math.nan]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        overhaul_margin(torch.ones(2), torch.ones(3))


# ---------------------------------------------------------------- partial L2


def test_what_partial_l2_skips() -> None:
    student = torch.tensor([0.5, -0.5, -3.0, -0.5, -3.0, -1.0])
    teacher = torch.tensor([1.0, -1.0, -1.0, -5.0, -5.0, -1.0])
    each = [partial_l2(s, t, torch.tensor(-2.0)).item() for s, t in zip(student, teacher, strict=True)]
    # positive teacher; above a negative one; below it; above the margin; below it; equal
    assert each == [0.25, 0.25, 0.0, 2.25, 0.0, 0.0]


def test_partial_l2_is_held_to_every_check() -> None:
    student = checks.logits(3, 6, 3, 5, seed=4)
    checks.check_all(partial, student, TEACHER, not_finite=(math.nan, math.inf, -math.inf))
    checks.check_zero_when_equal(partial, TEACHER.clamp(min=-0.2))
    checks.check_shapes_named(partial, student, TEACHER[:, :2])


def test_without_a_margin_it_is_the_distance_to_the_rectified_teacher() -> None:
    """For a student that is rectified too: nothing negative can be undercut."""
    student = STUDENT.relu()
    teacher = TEACHER[:, :4]
    expected = (student - teacher.relu()).square().sum()
    torch.testing.assert_close(partial_l2(student, teacher, torch.zeros(())), expected)


@pytest.mark.parametrize("reduction", ["sum", "batchmean"])
def test_levels_count_half_of_the_next(reduction: str) -> None:
    student, teacher = [checks.logits(3, 6, 2, 2, seed=i) for i in range(3)], [TEACHER[:, :, :2, :2]] * 3
    value = overhaul_loss(student, teacher, [MARGIN] * 3, reduction=reduction, divisor=10.0)  # type: ignore[arg-type]
    expected = sum(partial(s, t) / 2 ** (2 - i) for i, (s, t) in enumerate(zip(student, teacher, strict=True)))
    torch.testing.assert_close(value, torch.as_tensor(expected) / (1 if reduction == "sum" else 3 * 10))


# ---------------------------------------------------------------- the module


def test_connectors_margins_and_levels() -> None:
    deep = checks.logits(3, 5, 2, 2, seed=5), checks.logits(3, 7, 2, 2, seed=6)
    norms = (norm(6), norm(7, seed=3))
    example = Example([STUDENT, deep[0]], [TEACHER, deep[1]], teacher_modules=norms)
    loss = built(make, example)
    convolutions = [m for m in loss.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(6, 4, 1, 1), (7, 5, 1, 1)]
    assert all(c.bias is None for c in convolutions)
    margins = [overhaul_margin(n.weight, n.bias) for n in norms]
    torch.testing.assert_close(loss.margins, [m.double() for m in margins])
    expected = torch.zeros((), dtype=torch.float64)
    for i, (connector, s, t) in enumerate(zip(loss.connectors, example.student, example.teacher, strict=True)):
        expected += partial_l2(connector(s), t, loss.margins[i].reshape(1, -1, 1, 1)) / 2 ** (1 - i)
    torch.testing.assert_close(loss(example.student, example.teacher), expected / (3 * 10))


def test_connectors_start_as_published() -> None:
    loss = built(make, Example(torch.zeros(2, 64, 2, 2), torch.zeros(2, 128, 2, 2), teacher_modules=(norm(128),)))
    convolution, batch_norm = loss.connectors[0].children()
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(batch_norm, nn.BatchNorm2d)
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert batch_norm.weight.eq(1).all()
    assert batch_norm.bias.eq(0).all()


def test_the_module_is_held_to_every_check() -> None:
    norms: dict[int, nn.Module] = {c: norm(c) for c in (1, 6)}

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        example = Example(student, teacher, teacher_modules=(norms[teacher.shape[1]],))
        value: Tensor = built(make, example)(student, teacher)
        return value

    checks.check_all(loss, STUDENT, TEACHER, not_finite=(math.nan, math.inf))


def test_mdistiller_pools_the_teacher_and_allows_larger_kernels() -> None:
    student = STUDENT[:, :, :2, :3].contiguous()
    loss = built(lambda: make(pool_teacher=True, kernel_size=3), Example(student, TEACHER, teacher_modules=(norm(),)))
    pooled = F.adaptive_avg_pool2d(TEACHER, (2, 3))
    margin = loss.margins[0].reshape(1, -1, 1, 1)
    torch.testing.assert_close(loss(student, TEACHER), partial_l2(loss.connectors[0](student), pooled, margin) / 30)


def test_margins_follow_a_teacher_that_learns_and_only_in_training() -> None:
    batch_norm = norm()
    loss = built(make, Example(STUDENT, TEACHER, teacher_modules=(batch_norm,)))
    before = loss.margins[0].clone()
    batch_norm.bias.add_(1.0)
    loss(STUDENT, TEACHER)
    assert torch.equal(loss.margins[0], before), "a frozen teacher's margins stay"
    batch_norm.requires_grad_(True)
    loss.eval()(STUDENT, TEACHER)
    assert torch.equal(loss.margins[0], before)
    loss.train()(STUDENT, TEACHER)
    torch.testing.assert_close(loss.margins[0], overhaul_margin(batch_norm.weight, batch_norm.bias).double())


def test_state_dict_and_build() -> None:
    example = Example(STUDENT, TEACHER, teacher_modules=(norm(),))
    check_state_dict_round_trip(make, example, lambda loss: loss(STUDENT, TEACHER))
    check_build_is_idempotent(make, example)
    names = set(built(make, example).state_dict())
    assert {name.split(".")[0] for name in names} == {"connectors", "margin0"}, "the teacher's BatchNorm is not ours"


# ---------------------------------------------------------------- in networks


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    models: dict[str, nn.Module] = {"Student": resnet18(num_classes=5), "Teacher": resnet18(num_classes=5)}
    for module in models["Teacher"].modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.running_mean, std=0.3)
    return models


TAPS = ["layer1.1.bn2", "layer2.1.bn2"]


def term(loss: OverhaulLoss) -> LossTerm:
    return LossTerm(loss, pair=([f"Student.{t}" for t in TAPS], [f"Teacher.{t}" for t in TAPS]))


def test_a_tap_before_an_in_place_activation_has_the_values_before_it() -> None:
    """torchvision adds the shortcut to bn2's output in place, and applies ReLU in place after that."""
    models, x = networks(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loss = OverhaulLoss()
    composer = LossComposer({"overhaul": term(loss)})
    composer.build(models, x)
    kept: dict[str, Tensor] = {}
    for tap in TAPS:
        models["Teacher"].get_submodule(tap).register_forward_hook(lambda m, i, o, t=tap: kept.update({t: o.clone()}))
    with composer.capture(models) as signals:
        for model in models.values():
            model.eval()(x)
    for tap in TAPS:
        assert torch.equal(signals[f"Teacher.{tap}"], kept[tap])
        assert (kept[tap] < 0).any()
    batch_norm = models["Teacher"].get_submodule(TAPS[1])
    assert isinstance(batch_norm, nn.BatchNorm2d)
    torch.testing.assert_close(loss.margins[1], overhaul_margin(batch_norm.weight, batch_norm.bias))
    result = composer(signals)
    result.total.backward()  # type: ignore[no-untyped-call]
    stem = models["Student"].get_submodule("conv1").weight
    assert isinstance(stem, nn.Parameter)
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0
    assert all(p.grad is None for p in models["Teacher"].parameters())


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_how_a_frozen_teacher_normalizes(statistics: str) -> None:
    models, x = networks(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loss = OverhaulLoss(teacher_batch_norm=statistics)  # type: ignore[arg-type]
    teacher = models["Teacher"]
    module = DistillModule(models, {"overhaul": term(loss)}, frozen=["Teacher"])
    module.build((x, torch.tensor([0, 4])))
    module.build((x, torch.tensor([0, 4])))
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    evaluated = teacher(x) if statistics == "running" else networks()["Teacher"].train()(x)
    torch.testing.assert_close(teacher(x), evaluated, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    module.eval()
    torch.testing.assert_close(teacher(x), networks()["Teacher"].eval()(x))


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        make()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"equal height and width.*\(3, 4, 2, 5\).*\(3, 6, 3, 5\)"):
        make().build(Example(STUDENT[:, :, :2], TEACHER, teacher_modules=(norm(),)))
    with pytest.raises(ValueError, match=r"reads margins from a BatchNorm .*, but tap 0 \(ReLU\) is"):
        make().build(Example(STUDENT, TEACHER, teacher_modules=(nn.ReLU(),)))
    with pytest.raises(ValueError, match="of 1 levels, got "):
        make().build(Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"normalizes 4 channels.*\(3, 6, 3, 5\)"):
        make().build(Example(STUDENT, TEACHER, teacher_modules=(norm(4),)))
    models = {"Teacher": nn.Sequential(nn.Conv2d(3, 6, 1), norm())}
    for name in ("Teacher.2", "Assistant.1", "Teacher.bn", "Teacher.-3"):
        with pytest.raises(ValueError, match=f"names {name!r}, which is no module; the last are .*'Teacher.1'"):
            make(batch_norms=[name]).build(Example(STUDENT, TEACHER, models=models))
    for place in ("Teacher.1", "Teacher.-1"):
        named = make(batch_norms=[place])
        named.build(Example(STUDENT, TEACHER, models=models))
        torch.testing.assert_close(named.margins[0], overhaul_margin(norm().weight, norm().bias))
    with pytest.raises(ValueError, match=r"channels \[\(4, 6\)\], got \[\(6, 6\)\]"):
        named(TEACHER, TEACHER)
    with pytest.raises(ValueError, match="needs the teacher among the named models"):
        make(teacher_batch_norm="batch").build(Example(STUDENT, TEACHER, teacher_modules=(norm(),)))
    with pytest.raises(ValueError, match="a margin"):
        overhaul_loss(TEACHER, TEACHER, [MARGIN[:2]])
    for options in ({"divisor": 0.0}, {"kernel_size": 2}, {"teacher_batch_norm": "train"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(**options)
