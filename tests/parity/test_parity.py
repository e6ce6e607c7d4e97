"""Every golden case: run by an adapter, or on the list of families left out with a reason."""

from __future__ import annotations

import pytest

from parity.adapters import (
    contrastive_losses,
    data,
    feature_losses,
    models,
    relation_losses,
    response_losses,
    token_losses,
    training,
    weights,
)
from parity.harness import SHIPPED, Case, CaseAdapter, LossAdapter, check_loss, load_cases

LOSS_ADAPTERS: dict[str, LossAdapter] = {
    **response_losses.ADAPTERS,
    **feature_losses.ADAPTERS,
    **relation_losses.ADAPTERS,
    **contrastive_losses.ADAPTERS,
    **token_losses.ADAPTERS,
}
CASE_ADAPTERS: dict[str, CaseAdapter] = {
    **models.ADAPTERS,
    **data.ADAPTERS,
    **training.ADAPTERS,
    **weights.ADAPTERS,
}
LEFT_OUT = {
    "hard_dark_rank": "DarkRank is a metric-learning ranking loss, not among the library's methods",
    "softsupcon": "a contrastive loss with pseudo-labels for semi-supervised training: it has no teacher",
    "regularization_norm": "a p-norm of one tensor: no distillation, torch.linalg.vector_norm",
}
PENDING: dict[str, str] = {}
"""Families of cases whose method is still to come, with its part of the library."""


def test_what_is_left_out_has_no_adapter() -> None:
    """A family that gets an adapter leaves these lists; a name in them that no case has is a slip."""
    assert not (LEFT_OUT.keys() | PENDING.keys()) & LOSS_ADAPTERS.keys()
    assert not LEFT_OUT.keys() & PENDING.keys()
    assert LEFT_OUT.keys() | PENDING.keys() <= {case.family for case in load_cases(SHIPPED)}


@pytest.mark.parametrize("case", load_cases(), ids=str)
def test_golden(case: Case) -> None:
    if case.kind == "loss":
        if case.family in LEFT_OUT or case.family in PENDING:
            return
        assert case.family in LOSS_ADAPTERS, f"uncovered: no adapter takes the loss family {case.family!r} of {case.id}"
        check_loss(case, LOSS_ADAPTERS[case.family])
    else:
        assert case.kind in CASE_ADAPTERS, f"uncovered: no adapter takes the kind {case.kind!r} of {case.id}"
        CASE_ADAPTERS[case.kind](case)
