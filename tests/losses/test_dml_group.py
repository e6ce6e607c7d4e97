from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_distill import DistillModule, LossTerm
from lit_distill.composer import LossComposer
from lit_distill.losses import DMLGroupLoss, DMLLoss, dml_group_loss, dml_loss
from lit_distill.losses.response.dml import Form
from losses.cases import Case
from losses.checks import check_all, gradients, logits

CASES = [Case(DMLGroupLoss, "peers"), Case(lambda: DMLGroupLoss(mutual="one_sided"), "peers", note="one-sided")]

PEERS = [logits(6, 5, seed=seed) for seed in (1, 2, 3)]
FORMS: tuple[Form, ...] = ("symmetric", "one_sided")


def of_authors(*peers: Tensor) -> Tensor:
    """Each network's loss as the authors write it, summed: KL of every other's constant answer to its own."""
    total = torch.zeros((), dtype=peers[0].dtype)
    for i, j in itertools.permutations(range(len(peers)), 2):
        q, p = peers[i].softmax(1), peers[j].softmax(1).detach()
        total = total + (p * (1e-8 + p / (q + 1e-8)).log()).sum() / len(q)
    return total


def composed(loss: DMLGroupLoss, peers: list[Tensor]) -> Tensor:
    """As a composer calls it: the second list detached, unless the loss teaches both."""
    value: Tensor = loss(peers, peers if loss.teaches_both else [x.detach() for x in peers])
    return value


def pulls(loss: Callable[..., Tensor], *peers: Tensor) -> list[Tensor]:
    """The gradient of every peer."""
    given = gradients(lambda *x: composed(loss, list(x)) if isinstance(loss, DMLGroupLoss) else loss(*x), *peers)[1]
    return [g for g in given if g is not None]


@pytest.mark.parametrize("scale", [1.0, 6.0, 30.0])
def test_one_sided_is_the_authors_formula(scale: float) -> None:
    peers = [logits(7, 4, seed=seed, scale=scale) for seed in (3, 4, 5, 6)]
    ours = gradients(lambda *x: composed(DMLGroupLoss(mutual="one_sided"), list(x)), *peers)
    torch.testing.assert_close(ours, gradients(of_authors, *peers), rtol=1e-9, atol=1e-12)


def test_symmetric_is_dml_over_every_pair() -> None:
    ours = gradients(lambda *x: composed(DMLGroupLoss(), list(x)), *PEERS)
    pairs = list(itertools.combinations(range(3), 2))
    theirs = gradients(lambda *x: torch.stack([dml_loss(x[i], x[j]) for i, j in pairs]).sum(), *PEERS)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("eps", [None, 0.0, 0.1])
def test_a_group_of_two_is_dml(eps: float | None) -> None:
    def one_sided(a: Tensor, b: Tensor) -> Tensor:
        loss = DMLLoss(mutual="one_sided", eps=eps)
        both: Tensor = loss(a, b.detach()) + loss(b, a.detach())
        return both

    for group, pair in (
        (DMLGroupLoss(eps=eps), DMLLoss(eps=eps)),
        (DMLGroupLoss(mutual="one_sided", eps=eps), one_sided),
    ):
        ours = gradients(lambda *x, group=group: composed(group, list(x)), *PEERS[:2])
        torch.testing.assert_close(ours, gradients(pair, *PEERS[:2]), rtol=1e-12, atol=1e-14)
        assert ours[0] > 0


@pytest.mark.parametrize("mutual", FORMS)
def test_every_peer_learns_from_all_the_others(mutual: Form) -> None:
    """A peer's gradient is drawn to each other one, and to nothing else: it goes when all others answer as it does."""
    loss = DMLGroupLoss(mutual=mutual, eps=0.0)
    for learner in range(3):
        alone = [PEERS[learner].clone() for _ in range(3)]
        assert pulls(loss, *alone)[learner].abs().max() < 1e-12
        for teacher in {0, 1, 2} - {learner}:
            peers = list(alone)
            peers[teacher] = PEERS[teacher]
            moved = peers[learner] - 1e-3 * pulls(loss, *peers)[learner]
            before, after = (dml_loss(x, PEERS[teacher], mutual="one_sided") for x in (PEERS[learner], moved))
            assert after < before, f"{learner} does not learn from {teacher}"


def test_one_sided_answers_as_a_teacher_are_constant() -> None:
    """What a peer gets is the sum of what it gets as the one learner of each pair, not what its pupils would pull."""
    given = pulls(DMLGroupLoss(mutual="one_sided"), *PEERS)
    for i in range(3):
        wanted = torch.zeros_like(PEERS[i])
        for j in {0, 1, 2} - {i}:
            wanted += pulls(lambda s, j=j: dml_loss(s, PEERS[j], mutual="one_sided"), PEERS[i])[0]
        torch.testing.assert_close(given[i], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mutual", FORMS)
def test_the_average_does_not_grow_with_the_group(mutual: Form) -> None:
    for size in (2, 3, 5):
        peers = [logits(4, 3, seed=seed) for seed in range(size)]
        summed, mean = (dml_group_loss(peers, peers, mutual=mutual, average=average) for average in (False, True))
        torch.testing.assert_close(mean * (size - 1), summed)


@pytest.mark.parametrize("mutual", FORMS)
def test_the_order_of_the_peers_does_not_matter(mutual: Form) -> None:
    values = [dml_group_loss(list(order), list(order), mutual=mutual) for order in itertools.permutations(PEERS)]
    for value in values:
        torch.testing.assert_close(value, values[0])


@pytest.mark.parametrize("mutual", FORMS)
def test_holds_to_the_checks(mutual: Form) -> None:
    loss = DMLGroupLoss(mutual=mutual)
    teachers = PEERS[:2]  # as inputs of their own: a numeric gradient sees no detach
    check_all(lambda a, b, c, d: loss([a, b], [c, d]), *PEERS[:2], *teachers, wrt=(0, 1))


def test_one_sided_teachers_are_constant_whoever_calls_it() -> None:
    loss = DMLGroupLoss(mutual="one_sided")
    attached = gradients(lambda *x: loss(list(x), list(x)), *PEERS)
    torch.testing.assert_close(attached, gradients(of_authors, *PEERS), rtol=1e-9, atol=1e-12)
    term = LossTerm(loss, pair=(["A", "B"], ["A", "B"]), detach=False)
    assert not term.detach


@pytest.mark.parametrize("mutual", FORMS)
def test_a_term_takes_the_same_peers_twice(mutual: Form) -> None:
    loss = DMLGroupLoss(mutual=mutual)
    for second in (["B", "A"], ["A", "C"], ["A"], ["A", "B", "C"], ["A.fc", "B"]):
        with pytest.raises(ValueError, match=r"same signals twice, .*write pair: \[\[A, B\], \[A, B\]\]"):
            LossTerm(loss, pair=(["A", "B"], second))
    for detach in (None, False):
        LossTerm(loss, pair=(["A", "B"], ["A", "B"]), detach=detach)
    if mutual == "symmetric":
        with pytest.raises(ValueError, match="detach=True leaves DMLGroupLoss as it is"):
            LossTerm(loss, pair=(["A", "B"], ["A", "B"]), detach=True)
    else:
        assert LossTerm(loss, pair=(["A", "B"], ["A", "B"]), detach=True).detach


def test_a_composer_reaches_all_peers_under_either_form() -> None:
    torch.manual_seed(0)
    names = ["Student", "Peer1", "Peer2"]
    x = torch.randn(4, 6)
    for mutual in FORMS:
        models = {name: nn.Linear(6, 3) for name in names}
        composer = LossComposer({"dml": LossTerm(DMLGroupLoss(mutual=mutual), pair=(names, names))})
        with composer.capture(models) as signals:
            outputs = [models[name](x) for name in names]
        composer(signals).total.backward()  # type: ignore[no-untyped-call]
        for name, gradient in zip(names, pulls(DMLGroupLoss(mutual=mutual), *outputs), strict=True):
            torch.testing.assert_close(models[name].weight.grad, gradient.T @ x)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="two or more, got 1 and 1"):
        DMLGroupLoss()(PEERS[0], PEERS[0])
    with pytest.raises(ValueError, match="the same peers twice, two or more, got 3 and 2"):
        DMLGroupLoss()(PEERS, PEERS[:2])
    with pytest.raises(ValueError, match=r"got \(6, 5\) of the first peer and \(6, 4\) of peer 2"):
        DMLGroupLoss()([PEERS[0], logits(6, 4)], [PEERS[0], logits(6, 4)])
    with pytest.raises(ValueError, match="'symmetric', 'one_sided', got 'both'"):
        DMLGroupLoss(mutual="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        DMLGroupLoss()([PEERS[0], PEERS[1] * torch.nan], PEERS[:2])
    module = DistillModule(
        models={"Student": nn.Linear(3, 2), "Peer": nn.Linear(3, 4)},
        losses={"dml": LossTerm(DMLGroupLoss(), pair=(["Student", "Peer"], ["Student", "Peer"]))},
    )
    with pytest.raises(ValueError, match="term 'dml'"):
        module.build((torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
    assert "mutual='symmetric'" in repr(DMLGroupLoss())
