from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import Example, QueueRelationLoss, queue_relation_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_zero_when_equal,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: QueueRelationLoss(size=12, gather=True))]

STUDENT, TEACHER, OTHER = logits(5, 4, seed=1), logits(5, 4, seed=2), logits(5, 7, 2, 3, seed=3)
QUEUE = logits(9, 4, seed=4)
MASK = torch.tensor([True, False, True, True, False])


def test_is_a_divergence_of_similarities() -> None:
    log_p, log_q = ((x @ QUEUE.T / 2).log_softmax(1) for x in (TEACHER, STUDENT))
    expected = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(queue_relation_loss(STUDENT, TEACHER, QUEUE, temperature=2.0), expected)
    cooler = (STUDENT @ QUEUE.T / 3).log_softmax(1)
    torch.testing.assert_close(
        queue_relation_loss(STUDENT, TEACHER, QUEUE, temperature=2.0, student_temperature=3.0),
        F.kl_div(cooler, log_p, reduction="batchmean", log_target=True),
    )


def test_holds_to_the_checks() -> None:
    check_gradcheck(queue_relation_loss, STUDENT, TEACHER, QUEUE, wrt=(0, 1))
    check_zero_when_equal(queue_relation_loss, STUDENT, QUEUE)
    loss = fresh(lambda: QueueRelationLoss(size=8))
    for teacher in (TEACHER, OTHER):
        check_half_precision(loss, STUDENT, teacher)
        check_finite_or_error(loss, STUDENT, teacher)
        check_nan_raises(loss, STUDENT, teacher)
    check_permutation_invariant(loss, STUDENT, TEACHER)


def test_the_queue_takes_the_batch_first_and_in_training_only() -> None:
    loss = built(lambda: QueueRelationLoss(size=8), Example(STUDENT, OTHER))
    assert loss.queue is not None
    assert loss.projection is not None
    pooled = F.normalize(OTHER.mean(dim=(2, 3)), dim=1)
    value = loss(STUDENT, OTHER)
    rows = torch.cat([pooled, torch.zeros(3, 7).double()])
    torch.testing.assert_close(loss.queue.rows, rows)
    projected = F.normalize(loss.projection(STUDENT), dim=1)
    torch.testing.assert_close(value, queue_relation_loss(projected, pooled, rows))
    loss(STUDENT, OTHER.flip(0))
    torch.testing.assert_close(loss.queue.rows, torch.cat([pooled.flip(0), pooled[:3]]))
    before = loss.queue.rows.clone()
    loss.eval()(STUDENT, OTHER)
    assert torch.equal(loss.queue.rows, before)


def test_gradients_survive_that_the_queue_moves() -> None:
    loss = built(lambda: QueueRelationLoss(size=8), Example(STUDENT, TEACHER))
    student = STUDENT.clone().requires_grad_()
    (loss(student, TEACHER) + loss(student, 2 - TEACHER)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("given", "samples", "size"), [(None, None, 8192), (None, 64, 32), (None, 3, 16), (5, 64, 5)])
def test_its_size_is_that_of_the_data(given: int | None, samples: int | None, size: int) -> None:
    loss = QueueRelationLoss(size=given)
    loss.build(Example(STUDENT, TEACHER, dataset_size=samples))
    assert loss.queue is not None
    assert loss.queue.rows.shape == (size, 4)


def test_samples_that_do_not_count_enter_neither_mean_nor_queue() -> None:
    loss, alone = (built(lambda: QueueRelationLoss(size=8), Example(STUDENT, TEACHER)) for _ in range(2))
    assert loss.queue is not None
    assert alone.queue is not None
    for student, teacher in ((STUDENT, TEACHER), (TEACHER, STUDENT), (-STUDENT, TEACHER)):
        broken = student.masked_fill(~MASK[:, None], torch.nan), teacher.masked_fill(~MASK[:, None], torch.nan)
        value = loss(*broken, mask=MASK)
        torch.testing.assert_close(value, alone(student[MASK], teacher[MASK]))
        torch.testing.assert_close(loss.queue.rows, alone.queue.rows)
    assert loss(STUDENT, TEACHER, mask=torch.zeros(5)) == 0


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, OTHER)
    check_build_is_idempotent(QueueRelationLoss, example)
    check_state_dict_round_trip(lambda: QueueRelationLoss(size=8), example, lambda loss: loss.eval()(STUDENT, OTHER))


def test_compiles_whole() -> None:
    loss, eager = (built(lambda: QueueRelationLoss(size=8), Example(STUDENT, OTHER)) for _ in range(2))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(STUDENT, OTHER, mask=MASK), eager(STUDENT, OTHER, mask=MASK))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"features \(B, C\) and a queue \(M, C\), got student \(5, 4\).*\(9, 3\)"):
        queue_relation_loss(STUDENT, TEACHER, QUEUE[:, :3])
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        QueueRelationLoss(projector=None)(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, or None"):
        QueueRelationLoss(size=0)
