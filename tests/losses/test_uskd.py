from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import Example, USKDLoss, uskd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    gradients,
    labels,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip

CASES = [Case(lambda: USKDLoss(gather=True), "feature and labels")]

STUDENT, WEAK, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)
FEATURE = logits(6, 4, 3, 3, seed=3)


def published(student: Tensor, weak: Tensor, target: Tensor, ranking: str) -> Tensor:
    """Sample by sample."""
    p, w = student.softmax(1), weak.softmax(1)
    confidence = p.gather(1, target[:, None])[:, 0].detach() ** 2
    total = torch.zeros((), dtype=student.dtype)
    for i, y in enumerate(target.tolist()):
        by = p[i].log() if ranking == "log_probabilities" else p[i]
        rank = w[i] / (1 - w[i, y] + 1e-6) + by / (1 - by[y] + 1e-6)
        order = sorted(range(len(rank)), key=lambda c: -rank[c].item())
        zipf = {c: 1 / (k + 1) for k, c in enumerate(order) if c != y}
        rest = torch.logsumexp(student[i, [c for c in range(len(rank)) if c != y]], 0)
        total = total - (confidence[i] + 1 - confidence.mean()) * p[i, y].log()
        total = total - 0.1 * sum(z / sum(zipf.values()) * (student[i, c] - rest) for c, z in zipf.items())
        total = total + 0.005 * F.cross_entropy(weak[i], target[i], label_smoothing=0.1)
    return total / len(student)


@pytest.mark.parametrize("ranking", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("shape", [(1, 3), (7, 4), (16, 31)])
def test_is_the_published_formula(shape: tuple[int, int], ranking: str) -> None:
    student, weak, target = logits(*shape, seed=3), logits(*shape, seed=4), labels(*shape, seed=5)
    ours = gradients(lambda s, w: uskd_loss(s, w, target, ranking=ranking), student, weak)  # type: ignore[arg-type]
    theirs = gradients(lambda s, w: published(s, w, target, ranking), student, weak)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_holds_to_the_checks() -> None:
    soft = STUDENT.clone()  # labels that the numeric gradient must see as constants: only the weak head's part has none
    check_gradcheck(lambda s, w, y: uskd_loss(s, w, y, alpha=0.0), soft, WEAK, TARGET, wrt=(0, 1))
    check_half_precision(uskd_loss, STUDENT, WEAK, TARGET)
    check_finite_or_error(uskd_loss, STUDENT, WEAK, TARGET)
    check_nan_raises(uskd_loss, STUDENT, WEAK, TARGET)
    check_permutation_invariant(uskd_loss, STUDENT, WEAK, TARGET)


def test_the_module_pools_its_feature() -> None:
    loss = built(USKDLoss, Example([STUDENT, FEATURE], TARGET))
    assert loss.head is not None
    value = loss([STUDENT, FEATURE], TARGET)
    torch.testing.assert_close(value, uskd_loss(STUDENT, loss.head(FEATURE.mean(dim=(2, 3))), TARGET))
    clips = FEATURE.repeat_interleave(2, dim=0) + torch.tensor([1.0, -1.0]).repeat(6)[:, None, None, None]
    torch.testing.assert_close(loss([STUDENT, clips], TARGET), value)


def test_mixed_labels_count_by_their_two_largest_classes() -> None:
    one_hot = F.one_hot(TARGET, 5).double()
    pure = uskd_loss(STUDENT, WEAK, one_hot, beta=0.0)
    torch.testing.assert_close(pure, uskd_loss(STUDENT, WEAK, TARGET, beta=0.0))
    other = (TARGET + 1) % 5
    mixed = 0.7 * one_hot + 0.3 * F.one_hot(other, 5)
    p = STUDENT.softmax(1)
    soft = torch.zeros(6).double()
    for index, share in ((TARGET, 0.7), (other, 0.3)):
        of = p.gather(1, index[:, None])[:, 0]
        soft = soft - (of**2 + share - (of**2).mean()) * of.log()
    torch.testing.assert_close(uskd_loss(STUDENT, WEAK, mixed, beta=0.0, mu=0.0), soft.mean())
    assert uskd_loss(STUDENT, WEAK, mixed).isfinite()


def test_a_masked_sample_counts_nowhere() -> None:
    mask = torch.tensor([True, False, True, True, False, True])
    student, weak = (x.masked_fill(~mask[:, None], torch.nan) for x in (STUDENT, WEAK))
    kept = uskd_loss(STUDENT[mask], WEAK[mask], TARGET[mask])
    torch.testing.assert_close(uskd_loss(student, weak, TARGET.masked_fill(~mask, -100), mask=mask), kept)


def test_its_head_is_sized_once_and_saved() -> None:
    example = Example([STUDENT, FEATURE], TARGET)
    check_build_is_idempotent(USKDLoss, example)
    check_state_dict_round_trip(USKDLoss, example, lambda loss: loss([STUDENT, FEATURE], TARGET))


def test_compiles_whole() -> None:
    loss = built(USKDLoss, Example([STUDENT, FEATURE], TARGET))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled([STUDENT, FEATURE], TARGET), loss([STUDENT, FEATURE], TARGET))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"logits \(N, C\) and a feature of its middle.*got \[\(6, 5\)\]"):
        USKDLoss().build(Example(STUDENT, TARGET))
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        USKDLoss()([STUDENT, FEATURE], TARGET)
    loss = built(USKDLoss, Example([STUDENT, FEATURE], TARGET))
    with pytest.raises(ValueError, match=r"built for \(channels, classes\) \(4, 5\), got \(3, 5\)"):
        loss.build(Example([STUDENT, FEATURE[:, :3]], TARGET))
