"""DIST with feature maps (Huang et al., TPAMI 2025): correlations of channels and samples, beside those of logits."""

from __future__ import annotations

from torch import Tensor

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._normalized import EpsForm, correlation
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, Signal, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import shapes_of
from lit_distill.losses.feature._tokens import as_tokens
from lit_distill.losses.response.dist import dist_loss

__all__ = ["DISTPlusLoss", "dist_plus_loss"]


@full_precision
def dist_plus_loss(
    student: Signal,
    teacher: Signal,
    *,
    mask: Tensor | None = None,
    beta: NonNegative = 1.0,
    gamma: NonNegative = 1.0,
    iota: NonNegative = 1.0,
    kappa: NonNegative = 1.0,
    temperature: Positive = 1.0,
    eps: Positive = 1e-8,
    eps_form: EpsForm = "added",
    added: bool = False,
    gather: bool = False,
) -> Tensor:
    """One minus correlations of logits and of maps; see :class:`DISTPlusLoss`."""
    (s, ours), (t, theirs) = _logits_and_maps(student, teacher)
    logits = dist_loss(
        s, t, mask=mask, beta=beta, gamma=gamma, temperature=temperature, eps=eps, eps_form=eps_form, gather=gather
    )
    a, b = (as_tokens("dist_plus_loss", x, mask).values for x in (ours, theirs))
    weights = None if mask is None else mask.to(a.dtype)
    if gather:
        a, b = gather_with_gradients(a), gather_with_gradients(b)
        weights = None if weights is None else gather_with_gradients(weights)
    by_place = correlation(a, b, dim=2, eps=eps, eps_form="added").mean(dim=1)
    channels = masked_mean(by_place if added else 1 - by_place, weights)
    column = None if weights is None else weights[:, None]
    samples = (1 - correlation(a.sum(dim=2), b.sum(dim=2), dim=0, eps=eps, eps_form=eps_form, weights=column)).mean()
    if weights is not None:
        samples = samples * (weights.sum() > 0)
    return logits + iota * channels + kappa * samples


def _logits_and_maps(student: Signal, teacher: Signal) -> tuple[list[Tensor], list[Tensor]]:
    ours, theirs = tensors_of(student), tensors_of(teacher)
    shapes = [[tuple(x.shape) for x in side] for side in (ours, theirs)]
    if [len(side) for side in shapes] != [2, 2] or shapes[0] != shapes[1]:
        raise ValueError(
            "dist_plus_loss expects logits (B, C) and a feature map of each network, of the same shapes "
            f"(pair: [[Student, Student.layer4], [Teacher, Teacher.layer4]]): {shapes_of(student, teacher)}"
        )
    return ours, theirs


@hyperparameters
class DISTPlusLoss(Loss):
    r"""DIST between logits, and the same between feature maps: of their channels, and of samples at each place.

    With ρ Pearson's correlation, F the maps, N samples and HW places:

    .. math:: L = L_{\mathrm{DIST}} + ι \left(1 - \frac{1}{N\,HW} \sum_{i, p} ρ(F^s_{i \cdot p}, F^t_{i \cdot p})\right)
            + κ \left(1 - \frac{1}{HW} \sum_p ρ\Big(\sum_c F^s_{\cdot c p}, \sum_c F^t_{\cdot c p}\Big)\right)

    Correlations over samples depend on the batch: under DDP ``gather`` makes them those of the global batch.

    Signals: two a network, logits (B, C) and a map (B, C, H, W) or (B, C, T, H, W) or tokens (B, N, C), of the same
    shapes on both sides; a connector that brings the channels together belongs to the model. A mask has (B,).

    Paper: Huang et al., "Knowledge Distillation from a Stronger Teacher: DIST+", TPAMI 2025. torchdistill's, which has
    weight 2 with β = γ = 2, is ``eps_form="floor"``. Its program adds the correlation of channels instead of
    subtracting it, so that minimizing it drives the features apart: ``added=True`` is that form.

    Use when: as DIST, where a layer of student and teacher has equal channels and size.

    Args:
        beta: β of DIST, the weight of rows of probabilities.
        gamma: γ of DIST, the weight of columns.
        iota: ι, the weight of the correlation of channels.
        kappa: κ, the weight of the correlation of samples.
        temperature: T of DIST.
        eps: a small number against division by zero.
        eps_form: as in DIST, for all but the correlation of channels, where it is added.
        added: the published slip, +ρ for 1 - ρ of the channels.
        gather: take the samples of all processes, with gradients; every process then has the same loss.

    Raises:
        ValueError: a bad hyperparameter, shapes that differ, NaN or infinite values.

    Example:
        >>> import torch
        >>> signals = [torch.randn(4, 5), torch.randn(4, 8, 2, 2)]
        >>> DISTPlusLoss()(signals, signals).item() < 1e-5
        True
    """

    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    iota: NonNegative = 1.0
    kappa: NonNegative = 1.0
    temperature: Positive = 1.0
    eps: Positive = 1e-8
    eps_form: EpsForm = "added"
    added: bool = False
    gather: bool = False

    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of logits and a map of each network: a scalar."""
        return dist_plus_loss(student, teacher, mask=mask, **self.hyperparameters)
