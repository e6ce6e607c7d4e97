"""Weights of terms that follow from the training itself: learned uncertainties, or equal pull by gradient norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill.gradients import gradients_of, norm_of, require_whole_parameters

_PATIENCE = 10  # measurements: the loss scale of fp16 has come down to what the total bears by then


class Balancer(nn.Module, ABC):
    """Turns the weights that the terms are set to into those of a training step.

    A :class:`lit_distill.LossComposer` owns it. What it has learned are parameters and buffers, so that checkpoints
    hold it and a resumed run goes on with it. Outside of training the terms have the weights that they are set to.

    Args:
        max_change: a weight stays within ``[w / max_change, w * max_change]`` of the w that it is set to; above 1.

    Raises:
        ValueError: ``max_change`` is not above 1.
    """

    __call__: Callable[..., tuple[Tensor, Tensor | None]]

    def __init__(self, *, max_change: float = 100.0) -> None:
        super().__init__()
        if not 1 < max_change < math.inf:
            raise ValueError(f"{type(self).__name__}: max_change is a finite number above 1, got {max_change!r}")
        self.max_change = float(max_change)
        self.terms: tuple[str, ...] = ()

    def build(self, terms: Sequence[str]) -> None:
        """Make what is learned, for terms of these names; the composer calls it.

        Raises:
            ValueError: it balances other terms already.
        """
        if self.terms:
            raise ValueError(f"this {type(self).__name__} balances {list(self.terms)} already: make one a composer")
        self.terms = tuple(terms)
        self._build(len(self.terms))

    @abstractmethod
    def _build(self, count: int) -> None:
        """Make parameters and buffers for so many terms."""

    @abstractmethod
    def forward(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights of this step.

        Args:
            weights: (terms,) as the terms are set to, at least 0.

        Returns:
            The balanced weights (terms,), and what the total gets besides: a scalar, or None.
        """

    def check(self, trainer: Trainer) -> None:
        """Raise ValueError if it cannot work under this trainer; DistillModule asks before training."""

    def is_due(self, step: int) -> bool:
        """Whether it wants to :meth:`observe` the gradients of this optimizer step, counted from 0."""
        return False

    def observe(
        self,
        terms: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        weights: Tensor | None = None,
        scale: float = 1.0,
        mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Look at the terms' gradients, between a step's losses and its backward pass.

        Args:
            terms: every term before its weight, with its graph.
            parameters: of the student, which the terms share; of all candidates, where the student is one of several.
            weights: (terms,) that the total multiplies the terms by, so that half precision holds their gradients as
                it holds the total's; 1 where not given.
            scale: the loss scale of fp16 training.
            mean_over_ranks: gives all ranks the same tensor.
        """

    def extra_repr(self) -> str:
        """The limit."""
        return f"max_change={self.max_change:g}"


class Uncertainty(Balancer):
    r"""Learned uncertainties (Kendall, Gal & Cipolla, CVPR 2018): a log-variance s a term, trained with the networks.

    .. math:: L = \sum_i w_i \left( e^{-s_i} L_i + \tfrac12 s_i \right), \qquad s_i = \log \sigma_i^2

    which with :math:`w_i = 1` is the paper's form for classification (its form for regression differs by a constant
    added to s). A term that stays large gets a smaller weight: for fixed losses the minimum is at
    :math:`e^{-s_i} = 1 / (2 L_i)`, where every weighted term is :math:`w_i / 2`. So the weights that are set are
    shares, schedules included, and s = 0 at the start means that training begins with them.

    The log-variances are in the optimizer, in a group of their own without weight decay. The paper has no limit; here
    ``max_change`` keeps a term whose loss goes to 0 (a student that reaches its teacher) from outgrowing all others.
    The logged ``train/loss`` is the weighted terms alone, without :math:`\tfrac12 w_i s_i`.

    Args:
        max_change: :math:`|s_i| \le \log` of it; see :class:`Balancer`.

    Example:
        >>> balance = Uncertainty()
        >>> balance.build(["ce", "kd"])
        >>> weights, penalty = balance(torch.tensor([1.0, 0.5]))
        >>> weights.tolist(), penalty.item()
        ([1.0, 0.5], 0.0)
    """

    log_variance: nn.Parameter

    def _build(self, count: int) -> None:
        self.log_variance = nn.Parameter(torch.zeros(count))

    def forward(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and penalty, both with the graph of the log-variances."""
        limit = math.log(self.max_change)
        with torch.no_grad():  # a projection after each step: a clamp within the graph would never let go again
            self.log_variance.clamp_(-limit, limit)
        s = self.log_variance.to(weights.dtype)
        return weights * torch.exp(-s), 0.5 * torch.dot(weights, s)


class GradientNorm(Balancer):
    r"""Each term pulls at the student as hard as its set weight says, whatever the size of its gradient.

    With :math:`G_i` the norm of the gradient of :math:`L_i` (before its weight) over the student's parameters, a moving
    average of its logarithm, and shares :math:`p_i = w_i / \sum_j w_j` over the terms that reach the student:

    .. math:: \lambda_i = w_i \, \bar G / G_i, \qquad \log \bar G = \sum_i p_i \log G_i

    so that :math:`\lambda_i G_i = w_i \bar G`: the pulls are to each other as the set weights are, and the mean change
    of the weights, in logarithms, is none. That is the balance in which GradNorm (Chen et al., ICML 2018) with α = 0
    comes to rest, in closed form: no second optimizer for the weights; and the mean of the logarithms is kept instead
    of the sum of the weights, which a term with a vanishing gradient would take for itself. GradNorm's training rates
    (α > 0) are left out.

    Measured at every ``every_n_steps``-th optimizer step, on its last batch where gradients are accumulated; over ranks
    as the root of the mean square. The weights that follow are those from the next step on, the first step has the set
    ones. A term that does not reach the student, or whose gradient is 0 or not finite, keeps what it has; a warning
    names one that reaches the student and was like that in all of the first 10 measurements. It costs a backward pass
    a term at the measured steps. With ``student="best"`` the parameters are those of all candidates.

    Args:
        every_n_steps: optimizer steps between two measurements, at least 1.
        momentum: of the moving average, from 0 (the last measurement alone) to below 1.
        max_change: see :class:`Balancer`.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> balance = GradientNorm()
        >>> balance.build(["ce", "kd"])
        >>> place = torch.zeros(1, requires_grad=True)
        >>> balance.observe([2 * place.sum(), 32 * place.sum()], [place])
        >>> balance(torch.ones(2))[0].tolist()  # 2 * 4 = 32 * 0.25 = 8, the geometric mean
        [4.0, 0.25]
    """

    log_norm: Tensor
    seen: Tensor

    def __init__(self, *, every_n_steps: int = 10, momentum: float = 0.9, max_change: float = 100.0) -> None:
        super().__init__(max_change=max_change)
        if isinstance(every_n_steps, bool) or every_n_steps < 1:
            raise ValueError(f"GradientNorm: every_n_steps is a number of optimizer steps from 1, got {every_n_steps}")
        if not 0 <= momentum < 1:
            raise ValueError(f"GradientNorm: momentum is from 0 to below 1, got {momentum!r}")
        self.every_n_steps = every_n_steps
        self.momentum = momentum
        self._measured = 0
        self._reached: set[str] = set()

    def _build(self, count: int) -> None:
        self.register_buffer("log_norm", torch.zeros(count))  # the moving average, which begins at 0,
        self.register_buffer("seen", torch.zeros(count))  # and the sum of its coefficients, by which it is divided

    def check(self, trainer: Trainer) -> None:
        """Raise ValueError if the strategy shards parameters."""
        require_whole_parameters(trainer, type(self).__name__)

    def is_due(self, step: int) -> bool:
        """Every ``every_n_steps``, from the first step on."""
        return step % self.every_n_steps == 0

    @torch.no_grad()
    def forward(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """The balanced weights, from what was observed so far; no penalty."""
        seen = (self.seen > 0) & (weights > 0)
        dtype = torch.promote_types(self.log_norm.dtype, torch.float32)
        log_norm = self.log_norm.to(dtype) / self.seen.to(dtype).where(seen, 1.0)
        shares = weights.to(dtype) * seen
        mean = torch.dot(shares, log_norm) / shares.sum().clamp_min(torch.finfo(torch.float32).tiny)
        limit = math.log(self.max_change)
        change = (mean - log_norm).clamp(-limit, limit).exp().where(seen, 1.0)
        return weights * change.to(weights.dtype), None

    def observe(
        self,
        terms: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        weights: Tensor | None = None,
        scale: float = 1.0,
        mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Take the terms' gradient norms into the moving average."""
        dtype = torch.promote_types(self.log_norm.dtype, torch.float32)  # the buffers of precision=16-true are half
        found = []
        factors = [1.0] * len(terms) if weights is None else [weight or 1.0 for weight in weights.tolist()]
        for name, term, factor in zip(self.terms, terms, factors, strict=True):
            gradients = gradients_of(term, parameters, scale=scale * factor)
            found.append(norm_of(gradients, scale=abs(scale * factor)).to(self.log_norm.device, dtype))
            if any(gradient is not None for gradient in gradients):
                self._reached.add(name)
        norms = torch.stack(found)
        if mean_over_ranks is not None:
            norms = mean_over_ranks(norms.square()).sqrt()
        log_norm = norms.log()
        usable = log_norm.isfinite()  # not of 0, NaN or infinity
        keep = self.momentum
        self.log_norm.copy_((keep * self.log_norm.to(dtype) + (1 - keep) * log_norm).where(usable, self.log_norm))
        self.seen.copy_((keep * self.seen.to(dtype) + (1 - keep)).where(usable, self.seen))
        self._measured += 1
        if self._measured == _PATIENCE:
            self._tell_of_idle()

    def _tell_of_idle(self) -> None:
        seen = dict(zip(self.terms, self.seen.tolist(), strict=True))
        if idle := [name for name in self.terms if name in self._reached and not seen[name]]:
            rank_zero_warn(
                f"GradientNorm: the gradients of {idle} over the student were 0 or not finite in all of the first "
                f"{_PATIENCE} measurements, so these terms have the weights that they are set to: look at their losses "
                "and signals, or train in precision=bf16-mixed or 32-true where half precision overflows"
            )

    def extra_repr(self) -> str:
        """Its settings."""
        return f"every_n_steps={self.every_n_steps}, momentum={self.momentum:g}, {super().extra_repr()}"
