"""Deep mutual learning (Zhang et al., CVPR 2018), in its authors' one-sided and PaddleVideo's symmetric form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import NonNegative, checked
from lit_distill.losses._numerics import can_look, checks_values, full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.response._logits import logit_rows

__all__ = ["DMLLoss", "dml_loss"]

Activation: TypeAlias = Literal["softmax", "sigmoid"] | None
Form: TypeAlias = Literal["symmetric", "one_sided"]

_LOG_ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": functools.partial(F.log_softmax, dim=-1),
    "sigmoid": F.logsigmoid,
}
_EPS_OF_FLOAT16 = 2.0**-15  # with probabilities given, gradients reach 1/eps, and float16 ends at 2^16
PUBLISHED_EPS = {"symmetric": 1e-12, "one_sided": 1e-8}


@checked
def dml_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    activation: Activation = "softmax",
    mutual: Form = "symmetric",
    detach_peer: bool = False,
    eps: NonNegative | None = None,
    sum_over_classes: bool = False,
    class_dim: int | None = None,
) -> Tensor:
    """Divergence between two peers' class probabilities; see :class:`DMLLoss`."""
    eps = _eps("dml_loss", activation, mutual, eps)
    if activation is None and torch.float16 in (student.dtype, teacher.dtype):
        eps = max(eps, _EPS_OF_FLOAT16)
    return _dml_loss(student, teacher, mask, activation, mutual, detach_peer, eps, sum_over_classes, class_dim)


@full_precision
def _dml_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    activation: Activation,
    mutual: Form,
    detach_peer: bool,
    eps: float,
    sum_over_classes: bool,
    class_dim: int | None,
) -> Tensor:
    rows = logit_rows("dml_loss", student, teacher, class_dim, mask)
    student, teacher = rows.student, rows.teacher.detach() if detach_peer else rows.teacher
    if activation is None:
        cost = _cost_of_probabilities(student, teacher, mutual, eps)
    else:
        log_of = _LOG_ACTIVATION[activation]
        cost = cost_of_logarithms(log_of(student), log_of(teacher), mutual, eps)
    return rows.mean(cost.sum(dim=-1)) * (student.shape[-1] if sum_over_classes else 1)


def cost_of_logarithms(log_s: Tensor, log_t: Tensor, mutual: Form, eps: float) -> Tensor:
    """The cost of each class from log probabilities: exact where exp underflows, gradients bounded whatever eps is."""
    if mutual == "symmetric":
        return (log_s.exp() - log_t.exp()) * (_log_plus(log_s, eps) - _log_plus(log_t, eps)) / 2
    return log_t.exp() * _log_plus(log_t - _log_plus(log_s, eps), eps)


def _log_plus(log_value: Tensor, eps: float) -> Tensor:
    """log(exp(log_value) + eps)."""
    return log_value if eps == 0 else torch.logaddexp(log_value, log_value.new_full((), math.log(eps)))


def _cost_of_probabilities(p_s: Tensor, p_t: Tensor, mutual: Form, eps: float) -> Tensor:
    """The same from probabilities as they come, which may be exactly 0."""
    for p in (p_s, p_t):
        if can_look(p):
            low, high = (x.item() for x in p.aminmax())
            if low < 0 or (high == math.inf and checks_values()):
                raise ValueError(
                    f"dml_loss with activation=None expects probabilities and no NaN, got {low:.4g} to {high:.4g} "
                    f"in a signal of {tuple(p.shape)}: use activation='softmax' for logits"
                )
    if mutual == "symmetric":
        return (p_s - p_t) * ((p_s + eps).log() - (p_t + eps).log()) / 2
    return p_t * (eps + p_t / (p_s + eps)).log()


def _eps(name: str, activation: Activation, mutual: Form, eps: float | None) -> float:
    eps = PUBLISHED_EPS[mutual] if eps is None else eps
    if activation is None and eps == 0:
        raise ValueError(f"{name}: activation=None needs an eps above 0, as a probability may be exactly 0")
    return eps


@hyperparameters
class DMLLoss(Loss):
    r"""Two networks train together and match each other's class probabilities.

    With p = act(student), q = act(teacher), ε = ``eps``, classes c and N samples:

    .. math::
        \begin{aligned}
        L_\text{symmetric} &= \frac{1}{N}\sum_i \sum_c
            \tfrac12 (p_{ic} - q_{ic}) \left(\log(p_{ic} + ε) - \log(q_{ic} + ε)\right) \\
        L_\text{one sided} &= \frac{1}{N}\sum_i \sum_c q_{ic} \log\left(ε + \frac{q_{ic}}{p_{ic} + ε}\right)
        \end{aligned}

    Summed over classes, averaged over samples and any dimensions between; no temperature. ``symmetric`` is half the
    sum of both KL divergences and teaches both networks through one term; it is what PaddleVideo and PaddleClas
    compute, and the default. ``one_sided`` is KL(teacher || student), what the paper's authors compute: use two
    terms, ``(Student, Teacher)`` and ``(Teacher, Student)``, each of which takes its peer as constant.

    Signals: student logits and peer logits of the same shape (B, C) or (B, T, C), or any with ``class_dim``.

    ``teaches_both`` says whether a LossComposer lets gradients reach both signals. It is true for ``symmetric`` unless
    ``detach_peer``; a one-sided term has its second signal detached by the composer.

    Everything is computed from logarithms, so that an ε below the smallest half-precision number does no harm. A
    positive ε bounds the loss (at log(1/ε) a sample, about 27.6 or 18.4) and with it lets the gradient of a class
    fade out once its probability falls far below ε: that is the published behaviour. ``eps=0`` is the exact
    divergence, whose gradient never fades.

    Paper: Zhang et al., "Deep Mutual Learning", CVPR 2018. Symmetric: PaddleVideo's DistillationDMLLoss.

    Use when: no trained teacher exists, or two networks are trained at once anyway: in the paper both end better than
    alone, and the larger one need not be ready first. It is the method that PP-TSMv2 was published with.

    Args:
        activation: what makes probabilities of the signals. ``sigmoid`` treats each class on its own, with the
            published p log(p/q) alone and no (1 - p) part: use it with ``symmetric``, as one sided it only ever raises
            the student's probabilities. None takes the signals as probabilities; gradients then reach 1/ε where one
            is 0, so for float16 signals ε is at least 2^-15.
        mutual: ``symmetric`` or ``one_sided``.
        detach_peer: no gradient to the second signal, whoever calls the loss.
        eps: ε, at least 0; None is the published 1e-12 for ``symmetric`` and 1e-8 for ``one_sided``.
        sum_over_classes: multiply by the number of classes, PaddleClas' ``sum_across_class_dim``.
        class_dim: where the classes stand, needed for four and more dimensions.

    Raises:
        ValueError: an unknown option, shapes that differ, NaN or infinite logits, negative probabilities.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[3.0, 0.0, -3.0]])
        >>> round(DMLLoss()(student, teacher).item(), 4)
        0.3728
        >>> round(DMLLoss(mutual="one_sided")(student, teacher).item(), 4)
        0.2526
        >>> DMLLoss().teaches_both, DMLLoss(mutual="one_sided").teaches_both
        (True, False)
    """

    expects_logits = True

    activation: Activation = "softmax"
    mutual: Form = "symmetric"
    detach_peer: bool = False
    eps: NonNegative | None = None
    sum_over_classes: bool = False
    class_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.eps = _eps("DMLLoss", self.activation, self.mutual, self.eps)
        self.teaches_both = self.mutual == "symmetric" and not self.detach_peer

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss of student logits against the peer's: a scalar."""
        return dml_loss(student, teacher, mask=mask, **self.hyperparameters)
