from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses import Example, FactorTransferLoss, factor_transfer_loss
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: FactorTransferLoss(paraphraser_epochs=1), "map")]

STUDENT, TEACHER = checks.logits(3, 4, 3, 5, seed=1, scale=1.0), checks.logits(3, 6, 3, 5, seed=2, scale=1.0)
FACTOR, OTHER = checks.logits(3, 3, 3, 5, seed=3), checks.logits(3, 3, 3, 5, seed=4)


def test_the_authors_normalise_the_whole_factor() -> None:
    expected = F.l1_loss(F.normalize(FACTOR.flatten(1)), F.normalize(OTHER.flatten(1)))
    torch.testing.assert_close(factor_transfer_loss(FACTOR, OTHER), expected)


@pytest.mark.parametrize("p1", [1, 2, 3])
@pytest.mark.parametrize("p2", [1, 2])
def test_powers_average_over_channels(p1: int, p2: int) -> None:
    s, t = (F.normalize(x.pow(p1).mean(1).flatten(1)) for x in (STUDENT, TEACHER))
    expected = (s - t).abs().pow(p2).mean()
    torch.testing.assert_close(factor_transfer_loss(STUDENT, TEACHER, p1=p1, p2=p2), expected)


@pytest.mark.parametrize("powers", [(None, 1), (2, 1), (2, 2)])
def test_the_function_is_held_to_every_check(powers: tuple[int | None, int]) -> None:
    p1, p2 = powers

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return factor_transfer_loss(student, teacher, p1=p1, p2=p2)

    checks.check_all(loss, FACTOR, OTHER, wrt=(0, 1))
    checks.check_shapes_named(loss, FACTOR, OTHER[:2])
    for factor in (1e-6, 1e9):
        torch.testing.assert_close(loss(FACTOR * factor, OTHER), loss(FACTOR, OTHER))


def test_a_paraphrase_and_its_translation() -> None:
    loss = built(lambda: FactorTransferLoss(beta=7.0, rate=0.5, paraphraser_epochs=0), Example(STUDENT, TEACHER))
    convolutions = [m for m in loss.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        *((6, 6), (6, 3), (3, 3)),
        *((3, 3), (3, 6), (6, 6)),
        *((4, 4), (4, 3), (3, 3)),
    ]
    factor = loss.encoder(TEACHER)
    expected = (loss.decoder(factor) - TEACHER).abs().mean()
    expected = expected + 7 * factor_transfer_loss(loss.translator(STUDENT), factor)
    torch.testing.assert_close(loss(STUDENT, TEACHER), expected)


def test_the_paraphraser_learns_first_and_from_reconstruction_alone() -> None:
    def gradients(loss: FactorTransferLoss, epoch: float) -> tuple[Tensor, list[Tensor]]:
        student = STUDENT.clone().requires_grad_()
        loss.set_epoch(epoch)
        loss.zero_grad()
        loss(student, TEACHER).backward()
        paraphraser = [*loss.encoder.parameters(), *loss.decoder.parameters()]
        assert student.grad is not None
        assert all(p.grad is not None for p in loss.parameters()), "data parallelism would complain"
        return student.grad, [p.grad for p in paraphraser if p.grad is not None]

    loss = built(lambda: FactorTransferLoss(paraphraser_epochs=2), Example(STUDENT, TEACHER))
    student, before = gradients(loss, 1.99)
    assert not student.any()
    student, after = gradients(loss, 2.0)
    assert student.any()
    torch.testing.assert_close(after, before)
    assert loss.eval()(STUDENT, TEACHER) == loss.train()(STUDENT, TEACHER)
    loss.set_epoch(0.0)
    assert loss.eval()(STUDENT, TEACHER) > loss.train()(STUDENT, TEACHER)


def test_repdistiller_has_batch_norm_in_the_translator_alone() -> None:
    loss = built(lambda: FactorTransferLoss(batch_norm=True, p1=2), Example(STUDENT, TEACHER))
    norms = {name.split(".")[0] for name, m in loss.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {"translator"}
    assert loss(STUDENT, TEACHER).isfinite()


def test_the_module_is_held_to_every_check() -> None:
    student, teacher = STUDENT[:, :2].contiguous(), TEACHER[:, :2].contiguous()
    # L1's kinks are what finite differences stumble over: the gradient is checked with squares alone.
    quadratic = fresh(lambda: FactorTransferLoss(paraphraser_epochs=0, p2=2))
    checks.check_gradcheck(quadratic, student, teacher)
    loss = fresh(lambda: FactorTransferLoss(paraphraser_epochs=0))
    checks.check_half_precision(loss, student, teacher)
    checks.check_finite_or_error(loss, student, teacher)
    checks.check_nan_raises(loss, student, teacher)
    checks.check_permutation_invariant(loss, student, teacher)


def test_state_dict_and_build() -> None:
    example = Example(STUDENT, TEACHER)
    check_state_dict_round_trip(FactorTransferLoss, example, lambda loss: loss(STUDENT, TEACHER))
    check_build_is_idempotent(FactorTransferLoss, example)


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        FactorTransferLoss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"same channels unless p1.*\(3, 4, 3, 5\).*\(3, 6, 3, 5\)"):
        factor_transfer_loss(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="one layer with one layer"):
        FactorTransferLoss().build(Example([STUDENT, STUDENT], [TEACHER, TEACHER]))
    loss = built(FactorTransferLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"channels \[\(4, 6\)\], got \[\(6, 4\)\]"):
        loss(TEACHER, STUDENT)
    for name, value in {"beta": -1.0, "rate": 0.0, "paraphraser_epochs": -1.0, "p1": 0, "p2": 1.5}.items():
        with pytest.raises(ValueError, match=name):
            FactorTransferLoss(**{name: value})  # type: ignore[arg-type]
