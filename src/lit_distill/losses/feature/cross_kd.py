"""CrossKD (Wang et al., CVPR 2024): the student's features, read by the teacher's head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_distill.losses._class_maps import classified, modules_named
from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._masks import mask_of_rows
from lit_distill.losses._numerics import full_precision, require_same_shape, upcast
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters, takes, tensors_of
from lit_distill.losses.feature._maps import require_maps
from lit_distill.losses.response.quality_focal import QualityFocalLoss

__all__ = ["CrossKDLoss", "cross_kd_features"]


@full_precision
def cross_kd_features(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, eps: Positive = 1e-6, gather: bool = False
) -> Tensor:
    """The student's maps with mean and standard deviation of the teacher's, by channel over the whole batch.

    Args:
        student: maps (N, C, H, W), before the activation.
        teacher: the same shape.
        mask: which places count in the statistics, (N,) or (N, H, W).
        eps: added to the student's standard deviation.
        gather: take the statistics over all processes.

    Returns:
        Maps of the same shape.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([0.0, 1.0]), torch.tensor([5.0, 7.0])
        >>> cross_kd_features(student.reshape(2, 1, 1, 1), teacher.reshape(2, 1, 1, 1)).flatten()
        tensor([5.0000, 7.0000])
    """
    require_same_shape("cross_kd_features", student, teacher)
    require_maps("cross_kd_features", student, teacher)
    places = (len(student), *student.shape[2:])
    weights = (
        None if mask is None else mask_of_rows("cross_kd_features", mask, places).reshape(len(student), 1, *places[1:])
    )
    s, t = (x if weights is None else x.masked_fill(weights == 0, 0) for x in (student, teacher))
    (mean_s, std_s), (mean_t, std_t) = (_statistics(x, weights, gather) for x in (s, t))
    return (s - mean_s) / (std_s + eps) * std_t + mean_t


def _statistics(maps: Tensor, weights: Tensor | None, gather: bool) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation by channel; no slope where it is 0."""
    counts = torch.ones_like(maps[:, :1]) if weights is None else weights.to(maps.dtype)
    total = counts.sum(dim=(0, 2, 3))[None]
    mean = (maps * counts).sum(dim=(0, 2, 3))[None] / total.masked_fill(total == 0, 1)
    squares = ((maps - mean[..., None, None]).square() * counts).sum(dim=(0, 2, 3))[None]
    if gather:  # of each process a row
        totals, means = gather_with_gradients(total), gather_with_gradients(mean)
        total = totals.sum(dim=0, keepdim=True)
        mean = (totals * means).sum(dim=0, keepdim=True) / total.masked_fill(total == 0, 1)
        squares = (gather_with_gradients(squares) + totals * (means - mean).square()).sum(dim=0, keepdim=True)
    variance = squares / (total - 1).clamp_min(1)
    there = variance > 0
    std = torch.where(there, variance, 1.0).sqrt().where(there, variance)
    return mean[..., None, None], std[..., None, None]


@hyperparameters
class CrossKDLoss(SizedLoss):
    r"""Cross-head distillation: the student's features go through the rest of the teacher's head, and are judged there.

    With f, g the features of both heads after their i-th convolution, before the activation, h the rest of the
    teacher's head, and ℓ a loss between predictions:

    .. math:: L = ℓ\left(h\left(\mathrm{ReLU}(\hat f)\right), p\right), \quad
        \hat f = \frac{f - μ_f}{σ_f + ε} σ_g + μ_g

    p is the teacher's own prediction. Means and unbiased deviations are those of a channel over the whole batch
    (under DDP with ``gather``, the global one). The
    labels pull at the student's own head alone, so that both do not contradict each other. Scaling and reduction are
    those of ℓ.

    Signals: a feature map (N, C, H, W) of the student's head (``Student.head.cls.2``, a convolution or its norm), and a
    list of the same of the teacher and of its prediction (N, K, H, W). Levels of a pyramid are terms each. A mask has
    (N,) or (N, H, W).

    Paper: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024, arXiv:2306.11369.
    Its authors' program takes the third of four convolutions (the second for FCOS): classes by QualityFocalLoss at
    weight 1 (FCOS 0.4), boxes by GIoU at weight 1 (FCOS 0.75), or a distribution of box sides by KDLoss at T = 1 and
    weight 4, weighed by the teacher's largest class probability.

    Use when: the student detects with a head of the teacher's layout.

    Args:
        teacher_head: references of the modules that follow in the teacher's head after the activation, in turn, as
            ``[Teacher.head.cls.3, Teacher.head.cls_score]``.
        loss: ℓ, a loss of predictions (N, K, H, W); None for QualityFocalLoss of the classes in dimension 1.
        eps: ε, above 0.
        gather: take means and deviations over all processes, with gradients.

    Raises:
        ValueError: a bad hyperparameter, maps that differ, a reference that names no module, or what ℓ refuses.

    Example:
        >>> teacher, feature = nn.Sequential(nn.Conv2d(4, 3, 1)), torch.randn(2, 4, 5, 5)
        >>> loss = CrossKDLoss(teacher_head="Teacher.0")
        >>> loss.build(Example(feature, [feature, teacher(feature.relu())], models={"Teacher": teacher}))
        >>> loss(feature, [feature, teacher(feature.relu())]).item() < 1e-5
        True
    """

    teacher_head: str | Sequence[str] | None = None
    loss: nn.Module | None = None
    eps: Positive = 1e-6
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # In a tuple: they are parts of the teacher, and no parameters of this loss.
        self._head: tuple[nn.Module, ...] = ()
        self._built = self.teacher_head is None
        self._default = QualityFocalLoss(class_dim=1)

    @property
    def is_built(self) -> bool:
        """Whether the teacher's head is found."""
        return self._built

    def build(self, example: Example) -> None:
        """Find the rest of the teacher's head.

        Raises:
            ValueError: a reference names no module.
        """
        self._head = modules_named("CrossKDLoss", "teacher_head", self.teacher_head, example.models)
        self._built = True

    @full_precision
    def forward(self, student: Tensor, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        parts = tensors_of(teacher)
        if len(parts) != 2:
            raise ValueError(
                "CrossKDLoss expects the teacher's feature and its prediction, got "
                f"{[tuple(part.shape) for part in parts]}: pair: [Student.<map>, [Teacher.<map>, Teacher.<head>]]"
            )
        feature, prediction = parts
        crossed = cross_kd_features(student, feature, mask=mask, eps=self.eps, gather=self.gather).relu()
        predicted = upcast(classified(crossed, self._head)).to(prediction.dtype)
        loss = self._default if self.loss is None else self.loss
        masked = {"mask": mask} if mask is not None and takes(loss, "mask") else {}
        value: Tensor = loss(predicted, prediction, **masked)
        return value
