"""N-to-one representation matching (Liu et al., ICLR 2023): each of N parts of a wide map gives the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._maps import ConnectedMapsLoss, conv_bn, layer_pairs, shapes_of, size_of
from lit_distill.losses.feature.regression import regression_loss

__all__ = ["NORMLoss", "norm_loss"]


@full_precision
def norm_loss(student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each group of channels from the teacher's map, summed; see :class:`NORMLoss`.

    Args:
        student: maps (N, G C, H, W), or a list of layers.
        teacher: maps (N, C, H, W), or as many.
        mask: which places count: (N,), or (N, H, W) of maps of one size.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: the student's channels are no multiple of the teacher's, or the result is not finite.

    Example:
        >>> norm_loss(torch.zeros(2, 6, 4, 4), torch.ones(2, 3, 4, 4))  # two groups
        tensor(2.)
    """
    layers = []
    for ours, theirs in layer_pairs("norm_loss", student, teacher):
        groups, rest = divmod(ours.shape[1], theirs.shape[1])
        if rest or not groups:
            raise ValueError(f"norm_loss expects a multiple of the teacher's channels: {shapes_of(student, teacher)}")
        size = min(size_of(ours), size_of(theirs))
        s, t = (x if size_of(x) == size else F.adaptive_max_pool2d(x, size) for x in (ours, theirs))
        layers.append(groups * regression_loss(s, t.repeat(1, groups, 1, 1), mask=mask))
    return torch.stack(layers).sum()


@hyperparameters
class NORMLoss(ConnectedMapsLoss):
    r"""N-to-one matching: the student's map is widened to several times the teacher's channels; each part matches it.

    With e the student's widened map and G its number of groups of C channels:

    .. math:: L = \sum_{g=1}^{G} \frac{1}{N C H W} \sum \left( e_g - t \right)^2

    A mean over the elements of a group, a sum over groups and layers. Where sizes differ, the larger map is max-pooled
    to the other. The expansion, a 1x1 convolution without bias and BatchNorm, is sized from an example batch, trained
    and saved with the run.

    Signals: the last feature maps (N, C, H, W) in front of the pooling, one a network or a list; with ``connect=False``
    a map (N, G C, H, W) of the student that is wide already. The paper's student keeps the expansion beside its path: a
    1x1 convolution and BatchNorm contract it, and the sum goes to the classifier. For that, put both in the network and
    name the wide map.

    Paper: Liu et al., "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023, arXiv:2305.13803.
    Matches its authors' program: 8 groups, weight 1, the cross-entropy at 1/16 to 1/2. It also normalizes the
    logits of both networks by a LayerNorm and multiplies them by 2.5 before the cross-entropy and KD, in validation
    too: put a fixed ``nn.LayerNorm(classes, eps=1e-7)`` with weight 2.5 behind both classifiers for that.

    Use when: the teacher's last map has more channels than the student's, and one projection of it loses too much.

    Args:
        groups: N of the paper, which counts groups.
        connect: whether the loss has the expansion.

    Raises:
        ValueError: a bad hyperparameter, or layers that cannot be compared.

    Example:
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = NORMLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    groups: Count = 8
    connect: bool = True

    def _connector(self, ours: int, theirs: int) -> nn.Module:
        return conv_bn(ours, self.groups * theirs)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return norm_loss(*self._connected(student, teacher), mask=mask)
