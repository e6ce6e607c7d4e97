from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import AFDLoss, Example, afd_loss
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip

CASES = [Case(lambda: AFDLoss(qk_dim=6), "maps")]

STUDENT = [checks.logits(4, 3, 6, 6, seed=1), checks.logits(4, 5, 3, 4, seed=2)]
TEACHER = [checks.logits(4, c, *size, seed=10 + c) for c, size in ((4, (6, 5)), (6, (3, 2)), (7, (6, 5)))]


def make() -> AFDLoss:
    return AFDLoss(qk_dim=4)


def fresh(student: Tensor, teacher: Tensor) -> Tensor:
    """As a loss of two tensors: two layers of each, the deeper one pooled."""
    s, t = ([x, F.avg_pool2d(x.float() if x.dtype.itemsize < 4 else x, 2)] for x in (student, teacher))
    value: Tensor = built(make, Example(s, t))(s, t)
    return value


def plain(loss: AFDLoss, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The method, pair by pair and sample by sample."""
    ours = [layer(s.mean((2, 3))) for layer, s in zip(loss.keys, student, strict=True)]
    theirs = [layer(t.mean((2, 3))) for layer, t in zip(loss.queries, teacher, strict=True)]
    n, d = len(student[0]), loss.qk_dim
    # The BatchNorm of the bilinear layer sees samples and student layers as one batch.
    keys = loss.bilinear(torch.stack(ours, 1).reshape(n * len(student), d)).reshape(n, len(student), len(teacher), d)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        for t, map_t in enumerate(teacher):
            target = F.normalize(map_t[i].pow(2).mean(0).flatten(), dim=0)
            scores, differences = [], []
            for s, map_s in enumerate(student):
                positions = loss.student_positions[s] @ loss.teacher_positions[t]
                scores.append((keys[i, s, t] @ theirs[t][i] + positions) / d**0.5)
                energy = F.adaptive_avg_pool2d(map_s[i].pow(2).mean(0, keepdim=True), (map_t.shape[2], map_t.shape[3]))
                differences.append((F.normalize(energy.flatten(), dim=0) - target).pow(2).mean())
            total = total + (torch.stack(scores).softmax(0) * torch.stack(differences)).sum() / n
    return total


@pytest.mark.parametrize("training", [True, False])
def test_every_teacher_layer_meets_every_student_layer(training: bool) -> None:
    """Equal teacher sizes that are not adjacent keep their own values."""
    loss = built(make, Example(STUDENT, TEACHER)).train(training)
    torch.testing.assert_close(loss(STUDENT, TEACHER), plain(loss, STUDENT, TEACHER))


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_the_order_of_teacher_layers_does_not_matter(order: tuple[int, ...]) -> None:
    shuffled = [TEACHER[i] for i in order]
    loss, other = built(make, Example(STUDENT, TEACHER)), built(make, Example(STUDENT, shuffled))
    state = dict(loss.state_dict())
    for i, source in enumerate(order):
        for name in list(loss.queries[source].state_dict()):
            state[f"queries.{i}.{name}"] = loss.state_dict()[f"queries.{source}.{name}"]
    state["teacher_positions"] = state["teacher_positions"][list(order)]
    for name in [n for n in state if n.startswith("bilinear.") and state[n].ndim]:
        blocks = state[name].reshape(len(TEACHER), loss.qk_dim, -1)[list(order)]
        state[name] = blocks.reshape(state[name].shape)
    other.load_state_dict(state)
    torch.testing.assert_close(other(STUDENT, shuffled), loss(STUDENT, TEACHER))


def test_gradients_of_student_features_and_of_the_attention() -> None:
    loss = built(make, Example(STUDENT, TEACHER))
    leaves = [s[:, :, :2, :2].clone().requires_grad_() for s in STUDENT]
    assert torch.autograd.gradcheck(lambda *s: loss(list(s), TEACHER), leaves)
    loss(STUDENT, TEACHER).backward()
    # A BatchNorm right behind it takes a linear layer's bias out again.
    learning = {name: p for name, p in loss.named_parameters() if not name.endswith("0.bias")}
    assert len(learning) == 2 + 3 * (2 + 3 + 1)
    for name, parameter in learning.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_function_is_held_to_every_check() -> None:
    keys, queries = checks.logits(3, 2, 1, 4, seed=5), checks.logits(3, 1, 4, seed=6)
    student_positions, teacher_positions = checks.logits(2, 4, seed=7), checks.logits(1, 4, seed=8)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        n, dtype = len(student), student.dtype
        return afd_loss(
            [student],
            [teacher],
            keys=keys[:n].to(dtype),
            queries=queries[:n].to(dtype),
            student_positions=student_positions.to(dtype),
            teacher_positions=teacher_positions.to(dtype),
        )

    student, teacher = checks.logits(3, 2, 9, seed=1), checks.logits(3, 9, seed=2)
    checks.check_gradcheck(loss, student, teacher, wrt=(0, 1))
    checks.check_half_precision(loss, student, teacher)
    checks.check_nan_raises(loss, student, teacher)
    assert loss(teacher.unsqueeze(1).expand(3, 2, 9), teacher).abs() < 1e-12


def test_the_module_is_held_to_every_check() -> None:
    student, teacher = checks.logits(4, 3, 4, 4, seed=1), checks.logits(4, 5, 4, 4, seed=2)
    checks.check_half_precision(fresh, student, teacher)
    checks.check_finite_or_error(fresh, student, teacher)
    checks.check_nan_raises(fresh, student, teacher)
    checks.check_permutation_invariant(fresh, student, teacher)


def test_attention_sums_to_one() -> None:
    """Student layers that all have the same energy map leave nothing to choose: the plain sum over teacher layers."""
    loss = built(make, Example([STUDENT[0]] * 3, TEACHER))
    energy = STUDENT[0].square().mean(1, keepdim=True)
    expected = torch.zeros((), dtype=torch.float64)
    for t in TEACHER:
        pooled = F.adaptive_avg_pool2d(energy, (t.shape[2], t.shape[3])).flatten(1)
        target = t.square().mean(1).flatten(1)
        expected += (F.normalize(pooled) - F.normalize(target)).square().mean()
    torch.testing.assert_close(loss([STUDENT[0]] * 3, TEACHER), expected)


def test_state_dict_and_build() -> None:
    example = Example(STUDENT, TEACHER)
    check_state_dict_round_trip(make, example, lambda loss: loss(STUDENT, TEACHER))
    check_build_is_idempotent(make, example)
    assert AFDLoss().qk_dim == 128


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        make()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"one batch size.*\(2, 3, 6, 6\).*\(4, 4, 6, 5\)"):
        make().build(Example([s[:2] for s in STUDENT], TEACHER))
    loss = built(make, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for .*\(3, 5\), \(4, 6, 7\).*got .*\(3, 5\), \(4, 6\)"):
        loss(STUDENT, TEACHER[:2])
    with pytest.raises(ValueError, match="qk_dim"):
        AFDLoss(qk_dim=0)
    with pytest.raises(ValueError, match=r"afd_loss expects keys .*\(2, 3, 1, 4\)"):
        afd_loss(
            [torch.zeros(2, 3, 9)],
            [torch.zeros(2, 8)],
            keys=torch.zeros(2, 3, 1, 4),
            queries=torch.zeros(2, 1, 4),
            student_positions=torch.zeros(3, 4),
            teacher_positions=torch.zeros(1, 4),
        )
