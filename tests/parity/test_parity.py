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
    training,
    weights,
)
from parity.harness import Case, CaseAdapter, LossAdapter, check_loss, load_cases

LOSS_ADAPTERS: dict[str, LossAdapter] = {
    **response_losses.ADAPTERS,
    **feature_losses.ADAPTERS,
    **relation_losses.ADAPTERS,
    **contrastive_losses.ADAPTERS,
}
CASE_ADAPTERS: dict[str, CaseAdapter] = {
    **models.ADAPTERS,
    **data.ADAPTERS,
    **training.ADAPTERS,
    **weights.ADAPTERS,
}
LEFT_OUT = {
    "hard_dark_rank": "DarkRank is a metric-learning ranking loss, not among the library's methods",
    "ab": "activation-boundary transfer is superseded by OverHaul of the same authors",
}


@pytest.mark.parametrize("case", load_cases(), ids=str)
def test_golden(case: Case) -> None:
    if case.kind == "loss":
        if case.family in LEFT_OUT:
            assert case.family not in LOSS_ADAPTERS
            return
        assert case.family in LOSS_ADAPTERS, f"uncovered: no adapter takes the loss family {case.family!r} of {case.id}"
        check_loss(case, LOSS_ADAPTERS[case.family])
    else:
        assert case.kind in CASE_ADAPTERS, f"uncovered: no adapter takes the kind {case.kind!r} of {case.id}"
        CASE_ADAPTERS[case.kind](case)
