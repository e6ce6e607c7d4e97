"""Similarities to a queue of the teacher's features (Fang et al., ICLR 2021), as LightlyTrain distills."""

from __future__ import annotations

from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Count, Positive
from lit_distill.losses._masks import mask_of_rows, masked_mean, without_masked
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision
from lit_distill.losses._queue import FeatureQueue
from lit_distill.losses.base import Example, Signal, hyperparameters
from lit_distill.losses.feature.regression import Projector
from lit_distill.losses.relation._projected import ProjectedLoss
from lit_distill.losses.relation._rows import relation_divergence

__all__ = ["QueueRelationLoss", "queue_relation_loss"]

_SMALLEST, _LARGEST = 16, 8192


@full_precision
def queue_relation_loss(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: Positive = 0.07,
    student_temperature: Positive | None = None,
) -> Tensor:
    """KL between the similarities of student and teacher to the rows of a queue; see :class:`QueueRelationLoss`.

    Args:
        student: features (B, C), of length 1 for cosines.
        teacher: the same shape.
        queue: features (M, C) to compare with.
        mask: which samples count, (B,).
        temperature: of both sides.
        student_temperature: of the student's side, where it differs.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes cannot be matched, or the result is not finite.

    Example:
        >>> import torch
        >>> queue_relation_loss(torch.eye(2), torch.eye(2), torch.eye(2)).item()
        0.0
    """
    if student.ndim != 2 or student.shape != teacher.shape or queue.shape[1:] != teacher.shape[1:]:
        raise ValueError(
            f"queue_relation_loss expects features (B, C) and a queue (M, C), got student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)} and queue {tuple(queue.shape)}"
        )
    weights = None if mask is None else mask_of_rows("queue_relation_loss", mask, student.shape[:1])
    ours, theirs = (without_masked(x, weights) @ queue.T for x in (student, teacher))
    of_student = temperature if student_temperature is None else student_temperature
    return masked_mean(relation_divergence(ours / of_student, theirs / temperature), weights)


@hyperparameters
class QueueRelationLoss(ProjectedLoss):
    r"""A sample is as similar to the teacher's recent features for the student as for the teacher.

    With s, t features of length 1, s after a linear projector, and q_1 … q_M the newest features of the teacher:

    .. math:: L = \frac1N \sum_i \mathrm{KL}\left(\mathrm{softmax}(t_i^\top q / τ) \,\|\,
        \mathrm{softmax}(s_i^\top q / τ')\right)

    Averaged over samples, no factor τ². The queue takes the batch first, so that each sample meets itself; it begins as
    zeros, which are entries of similarity 0, moves in training only, and is saved with the run. Each process has a
    queue of its own, of its samples; with ``gather`` all have one of all samples.

    Signals: one feature a network: vectors (B, C), or tokens and maps, which are averaged over their places. A mask has
    (B,), or the places of both.

    Paper: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021, arXiv:2101.04731, in
    the form and with the temperature, initialization and queue of LightlyTrain's ``distillationv1``, computed from its
    published values; with :class:`TokenRelationLoss` beside it, of weight 1, it is ``distillationv3``. Cross-entropy
    instead of KL, as in SEED, has the same gradient.

    Use when: a foundation model without a classifier teaches, from images without labels: what is learned are relations
    between samples. No need for large batches, as the queue stands for them.

    Args:
        temperature: τ.
        student_temperature: τ', where it differs.
        size: M, the entries of the queue; None for half the training samples, from 16 to 8192.
        projector: ``linear``, ``mlp``, ``orthogonal``, or None for equal widths.
        gather: let the queue take the samples of all processes.

    Raises:
        ValueError: a bad hyperparameter, features that cannot be paired, NaN or infinite features.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(4, 8), torch.randn(4, 16, 3, 3)
        >>> loss = QueueRelationLoss(size=32)
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    initial_std = 0.02

    temperature: Positive = 0.07
    student_temperature: Positive | None = None
    size: Count | None = None
    projector: Projector | None = "linear"
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.queue: FeatureQueue | None = None

    @property
    def is_built(self) -> bool:
        """Whether the queue exists."""
        return self.queue is not None

    def build(self, example: Example) -> None:
        """Create the projector and the queue for the widths of ``example``.

        Raises:
            ValueError: the features cannot be paired, or the loss was built for other widths.
        """
        super().build(example)
        if self.queue is None:
            _, theirs = self._features(example.student, example.teacher)
            half = _LARGEST if example.dataset_size is None else example.dataset_size // 2
            size = min(max(half, _SMALLEST), _LARGEST) if self.size is None else self.size
            self.queue = FeatureQueue(size, theirs.values.shape[2]).to(theirs.values.device)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar. In training the queue moves first."""
        self.require_built()
        assert self.queue is not None
        ours, theirs = self._features(student, teacher, mask)
        t, kept = unit_vectors(theirs.values[:, 0]), theirs.mask
        newest = t.detach()
        if self.gather:
            newest = gather_with_gradients(newest)
            kept = None if kept is None else gather_with_gradients(kept.to(t.dtype))
        queue = self.queue(newest, kept)
        return queue_relation_loss(
            unit_vectors(self._projected(ours)[:, 0]),
            t,
            queue,
            mask=theirs.mask,
            temperature=self.temperature,
            student_temperature=self.student_temperature,
        )
