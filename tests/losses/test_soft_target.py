from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import SoftTargetCrossEntropy, dml_loss, kd_loss, soft_target_cross_entropy
from lit_distill.losses.response.soft_target import SoftForm
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(SoftTargetCrossEntropy)]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_cross_entropy_with_the_teachers_probabilities(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    ours = gradients(SoftTargetCrossEntropy(temperature=temperature), student, teacher)
    theirs = gradients(
        lambda s, t: F.cross_entropy(s / temperature, (t / temperature).softmax(1)) * temperature**2, student, teacher
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["cross_entropy", "js"])
def test_holds_to_the_checks(form: SoftForm) -> None:
    check_all(SoftTargetCrossEntropy(form=form, temperature=2.0), STUDENT, TEACHER, wrt=(0, 1))


def test_teaches_what_a_divergence_teaches() -> None:
    _, ours = gradients(SoftTargetCrossEntropy(temperature=2.0), STUDENT, TEACHER)
    _, divergence = gradients(lambda s, t: kd_loss(s, t, temperature=2.0), STUDENT, TEACHER)
    torch.testing.assert_close(ours[0], divergence[0])
    assert soft_target_cross_entropy(STUDENT, STUDENT) > 0


def test_js_is_ssld_s_symmetric_divergence() -> None:
    check_zero_when_equal(SoftTargetCrossEntropy(form="js"), STUDENT)
    js = soft_target_cross_entropy(STUDENT, TEACHER, form="js")
    torch.testing.assert_close(js, soft_target_cross_entropy(TEACHER, STUDENT, form="js"))
    p, q = STUDENT.softmax(1), TEACHER.softmax(1)
    published = ((q * ((q + 1e-10) / (p + 1e-10)).log() + p * ((p + 1e-10) / (q + 1e-10)).log()) / 2 * 5).mean()
    torch.testing.assert_close(js, published, rtol=1e-5, atol=0)
    torch.testing.assert_close(js, dml_loss(STUDENT, TEACHER, eps=0.0))


def test_middle_dimensions_count_as_samples() -> None:
    maps_s, maps_t = logits(2, 5, 3, 4, seed=1), logits(2, 5, 3, 4, seed=2)
    rows = [x.permute(0, 2, 3, 1).reshape(24, 5) for x in (maps_s, maps_t)]
    torch.testing.assert_close(soft_target_cross_entropy(maps_s, maps_t, class_dim=1), soft_target_cross_entropy(*rows))


def test_says_what_is_wrong() -> None:
    check_shapes_named(SoftTargetCrossEntropy(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="form must be one of 'cross_entropy', 'js', got 'kl'"):
        SoftTargetCrossEntropy(form="kl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be"):
        SoftTargetCrossEntropy(temperature=-2.0)
    assert "form='js'" in repr(SoftTargetCrossEntropy(form="js"))
