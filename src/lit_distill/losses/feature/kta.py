"""Knowledge translation and adaptation (He et al., CVPR 2019): normalized features in the teacher's compact form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Signal, hyperparameters
from lit_distill.losses.feature._maps import ConnectedMapsLoss, conv_bn
from lit_distill.losses.feature._tokens import token_pairs

__all__ = ["KTALoss", "kta_loss"]


@full_precision
def kta_loss(student: Signal, teacher: Signal, *, mask: Tensor | None = None, p: Count = 1, q: Count = 2) -> Tensor:
    """The p-norm between features of q-norm 1, summed over layers; see :class:`KTALoss`.

    Args:
        student: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C); or a list of layers.
        teacher: the same shapes.
        mask: which places count: (B,), (B, H, W) or (B, N).
        p: of the norm of the difference.
        q: of the norm that each sample's features are divided by.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> round(kta_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0]])).item(), 4)  # |0.6 - 1| + 0.8
        1.2
    """
    layers = []
    for ours, theirs in token_pairs("kta_loss", student, teacher, mask, alike=True):
        samples, places = ours.weights()
        weights = places[:, :, None]
        difference = (_normalized(ours.values, weights, q) - _normalized(theirs.values, weights, q)) * weights ** (
            1 / p
        )
        distance: Tensor = torch.linalg.vector_norm(difference.flatten(1), ord=p, dim=1)
        layers.append(masked_mean(distance, samples))
    return torch.stack(layers).sum()


def _normalized(values: Tensor, weights: Tensor, q: int) -> Tensor:
    """Samples of q-norm 1; a zero sample stays zero."""
    largest = values.detach().abs().amax(dim=(1, 2), keepdim=True)
    scaled = values / largest.masked_fill(largest == 0, 1)
    length: Tensor = torch.linalg.vector_norm((scaled * weights ** (1 / q)).flatten(1), ord=q, dim=1)
    result: Tensor = scaled / length.masked_fill(length == 0, 1)[:, None, None]
    return result


@hyperparameters
class KTALoss(ConnectedMapsLoss):
    r"""Knowledge translation and adaptation: the student learns what an autoencoder made of the teacher's features.

    With a the adapted features of the student and e those of the teacher, or what its encoder makes of them:

    .. math:: L = \frac1N \sum_n \left\| \frac{a_n}{\|a_n\|_q} - \frac{e_n}{\|e_n\|_q} \right\|_p

    The norms run over channels and positions. A mean over samples, a sum over layers; torchdistill divides by the
    number D of features of a sample as well where p = 1. A sample of zeros stays zero and gets no amplified gradient.
    An adapter, a 3x3 convolution without bias, BatchNorm and ReLU, brings the student to the teacher's channels; it is
    sized from an example batch, trained and saved with the run.

    Signals: feature maps (N, C, H, W) of one size, one a network or a list. With ``connect=False`` tokens (B, N, C) and
    vectors (B, C) too, of equal channels. An encoder that was trained to reconstruct the teacher's map is a named model
    whose output, or part, is the second signal.

    Paper: He et al., "Knowledge Adaptation for Efficient Semantic Segmentation", CVPR 2019, arXiv:1903.04688. Matches
    torchdistill: p = 1, q = 2 at weight 50 / D beside the affinity (AffinityLoss) and the cross-entropy, each of weight
    1, on what a 3x3 convolution makes of the teacher's map of logits, with half its channels.

    Use when: a segmentation network learns from one that keeps other details at other strides.

    Args:
        p: a whole number from 1.
        q: a whole number from 1.
        connect: whether there is an adapter.

    Raises:
        ValueError: a bad hyperparameter, or layers that cannot be compared.

    Example:
        >>> from lit_distill.losses import Example
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> loss = KTALoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    p: Count = 1
    q: Count = 2
    connect: bool = True

    def _connector(self, ours: int, theirs: int) -> nn.Module:
        return conv_bn(ours, theirs, 3, relu=True)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return kta_loss(*self._connected(student, teacher), mask=mask, p=self.p, q=self.q)
