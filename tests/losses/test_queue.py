from __future__ import annotations

import torch

from lit_distill.losses._queue import FeatureQueue


def test_newest_first_and_the_oldest_leaves() -> None:
    queue = FeatureQueue(4, 2)
    batches = [torch.full((2, 2), float(n)) for n in range(1, 4)]
    for batch in batches:
        seen = queue(batch)
    assert seen[:, 0].tolist() == [3, 3, 2, 2]
    assert queue(torch.arange(12.0).reshape(6, 2)).tolist() == torch.arange(8.0).reshape(4, 2).tolist()


def test_validation_leaves_it_as_it_is() -> None:
    queue = FeatureQueue(3, 2).eval()
    assert not queue(torch.ones(2, 2)).any()
    assert not queue.rows.any()


def test_it_is_saved_and_has_no_gradient() -> None:
    first, second = FeatureQueue(3, 2), FeatureQueue(3, 2)
    first(torch.ones(2, 2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.rows, second.rows)
    features = torch.ones(2, 2, requires_grad=True)
    loss = (features @ first(features).T).sum() + (features @ first(2 * features).T).sum()
    loss.backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.full((2, 2), 3.0 + 5.0))


def test_keeps_its_precision() -> None:
    queue = FeatureQueue(2, 2)
    assert queue(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert queue(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert queue.rows.dtype == torch.float32


def test_rows_that_do_not_count_stay_out() -> None:
    queue = FeatureQueue(3, 1)
    queue(torch.tensor([[1.0], [2.0], [3.0]]))
    seen = queue(torch.tensor([[4.0], [5.0], [6.0]]), torch.tensor([False, True, False]))
    assert seen.flatten().tolist() == [5, 1, 2]
