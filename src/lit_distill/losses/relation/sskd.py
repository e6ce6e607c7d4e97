"""Self-supervision knowledge distillation (Xu et al., ECCV 2020): what both networks make of views of a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Count, NonNegative, Positive, Share
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision, kl_from_logits
from lit_distill.losses.base import Loss, Signal, class_indices, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.response._logits import check_labels

__all__ = ["SSKDLoss", "sskd_loss"]


@full_precision
def sskd_loss(
    student: Signal,
    teacher: Signal,
    target: Tensor,
    *,
    views: Count = 4,
    labels: NonNegative = 1.0,
    originals: NonNegative = 0.9,
    contrast: NonNegative = 10.0,
    transformed: NonNegative = 2.7,
    temperature: Positive = 4.0,
    contrast_temperature: Positive = 0.5,
    transformed_temperature: Positive = 4.0,
    contrast_share: Share = 0.75,
    transformed_share: Share = 1.0,
    gather: bool = False,
) -> Tensor:
    """Four terms of logits and features of samples and their transformed views; see :class:`SSKDLoss`."""
    ours, theirs = tensors_of(student), tensors_of(teacher)
    shapes = [[tuple(x.shape) for x in side] for side in (ours, theirs)]
    if [len(side) for side in shapes] != [2, 2] or shapes[0][0] != shapes[1][0] or len(shapes[0][0]) != 2:
        raise ValueError(
            "sskd_loss expects logits (N, C) and a feature of each network, of the same samples "
            f"(pair: [[Student.fc, Student.head], [Teacher.fc, Teacher.head]]): {shapes_of(student, teacher)}"
        )
    rows, groups = len(ours[1]), len(ours[1]) // views
    counts = len(ours[0]), len(target)
    if len(theirs[1]) != rows or rows % views or not rows or any(count not in (rows, groups) for count in counts):
        raise ValueError(
            f"sskd_loss expects features in groups of views={views} rows, a sample and its views, and logits and a "
            f"label for each row or each sample: {shapes_of(student, teacher)} and a target {tuple(target.shape)}"
        )
    views_have_logits = len(ours[0]) == rows
    index = class_indices(target[::views] if len(target) == rows else target)
    if gather:
        ours, theirs = ([gather_with_gradients(x) for x in side] for side in (ours, theirs))
        index = gather_with_gradients(index)
    of_logits = views if views_have_logits else 1
    (first_s, other_s), (first_t, other_t) = (split_views(side[0], of_logits) for side in (ours, theirs))
    index = check_labels("sskd_loss", first_s, index)
    total = labels * F.cross_entropy(first_s, index)
    total = total + originals * temperature**2 * kl_from_logits(first_t, first_s, temperature=temperature).mean()
    if views == 1:
        return total
    if views_have_logits:
        truth = index.repeat_interleave(views - 1)
        total = total + transformed * _divergence(other_s, other_t, truth, transformed_temperature, transformed_share)
    cosines_s, cosines_t = view_cosines(ours[1], views), view_cosines(theirs[1], views).detach()
    truth = torch.arange(len(first_s), device=index.device).repeat_interleave(views - 1)
    return total + contrast * _divergence(cosines_s, cosines_t, truth, contrast_temperature, contrast_share)


def split_views(rows: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Rows of samples, and rows of their other views, sample by sample."""
    grouped = rows.unflatten(0, (-1, views))  # type: ignore[no-untyped-call]
    return grouped[:, 0], grouped[:, 1:].flatten(0, 1)


def view_cosines(features: Tensor, views: int) -> Tensor:
    """Cosines (N (views - 1), N) of each view with all samples."""
    samples, others = split_views(unit_vectors(features.flatten(1)), views)
    return others @ samples.T


def _divergence(student: Tensor, teacher: Tensor, truth: Tensor, temperature: float, share: float) -> Tensor:
    """T² KL, a mean over the rows that the teacher has right and a share of the others, least wrong first."""
    kept = _kept(teacher.detach(), truth, share)
    return masked_mean(kl_from_logits(teacher, student, temperature=temperature) * temperature**2, kept)


def _kept(scores: Tensor, truth: Tensor, share: float) -> Tensor:
    rank = (scores > scores.gather(1, truth[:, None])).sum(dim=1)
    wrong = (rank > 0).sum()
    count = len(rank) - wrong + (wrong.to(scores.dtype) * share).floor()
    return rank.argsort(stable=True).argsort() < count


@hyperparameters
class SSKDLoss(Loss):
    r"""The student learns how the teacher relates transformed views of a sample to samples, and what it calls them.

    With p, q probabilities of teacher and student, x samples and x̃ their transformed views, and A the cosines between
    the features of views and of samples:

    .. math:: L = a \, \mathrm{CE}(y, q(x)) + b T^2 \mathrm{KL}(p_T(x) \| q_T(x))
            + c T_s^2 \mathrm{KL}(\mathrm{softmax}(A^t / T_s) \| \mathrm{softmax}(A^s / T_s))
            + d T_t^2 \mathrm{KL}(p_{T_t}(\tilde x) \| q_{T_t}(\tilde x))

    a to d are ``labels``, ``originals``, ``contrast`` and ``transformed``. The last two are means over the rows of
    which the teacher has the right class (the right sample) first, and a share of the others, those it ranks best;
    of equal ranks the earlier rows. Cosines depend on the batch: under DDP ``gather`` makes them, and what is kept,
    those of the global batch.

    Signals: two a network, logits (N, C) and a feature (N, D), which a head of its own makes. Rows stand in groups,
    each sample before its transformed views. Logits of the samples alone have no last part: so the frames of a clip
    may be its views. A third reference names the labels, one for each sample or each row.

    Paper: Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv:2006.07114, whose views are
    rotations, with the authors' weights, temperatures and shares as in torchdistill. The teacher's head is trained
    first, by :class:`SSKDAuxLoss`.

    Use when: the teacher's knowledge of samples unlike the training data helps, and batches of several views are
    affordable.

    Args:
        views: rows of a group, the sample among them.
        labels: a, the weight of the cross-entropy with the labels.
        originals: b, the weight of distillation of samples.
        contrast: c, the weight of cosines.
        transformed: d, the weight of distillation of views.
        temperature: T.
        contrast_temperature: T_s.
        transformed_temperature: T_t.
        contrast_share: share of views that are kept although the teacher finds another sample closer.
        transformed_share: share of views that are kept although the teacher's class is wrong.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, rows that are no groups, NaN or infinite values.

    Example:
        >>> student, teacher = torch.randn(8, 5), torch.randn(8, 5)
        >>> loss = SSKDLoss()([student, torch.randn(8, 6)], [teacher, torch.randn(8, 7)], torch.tensor([0, 3]))
        >>> loss.shape
        torch.Size([])
    """

    views: Count = 4
    labels: NonNegative = 1.0
    originals: NonNegative = 0.9
    contrast: NonNegative = 10.0
    transformed: NonNegative = 2.7
    temperature: Positive = 4.0
    contrast_temperature: Positive = 0.5
    transformed_temperature: Positive = 4.0
    contrast_share: Share = 0.75
    transformed_share: Share = 1.0
    gather: bool = False

    def forward(self, student: Signal, teacher: Signal, target: Tensor) -> Tensor:
        """The loss of one batch, of logits and a feature of each network, and labels: a scalar."""
        return sskd_loss(student, teacher, target, **self.hyperparameters)
