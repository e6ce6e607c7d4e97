from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import DeiTLoss, deit_loss
from losses.cases import Case
from losses.checks import check_all, gradients, labels, logits

CASES = [Case(DeiTLoss, "heads"), Case(lambda: DeiTLoss(labels="soft"), "heads", note="soft")]

STUDENT, TEACHER, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)
TOKEN = logits(6, 5, seed=3)


def published(student: Tensor, token: Tensor, teacher: Tensor, target: Tensor, alpha: float, t: float | None) -> Tensor:
    """The authors' program, with soft labels divided by the batch as in the paper."""
    base = F.cross_entropy(student, target)
    if t is None:
        return (1 - alpha) * base + alpha * F.cross_entropy(token, teacher.argmax(dim=1))
    soft = F.kl_div((token / t).log_softmax(1), (teacher / t).log_softmax(1), reduction="batchmean", log_target=True)
    return (1 - alpha) * base + alpha * t**2 * soft


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [None, 1.0, 3.0])
def test_is_the_published_formula(temperature: float | None, alpha: float) -> None:
    loss = DeiTLoss(alpha=alpha, labels="hard" if temperature is None else "soft", temperature=temperature or 1.0)
    ours = gradients(lambda s, d, t, y: loss([s, d], t, y), STUDENT, TOKEN, TEACHER.detach(), TARGET)
    theirs = gradients(partial(published, alpha=alpha, t=temperature), STUDENT, TOKEN, TEACHER, TARGET)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1][:2], theirs[1][:2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_holds_to_the_checks(kind: str) -> None:
    loss = DeiTLoss(labels=kind)  # type: ignore[arg-type]
    check_all(lambda s, t, y: loss([s, s], t, y), STUDENT, TEACHER, TARGET)


def test_each_head_has_its_own_teacher() -> None:
    _, (of_class, of_token) = gradients(lambda s, d: deit_loss([s, d], TEACHER, TARGET, alpha=0.3), STUDENT, TOKEN)
    _, (labels_alone,) = gradients(lambda s: 0.7 * F.cross_entropy(s, TARGET), STUDENT)
    _, (teacher_alone,) = gradients(lambda d: 0.3 * F.cross_entropy(d, TEACHER.argmax(1)), TOKEN)
    torch.testing.assert_close(of_class, labels_alone)
    torch.testing.assert_close(of_token, teacher_alone)


def test_mixed_labels_and_masks_count() -> None:
    mixed = 0.7 * F.one_hot(TARGET, 5) + 0.3 * F.one_hot(TARGET.roll(1), 5)
    torch.testing.assert_close(deit_loss([STUDENT, TOKEN], TEACHER, mixed, alpha=0.0), F.cross_entropy(STUDENT, mixed))
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    broken = [x.masked_fill(~mask[:, None], torch.nan) for x in (STUDENT, TOKEN, TEACHER)]
    kept = deit_loss([STUDENT[mask], TOKEN[mask]], TEACHER[mask], TARGET[mask])
    torch.testing.assert_close(deit_loss(broken[:2], broken[2], TARGET, mask=mask), kept)


def test_compiles_whole() -> None:
    compiled = torch.compile(DeiTLoss(), backend="eager", fullgraph=True)
    given = ([STUDENT, TOKEN], TEACHER, TARGET)
    torch.testing.assert_close(compiled(*given), DeiTLoss()(*given))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"two heads .* got 1: pair: \[\[Student.head, Student.head_dist\], Teacher\]"):
        DeiTLoss()(STUDENT, TEACHER, TARGET)
    with pytest.raises(ValueError, match="labels must be one of 'hard', 'soft'"):
        DeiTLoss(labels="both")  # type: ignore[arg-type]
