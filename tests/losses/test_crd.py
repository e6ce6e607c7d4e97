from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import CRDLoss, Example, crd_loss
from losses import checks
from losses.cases import DATASET_SIZE, Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip

CASES = [Case(lambda: CRDLoss(embedding_dim=6, negatives=4, dataset_size=DATASET_SIZE), "samples")]

SIZE, BATCH, WIDTH, NEGATIVES = 30, 5, 6, 7
STUDENT, TEACHER = checks.logits(BATCH, 4, seed=1, scale=1.0), checks.logits(BATCH, 9, seed=2, scale=1.0)
INDEX, CLASSES = torch.tensor([3, 0, 29, 11, 8]), torch.tensor([0, 1, 2, 0, 1])
TARGET = [INDEX, CLASSES]
CONTRAST = torch.cat([INDEX[:, None], (INDEX[:, None] + torch.arange(1, NEGATIVES + 1)) % SIZE], dim=1)


def make(**settings: float) -> CRDLoss:
    return CRDLoss(**{"embedding_dim": WIDTH, "negatives": NEGATIVES, "dataset_size": SIZE, **settings})  # type: ignore[arg-type]


def ready(dtype: torch.dtype = torch.float64, **settings: float) -> CRDLoss:
    return built(lambda: make(**settings), Example(STUDENT.to(dtype), TEACHER.to(dtype)))


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(checks.logits(*shape, seed=seed), dim=-1)


def published(
    student: Tensor, teacher: Tensor, banks: list[Tensor], contrast: Tensor, temperature: float, z: list[float] | None
) -> tuple[Tensor, list[float]]:
    """The published form: probabilities, copies of the chosen rows, logarithms of quotients."""
    size, noise = len(banks[0]), (contrast.shape[1] - 1) / len(banks[0])
    used, total = [], torch.zeros((), dtype=student.dtype)
    for side, (anchor, bank) in enumerate(((student, banks[1]), (teacher, banks[0]))):
        p = (torch.einsum("bkd,bd->bk", bank[contrast], anchor) / temperature).exp()
        used.append(p.mean().item() * size if z is None else z[side])
        p = p / used[-1]
        positive = (p[:, 0] / (p[:, 0] + noise + 1e-7)).log()
        negative = (noise / (p[:, 1:] + noise + 1e-7)).log()
        total = total - (positive.sum() + negative.sum()) / len(student)
    return total, used


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_value_and_gradient_are_the_published_form(temperature: float) -> None:
    banks, z = [unit(SIZE, WIDTH, seed=3), unit(SIZE, WIDTH, seed=4)], torch.tensor([9.0, 4.5], dtype=torch.float64)
    for constants in (None, z):
        results = []
        for form in (0, 1):
            student, teacher = (unit(BATCH, WIDTH, seed=seed).requires_grad_() for seed in (5, 6))
            if form:
                known = None if constants is None else constants.tolist()
                value, _ = published(student, teacher, banks, CONTRAST, temperature, known)
            else:
                logs = None if constants is None else constants.log()
                value = crd_loss(
                    student, teacher, banks[0], banks[1], CONTRAST, temperature=temperature, log_normalizers=logs
                )
            results.append([value, *torch.autograd.grad(value, (student, teacher))])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_no_temperature_overflows() -> None:
    student, bank = unit(BATCH, WIDTH, seed=5).float().requires_grad_(), unit(SIZE, WIDTH, seed=3).float()
    value = crd_loss(student, student, bank, bank, CONTRAST, temperature=1e-3)
    value.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert value.isfinite()


def test_training_is_the_published_sequence_of_steps() -> None:
    loss = ready(momentum=0.3)
    banks = [loss.student_bank.clone(), loss.teacher_bank.clone()]
    constants: list[float] | None = None
    for step in range(3):
        student, teacher = (checks.logits(BATCH, n, seed=10 * step + n) for n in (4, 9))
        value = loss(student, teacher, TARGET, CONTRAST)
        assert loss.student_head is not None
        assert loss.teacher_head is not None
        embeddings = [F.normalize(loss.student_head(student), dim=1), F.normalize(loss.teacher_head(teacher), dim=1)]
        expected, constants = published(embeddings[0], embeddings[1], banks, CONTRAST, 0.07, constants)
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0.0)
        for bank, new in zip(banks, embeddings, strict=True):
            mixed = 0.3 * bank[INDEX] + 0.7 * new.detach()
            bank[INDEX] = mixed / mixed.norm(dim=1, keepdim=True)
        torch.testing.assert_close(loss.student_bank, banks[0])
        torch.testing.assert_close(loss.teacher_bank, banks[1])
        torch.testing.assert_close(loss.log_normalizers.exp().tolist(), constants)


def test_evaluation_changes_nothing() -> None:
    for steps_before in (0, 1):
        loss = ready()
        for _ in range(steps_before):
            loss(STUDENT, TEACHER, TARGET)
        loss.eval()
        state, random = {k: v.clone() for k, v in loss.state_dict().items()}, torch.get_rng_state()
        assert torch.equal(loss(STUDENT, TEACHER, TARGET), loss(STUDENT, TEACHER, TARGET))
        assert torch.equal(random, torch.get_rng_state())
        for name, value in loss.state_dict().items():
            assert torch.equal(value.nan_to_num(), state[name].nan_to_num()), name


def with_classes(loss: CRDLoss) -> CRDLoss:
    loss.classes.copy_(torch.arange(SIZE) % 3)
    return loss


def test_negatives_are_distinct_samples_of_other_classes() -> None:
    loss = with_classes(ready(negatives=20))
    index = torch.arange(SIZE)
    rows = loss.draw(index, index % 3)
    assert torch.equal(rows[:, 0], index)
    assert (loss.classes[rows[:, 1:]] != (index % 3)[:, None]).all()
    assert all(len(set(row.tolist())) == 20 for row in rows[:, 1:])


def test_negatives_repeat_only_where_the_data_has_too_few() -> None:
    loss = with_classes(ready(negatives=64))
    rows = loss.draw(INDEX, INDEX % 3)
    assert rows.shape == (BATCH, 65)
    assert (loss.classes[rows[:, 1:]] != (INDEX % 3)[:, None]).all()


def test_negatives_are_uniform() -> None:
    loss = with_classes(ready(negatives=5))
    torch.manual_seed(0)
    rows = loss.draw(torch.zeros(8000, dtype=torch.long), torch.zeros(8000, dtype=torch.long))
    counts = rows[:, 1:].flatten().bincount(minlength=SIZE).double()
    assert (counts[::3] == 0).all()
    others = counts.view(-1, 3)[:, 1:]
    assert others.sum() == 40000
    assert (others - 2000).abs().max() < 5 * math.sqrt(2000)


def test_unseen_samples_count_as_other_classes_but_never_oneself() -> None:
    loss = ready(negatives=SIZE - 1)
    rows = loss.draw(INDEX, CLASSES)
    assert [sorted(row.tolist()) for row in rows] == [list(range(SIZE))] * BATCH


def test_classes_are_learnt_from_indices_and_from_mixed_targets() -> None:
    loss = ready()
    loss(STUDENT, TEACHER, TARGET)
    assert loss.classes[INDEX].tolist() == CLASSES.tolist()
    assert (loss.classes == -1).sum() == SIZE - BATCH
    mixed = 0.6 * F.one_hot((CLASSES + 1) % 3, 3) + 0.4 * F.one_hot(CLASSES, 3)
    loss(STUDENT, TEACHER, [INDEX, mixed])
    assert loss.classes[INDEX].tolist() == ((CLASSES + 1) % 3).tolist()


def test_the_last_of_repeated_samples_moves_the_bank() -> None:
    once, twice = ready(), ready()
    once(STUDENT[1:], TEACHER[1:], [INDEX[1:], CLASSES[1:]], CONTRAST[1:])
    repeated = torch.cat([INDEX[-1:], INDEX[1:]])
    twice(STUDENT, TEACHER, [repeated, CLASSES[[4, 1, 2, 3, 4]]], CONTRAST)
    torch.testing.assert_close(twice.student_bank, once.student_bank)


def test_a_resumed_run_goes_on_as_if_never_stopped() -> None:
    def run(loss: CRDLoss, first: int, last: int) -> list[float]:
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        values = []
        for step in range(first, last):
            torch.manual_seed(step)
            student, teacher = torch.randn(BATCH, 4).double(), torch.randn(BATCH, 9).double()
            value = loss(student, teacher, TARGET)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        return values

    straight = ready()
    expected = run(straight, 0, 6)
    stopped = ready()
    assert run(stopped, 0, 3) == expected[:3]
    resumed = built(make, Example(STUDENT, TEACHER), seed=99)
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed, 3, 6) == expected[3:]
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_what_is_not_finite_stays_out_of_the_bank() -> None:
    loss = ready()
    before = loss.student_bank.clone()
    embedding = unit(BATCH, WIDTH, seed=1)
    embedding[2, 0] = math.inf
    loss._remember(loss.student_bank, INDEX, embedding)
    assert torch.equal(loss.student_bank[INDEX[2]], before[INDEX[2]])
    assert not torch.equal(loss.student_bank[INDEX[0]], before[INDEX[0]])
    with pytest.raises(ValueError, match="NaN"):
        loss(torch.full_like(STUDENT, math.nan), TEACHER, TARGET)
    assert loss.log_normalizers.isnan().all(), "a broken first step must not set the constants"
    assert loss(STUDENT, TEACHER, TARGET).isfinite()


def fresh(student: Tensor, teacher: Tensor, contrast: Tensor = CONTRAST) -> Tensor:
    """A new loss each time, its constants already set: the first step's carry no gradient."""
    loss = built(make, Example(student, teacher))
    loss.log_normalizers.fill_(math.log(30.0))
    contrast = contrast[: len(student)]
    value: Tensor = loss(student, teacher, [contrast[:, 0], torch.zeros(len(student), dtype=torch.long)], contrast)
    return value


def test_the_module_is_held_to_every_check() -> None:
    checks.check_gradcheck(fresh, STUDENT, TEACHER, wrt=(0, 1))
    checks.check_half_precision(fresh, STUDENT, TEACHER)
    checks.check_finite_or_error(fresh, STUDENT, TEACHER)
    checks.check_nan_raises(fresh, STUDENT, TEACHER)
    checks.check_permutation_invariant(fresh, STUDENT, TEACHER, CONTRAST)


def test_training_in_half_precision_weights_gives_a_float32_loss() -> None:
    loss = ready(torch.float32).bfloat16()
    value = loss(STUDENT.bfloat16(), TEACHER.bfloat16(), TARGET)
    assert value.dtype == torch.float32
    assert loss(STUDENT.bfloat16(), TEACHER.bfloat16(), TARGET).isfinite()


def test_state_dict_and_build() -> None:
    example = Example(STUDENT, TEACHER, TARGET, dataset_size=SIZE)
    check_state_dict_round_trip(
        lambda: CRDLoss(embedding_dim=WIDTH, negatives=3), example, lambda loss: loss(STUDENT, TEACHER, TARGET)
    )
    check_build_is_idempotent(make, example)
    assert built(make, example).student_bank.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.1)


def test_maps_are_flattened() -> None:
    maps = checks.logits(BATCH, 2, 2, 1, seed=1)
    loss = built(make, Example(maps, TEACHER)).eval()
    assert torch.equal(loss(maps, TEACHER, TARGET), loss(maps.flatten(1), TEACHER, TARGET))


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        make()(STUDENT, TEACHER, TARGET)
    with pytest.raises(ValueError, match="number of training samples"):
        CRDLoss().build(Example(STUDENT, TEACHER, TARGET))
    loss = ready()
    for wrong in (INDEX, [INDEX]):
        with pytest.raises(ValueError, match='target=\\["SampleIndex", "GroundTruth"\\]'):
            loss(STUDENT, TEACHER, wrong)
    with pytest.raises(ValueError, match="0 to 30 are outside its bank of 30"):
        loss(STUDENT, TEACHER, [torch.tensor([0, 1, 2, 3, SIZE]), CLASSES])
    with pytest.raises(ValueError, match=r"built for 4 features, got \(5, 9\)"):
        loss(TEACHER, TEACHER, TARGET)
    with pytest.raises(ValueError, match=r"built for embeddings of \(4, 9\) features, got \(9, 9\)"):
        loss.build(Example(TEACHER, TEACHER))
    loss.classes.zero_()
    with pytest.raises(ValueError, match="two classes at least"):
        loss(STUDENT, TEACHER, [INDEX, torch.zeros_like(INDEX)])
    with pytest.raises(ValueError, match=r"contrast \(B, 1 \+ K\)"):
        crd_loss(STUDENT, STUDENT, STUDENT, STUDENT, CONTRAST[:, :1])
    for setting in ({"temperature": 0.0}, {"momentum": 1.5}, {"negatives": 0}, {"embedding_dim": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            make(**setting)
