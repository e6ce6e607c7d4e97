"""Scale-decoupled distillation (Wei et al., CVPR 2024): what the networks say of each region of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._class_maps import ClassMapsLoss, classified
from lit_distill.losses._hyperparameters import Count, NonNegative
from lit_distill.losses._masks import mask_of_rows
from lit_distill.losses._numerics import full_precision, upcast
from lit_distill.losses.base import class_indices, hyperparameters
from lit_distill.losses.response._logits import check_labels, logit_rows
from lit_distill.losses.response._wrapped import WrappedLoss, call
from lit_distill.losses.response.kd import KDLoss

__all__ = ["SDDLoss", "sdd_loss"]


@full_precision
def sdd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    loss: nn.Module | None = None,
    complementary: NonNegative = 2.0,
) -> Tensor:
    """A loss of the logits of each region, of which some count for more.

    Args:
        student: logits of regions (N, C, R), region 0 the whole image.
        teacher: the same.
        target: class indices (N,), or class probabilities (N, C).
        mask: which samples count, (N,).
        loss: between logits, a mean over rows that takes a ``mask``; None for KDLoss().
        complementary: weight of a region that the teacher judges otherwise than the whole.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the shapes differ or are others, or what the loss refuses.

    Example:
        >>> teacher = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])  # class 0 for the whole image, class 1 for the region
        >>> student = torch.zeros(1, 2, 2)
        >>> whole = KDLoss()(student[..., 0], teacher[..., 0])
        >>> round((sdd_loss(student, teacher, torch.tensor([0])) / whole).item(), 4)
        1.5
    """
    rows = logit_rows("sdd_loss", student, teacher, 1)
    if student.ndim != 3:
        raise ValueError(
            "sdd_loss expects logits of regions (N, C, R) with region 0 the whole image, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    n, _, regions = student.shape
    labels = check_labels("sdd_loss", student[:, :, 0], target)
    right = teacher.argmax(dim=1) == class_indices(labels)[:, None]
    weights = torch.where(right == right[:, :1], 1.0, complementary).to(student.dtype)
    total: Tensor | int = n
    if mask is not None:
        samples = mask_of_rows("sdd_loss", mask, (n,)).to(student.dtype)
        weights, total = weights * samples[:, None], samples.sum()
    rows = rows._replace(mask=weights.flatten())
    of_rows = labels.repeat_interleave(regions, dim=0)
    # The loss is a weighted mean; the published one divides by the number of regions instead of the weights.
    mean = call(KDLoss() if loss is None else loss, rows, of_rows, -1)
    return mean * weights.sum() / (total * regions if isinstance(total, int) else (total * regions).clamp_min(1e-30))


@hyperparameters
class SDDLoss(WrappedLoss, ClassMapsLoss):
    r"""Scale-decoupled distillation: a loss between logits is taken region by region, of what each network says there.

    With ℓ a ``loss`` between logits, R regions of N images, region 0 the whole one, and s, t the logits:

    .. math:: L = \frac{1}{N R} \sum_i \sum_r w_{ir} \, ℓ(s_{ir}, t_{ir}, y_i), \quad
        w_{ir} = \begin{cases} β & \text{the teacher is right of exactly one of region } r \text{ and the whole} \\
        1 & \text{otherwise} \end{cases}

    The last feature map is average-pooled to ``grid`` × ``grid`` cells, and these to each of ``scales``; every cell
    passes the network's own classifier, which learns along. The weights do not divide. KD, DKD and NKD are the
    published losses; each that is a mean over samples and takes a ``mask`` will do, ``StandardizedLoss`` among them.

    Signals: feature maps (N, D, H, W) of student and teacher in front of their global pooling, each with the reference
    of its classifier, or logits of regions (N, C, R) as they are, with neither; and the target: class indices (N,), or
    class probabilities. Frames (N T, D, H, W) of clips are averaged over each clip's logits.

    Paper: Wei, Luo, Luo, "Scale Decoupled Distillation", CVPR 2024, arXiv:2403.13512. Regions and weights are those of
    its authors' program, which on CIFAR-100 weighs KD 0.9 at T = 4 beside 0.1 of the labels, raises the weight of DKD
    and NKD over 20 epochs, and takes ``scales=(1, 2, 4)`` or ``(1, 2)``. Its NKD takes all classes for the rest:
    ``NKDLoss(rest="all")``. It replaces a loss that is not finite by 0; here that is an error.

    Use when: images hold more than one class or their surroundings mislead, so that the teacher's answer for the whole
    mixes several things up. It costs one more pass of the classifiers.

    Args:
        loss: ℓ; None for KDLoss().
        complementary: β, of at least 0; the authors use 2.
        scales: the sides of the regions' grids, the whole image first; each must divide ``grid``.
        grid: the side of the finest grid.
        student_classifier: reference of the student's classifier (``Student.fc``), or of several modules in turn; None
            for logits of regions.
        teacher_classifier: that of the teacher.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, a reference that names no module, or what the loss
            refuses.

    Example:
        >>> maps = torch.randn(2, 5, 4, 4)  # of classes: no classifier is needed
        >>> SDDLoss()(maps, maps, torch.tensor([0, 3])).item()
        0.0
    """

    loss: nn.Module | None = None
    complementary: NonNegative = 2.0
    scales: Sequence[Count] = (1, 2, 4)
    grid: Count = 4
    student_classifier: str | Sequence[str] | None = None
    teacher_classifier: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scales = tuple(self.scales)
        if self.scales[:1] != (1,) or any(self.grid % scale for scale in self.scales):
            raise ValueError(
                f"SDDLoss: scales must begin with 1, the whole image, and divide grid={self.grid}, got {self.scales}"
            )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        ours, theirs = self._classifiers
        regions = self._regions(student, ours, target), self._regions(teacher, theirs, target)
        return sdd_loss(*regions, target, mask=mask, loss=self.loss, complementary=self.complementary)

    def _regions(self, signal: Tensor, classifier: Sequence[nn.Module], target: Tensor) -> Tensor:
        """Logits (N, C, R)."""
        if signal.ndim == 3 and not classifier:
            return signal
        if signal.ndim != 4 or not len(target) or len(signal) % len(target):
            raise ValueError(
                f"SDDLoss expects feature maps (N, D, H, W) for the {len(target)} samples of the target, or frames of "
                f"each, got {tuple(signal.shape)}"
            )
        finest = F.adaptive_avg_pool2d(signal, self.grid)
        cells = [classified(F.avg_pool2d(finest, self.grid // scale), classifier).flatten(2) for scale in self.scales]
        logits = upcast(torch.cat(cells, dim=2))
        return logits.unflatten(0, (len(target), -1)).mean(dim=1)  # type: ignore[no-untyped-call, no-any-return]
