"""Rows of relations: how similar a token or a sample is to others, as probabilities that student and teacher share."""

from __future__ import annotations

from torch import Tensor

from lit_distill.losses._numerics import kl_from_log_probabilities


def relation_divergence(student: Tensor, teacher: Tensor, columns: Tensor | None = None) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of each row of scores, of the columns that count.

    A column that does not count adds nothing and gets no gradient, a weight of 2 is a column that stands there twice.

    Args:
        student: scores (..., M).
        teacher: scores of the same shape.
        columns: weights of at least 0 that broadcast to the scores.

    Returns:
        One value a row, (...).
    """
    if columns is None:
        return kl_from_log_probabilities(teacher.log_softmax(dim=-1), student.log_softmax(dim=-1))
    none, log = columns == 0, columns.to(student.dtype).log()
    log_t, log_s = ((x + log).masked_fill(none, -float("inf")).log_softmax(dim=-1) for x in (teacher, student))
    return kl_from_log_probabilities(log_t.masked_fill(none, 0), log_s.masked_fill(none, 0))
