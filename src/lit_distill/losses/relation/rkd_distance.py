"""Relational knowledge distillation, distances between pairs (Park et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lit_distill.losses._hyperparameters import Count, Positive
from lit_distill.losses._numerics import can_look, full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation._gram import (
    Convention,
    NarrowDistances,
    both_rows,
    squared_distances,
    with_slopes,
)

__all__ = ["RKDDistanceLoss", "rkd_distance_loss"]


@full_precision
def rkd_distance_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    squared: bool = False,
    eps: Positive = 1e-12,
    convention: Convention = "paper",
    target_size: Count | None = None,
    gather: bool = False,
) -> Tensor:
    """Huber loss between the normalized distances of all pairs; see :class:`RKDDistanceLoss`."""
    name = "rkd_distance_loss"
    student, teacher = both_rows(name, student, teacher, convention=convention, target_size=target_size, gather=gather)
    if len(student) > 1 and can_look(student) and student.dtype == teacher.dtype == torch.float32:
        with torch.no_grad():
            of_student, of_teacher = NarrowDistances.of(student), NarrowDistances.of(teacher)
        if of_student is not None and of_teacher is not None:
            compute = partial(_of_rows, squared, eps, convention, of_student, of_teacher)
            return with_slopes(compute, student, teacher)
    pair = squared_distances(student), squared_distances(teacher)
    return distance_huber(*pair, squared=squared, eps=eps, convention=convention).to(student.dtype)


def distance_huber(student: Tensor, teacher: Tensor, *, squared: bool, eps: float, convention: Convention) -> Tensor:
    """The loss from the squared distances (N, N) of both."""
    if len(student) == 1:
        return (student + teacher).sum() * 0.0  # one sample has no relations
    return with_slopes(partial(_value_and_slopes, squared, eps, convention), student, teacher)


def _value_and_slopes(
    squared: bool, eps: float, convention: Convention, student: Tensor, teacher: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    n = len(student)
    count = n * n if convention == "paddleclas" else n * (n - 1)  # of the entries that the mean runs over
    relative, means = zip(*(_relative(x, squared, eps, convention, count) for x in (student, teacher)), strict=True)
    difference = relative[0] - relative[1]
    g = difference.clamp(-1, 1)
    loss = (_inner(g, difference) - _inner(g, g) / 2) / n**2

    slopes: list[Tensor | None] = [None, None]
    for x, (squares, sign) in enumerate(((student, 1), (teacher, -1))):
        if wanted[x]:
            slope = g - _inner(g, relative[x]) / count  # the mean moves with each distance
            slope.mul_(sign / (means[x] * n**2))
            if not squared:
                slope.div_(relative[x] * (2 * means[x]))
            slopes[x] = slope.masked_fill_(squares <= eps, 0)
    return loss, slopes


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of all products, row by row: a dot product of a million float32 entries would lose two digits."""
    return torch.bmm(a[:, None], b[:, :, None]).sum()


def _of_rows(
    squared: bool,
    eps: float,
    convention: Convention,
    of_student: NarrowDistances,
    of_teacher: NarrowDistances,
    student: Tensor,
    teacher: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The same with the gradients of the rows."""
    narrow = (of_student, of_teacher)
    loss, slopes = _value_and_slopes(squared, eps, convention, of_student.squares, of_teacher.squares, wanted)
    return loss, [None if s is None else x.slopes_of_rows(s) for x, s in zip(narrow, slopes, strict=True)]


def _relative(squares: Tensor, squared: bool, eps: float, convention: Convention, count: int) -> tuple[Tensor, Tensor]:
    """Distances over their mean, and the mean."""
    distances = squares.clamp(min=eps)
    if not squared:
        distances.sqrt_()
    if convention == "paper":
        distances.fill_diagonal_(0)
    mean = distances.sum() / count + (eps if convention == "paddleclas" else 0)
    return distances.div_(mean), mean


@hyperparameters
class RKDDistanceLoss(Loss):
    r"""The student's samples lie as far from each other as the teacher's, up to one common scale.

    Signals: student embeddings (N, D_s) and teacher embeddings (N, D_t) of the same N samples, taken before the
    classifier; more dimensions are flattened, one row a sample. The scalar is a mean over all N² pairs, those of a
    sample with itself included, as published. It does not change when the embeddings are moved, rotated, scaled or
    put in another order. A batch of one has no pairs and gives 0. No gradient reaches the teacher.

    Computed from the Gram matrix of centered embeddings, close pairs from their difference: distances are right to 11
    digits of float64 embeddings, to 5 of others (the gradient to 4 where two are 1e-4 apart). On an accelerator and
    under torch.compile they come from the Gram matrix in float64 alone (without float64, on MPS, from float32
    differences), with a gradient right to 1e-6 of float32 embeddings (to 1e-5). The gradient can not be differentiated
    again.

    ``convention="paddleclas"`` is PaddleClas' form: the diagonal keeps √eps, the mean that divides runs over all N²
    entries plus ``eps``, and the teacher gets gradients too (in a LossTerm it is then not detached).

    Formula:
        d_ik = |e_i - e_k| / μ,   μ = mean of |e_i - e_k| over the N(N-1) pairs i ≠ k, student and teacher each
        L = 1/N² Σ_ik huber(d_ik(student) - d_ik(teacher)),   huber(x) = x²/2 for |x| <= 1, else |x| - 1/2

    Paper: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Matches the authors' code and
        its copies in mdistiller, RepDistiller and torchdistill: squared distances are clamped at ``eps``, so that equal
        samples count as 1e-6 apart and give no gradient. mdistiller and RepDistiller weigh it with 25.

    Use when: the dimensions of the embeddings differ, or only the geometry of the batch should be taught. Wants batches
        of 32 samples and more; with several processes ``gather=True`` relates the samples of all. Usually beside
        RKDAngleLoss: RKDLoss computes both for little more than one.

    Args:
        squared: compare squared distances.
        eps: lower bound of the squared distances, above 0.
        convention: "paper" or "paddleclas".
        target_size: average-pool feature maps (N, C, H, W) to this height and width first; None takes them whole.
        gather: relate the samples of all processes; each must then take the same number of steps.

    Raises:
        ValueError: a bad hyperparameter, signals of different N, NaN or infinite embeddings.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = RKDDistanceLoss()
        >>> round(loss(student, torch.eye(3)).item(), 4)
        0.0098
        >>> round(loss(student, 5 * student).item(), 12)
        0.0
    """

    squared: bool = False
    eps: Positive = 1e-12
    convention: Convention = "paper"
    target_size: Count | None = None
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teaches_both = self.convention == "paddleclas"

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of student embeddings against teacher embeddings: a scalar."""
        return rkd_distance_loss(student, teacher, **self.hyperparameters)
