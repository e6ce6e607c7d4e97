"""Class attention transfer (Guo et al., CVPR 2023): where each class is seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._class_maps import ClassMapsLoss
from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._masks import mask_of_rows, masked_mean, without_masked
from lit_distill.losses._normalized import unit_vectors
from lit_distill.losses._numerics import full_precision, require_same_shape, upcast
from lit_distill.losses.base import hyperparameters
from lit_distill.losses.feature._maps import require_maps

__all__ = ["CATKDLoss", "cat_kd_loss"]


@full_precision
def cat_kd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    resolution: Count = 2,
    normalize: bool = False,
    binarize: bool = False,
) -> Tensor:
    """Mean squared difference of class activation maps, pooled; see :class:`CATKDLoss`.

    Args:
        student: class activation maps (N, C, H, W).
        teacher: the same; H and W may be others.
        mask: which samples count, (N,).
        resolution: side of the pooled maps.
        normalize: scale each pooled map to length 1.
        binarize: make the teacher's map 1 where it exceeds its mean absolute value, else 0.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: batch or classes differ, or the result is not finite.

    Example:
        >>> import torch
        >>> cat_kd_loss(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
        tensor(1.)
    """
    require_maps("cat_kd_loss", student, teacher)
    if binarize:
        threshold = teacher.abs().mean(dim=(2, 3), keepdim=True)
        # A comparison would hide NaN and infinity.
        teacher = (teacher > threshold).to(teacher.dtype) + 0 * teacher.detach()
    student, teacher = (F.adaptive_avg_pool2d(maps, resolution).flatten(2) for maps in (student, teacher))
    require_same_shape("cat_kd_loss", student, teacher)
    samples = None if mask is None else mask_of_rows("cat_kd_loss", mask, student.shape[:1])
    student, teacher = without_masked(student, samples), without_masked(teacher, samples)
    if normalize:
        student, teacher = unit_vectors(student), unit_vectors(teacher)
    return masked_mean((student - teacher).square().mean(dim=(1, 2)), samples)


@hyperparameters
class CATKDLoss(ClassMapsLoss):
    r"""Class attention transfer: the student sees each class where the teacher sees it.

    A class activation map is what the classifier gives at each position of the last feature map, before the global
    pooling; it is average-pooled to r × r. With A, B those of student and teacher for C classes:

    .. math:: L = \frac{1}{N C r^2} \sum_i \sum_c \left\| A_{ic} - B_{ic} \right\|^2

    A mean over everything; ``normalize`` divides each pooled map by its length first. A linear classifier after an
    average over positions is one at each position: networks need not be rewritten. The classifiers learn along.

    Signals: feature maps (N, D, H, W) of student and teacher in front of their global pooling, each with the reference
    of its classifier, or class maps (N, C, H, W) as they are, with neither. Sizes may differ.

    Paper: Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv:2304.12777. Matches its
    authors' program, which weighs it 15 at r = 2 between networks of one kind, 600 at r = 4 with ``normalize`` between
    others (CIFAR-100), and 0.5 at r = 4 or 10 at r = 2 with ``normalize`` on ImageNet, beside the cross-entropy.

    Use when: both networks classify by a linear layer after global average pooling, and where the classes are matters,
    as in fine-grained recognition.

    Args:
        resolution: r.
        normalize: scale each pooled map to length 1, for networks of different kinds.
        binarize: make the teacher's map 1 where it exceeds its mean absolute value, else 0: an ablation of the paper.
        student_classifier: reference of the student's classifier (``Student.fc``), or of several modules in turn; None
            for class maps.
        teacher_classifier: that of the teacher.

    Raises:
        ValueError: a bad hyperparameter, maps that cannot be compared, a reference that names no module.

    Example:
        >>> import torch
        >>> CATKDLoss()(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 4, 4))
        tensor(1.)
    """

    resolution: Count = 2
    normalize: bool = False
    binarize: bool = False
    student_classifier: str | Sequence[str] | None = None
    teacher_classifier: str | Sequence[str] | None = None

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        ours, theirs = (upcast(maps) for maps in self.class_maps(student, teacher))
        return cat_kd_loss(
            ours, theirs, mask=mask, resolution=self.resolution, normalize=self.normalize, binarize=self.binarize
        )
