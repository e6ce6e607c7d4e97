"""ViTKD (Yang et al., 2022): shallow layers of a transformer are copied, the deep one is generated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import NonNegative, Positive
from lit_distill.losses._masks import masked_mean
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters
from lit_distill.losses.feature._maps import apply_layer
from lit_distill.losses.feature._tokens import Tokens, as_map, token_pairs

__all__ = ["ViTKDLoss", "vitkd_loss"]


@full_precision
def vitkd_loss(
    student: Signal,
    teacher: Signal,
    hidden: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: NonNegative = 3e-5,
    beta: NonNegative = 3e-6,
    ratio: Positive = 0.5,
) -> Tensor:
    """Squared error of shallow layers, and of what was generated in hidden places; see :class:`ViTKDLoss`.

    Args:
        student: tokens (B, N, C) of the shallow layers, and last the generated ones.
        teacher: as many, of the same shapes.
        hidden: which tokens of the last layer had to be generated, (B, N), 1 or 0.
        mask: which tokens count: (B,) or (B, N).
        alpha: weight of the shallow layers.
        beta: weight of the last one, divided by ``ratio``.
        ratio: share of hidden tokens.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes that differ, or a result that is not finite.

    Example:
        >>> tokens, hidden = torch.zeros(1, 4, 2), torch.tensor([[1, 1, 0, 0]])
        >>> vitkd_loss([tokens, tokens], [tokens + 1, tokens + 1], hidden, alpha=1.0, beta=1.0)  # 8 + 4 / 0.5
        tensor(16.)
    """
    *shallow, deep = [_squares(*pair) for pair in token_pairs("vitkd_loss", student, teacher, mask, alike=True)]
    errors = [alpha * masked_mean(error.sum(dim=1), samples) for error, samples in shallow]
    error, samples = deep
    return torch.stack([*errors, beta / ratio * masked_mean((error * hidden).sum(dim=1), samples)]).sum()


def _squares(ours: Tokens, theirs: Tokens) -> tuple[Tensor, Tensor]:
    """The squared error of each token (B, N), and the weights of samples."""
    samples, places = ours.weights()
    return (ours.values - theirs.values).square().sum(dim=2) * places, samples


@hyperparameters
class ViTKDLoss(SizedLoss):
    r"""ViTKD: a transformer's first layers are copied; of its last, hidden tokens are generated from the others.

    With s, t the tokens of both networks, P a linear layer and G the generation, on the set H of hidden tokens:

    .. math:: L = \frac{1}{N} \sum_n \left( α \sum_{l \in \text{shallow}} \left\| P_l(s_l) - t_l \right\|^2
        + \frac{β}{λ} \sum_{p \in H} \left\| G(P(s))_p - t_p \right\|^2 \right)

    A sum over tokens, channels and layers, a mean over samples. Of the last layer a random share λ of tokens is
    replaced by a learned one; two 3x3 convolutions with a ReLU between generate them on the grid. P is there where
    widths differ. The layers are sized from an example batch, trained and saved with the run. In eval mode the hidden
    tokens come from a separate generator with a fixed seed, as in MGDLoss.

    Signals: a list of layers of each network, the last to be generated: tokens (B, N, C) that fill a square once
    ``skip`` leading ones are left out, or maps (B, C, H, W). A mask has (B,) or (B, N).

    Paper: Yang et al., "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", 2022, arXiv:2209.02432.
    Matches its authors' program (cls_KD), with the first two layers and the last.

    Use when: both networks are vision transformers with the same patches, such as DeiT.

    Args:
        alpha: α, of the shallow layers.
        beta: β, of the last layer.
        ratio: λ, the share of hidden tokens, above 0 and at most 1.
        skip: leading tokens to leave out: class tokens, registers.

    Raises:
        ValueError: a bad hyperparameter, or layers that cannot be compared.

    Example:
        >>> student, teacher = [torch.randn(2, 9, 8)] * 3, [torch.randn(2, 9, 16)] * 3
        >>> loss = ViTKDLoss()
        >>> loss.build(Example(student, teacher))
        >>> loss(student, teacher).shape
        torch.Size([])
    """

    alpha: NonNegative = 3e-5
    beta: NonNegative = 3e-6
    ratio: Positive = 0.5
    skip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio > 1:
            raise ValueError(f"ViTKDLoss: ratio must be a number above 0 and at most 1, got {self.ratio!r}")
        self.projectors = nn.ModuleList()
        self.token: nn.Parameter | None = None
        self.generation = nn.Sequential()
        self._widths: list[tuple[int, int]] | None = None

    @property
    def is_built(self) -> bool:
        """Whether the layers exist."""
        return self._widths is not None

    def build(self, example: Example) -> None:
        """Create the layers.

        Raises:
            ValueError: layers that cannot be paired, or the loss was built for other widths.
        """
        pairs = token_pairs("ViTKDLoss", example.student, example.teacher, skip=self.skip)
        widths = [(s.values.shape[2], t.values.shape[2]) for s, t in pairs]
        if self._widths not in (None, widths):
            raise ValueError(f"ViTKDLoss was built for (student, teacher) widths {self._widths}, got {widths}")
        if self._widths is None:
            self.projectors.extend(
                nn.Identity() if ours == theirs else nn.Linear(ours, theirs) for ours, theirs in widths
            )
            wide = widths[-1][1]
            self.token = nn.Parameter(torch.zeros(wide))
            self.generation = nn.Sequential(
                nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1)
            )
            self._widths = widths
            self.to(pairs[0][0].values.device)

    @full_precision
    def forward(self, student: Signal, teacher: Signal, *, mask: Tensor | None = None) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        self.require_built()
        assert self.token is not None
        pairs = token_pairs("ViTKDLoss", student, teacher, mask, skip=self.skip)
        projected = [apply_layer(layer, s.values) for layer, (s, _) in zip(self.projectors, pairs, strict=True)]
        last, size = projected[-1], pairs[-1][0].size
        hidden = self._draw_hidden(last)
        given = torch.where(hidden[..., None], self.token.to(last.dtype), last)
        projected[-1] = apply_layer(self.generation, as_map("ViTKDLoss", given, size)).flatten(2).mT
        if mask is not None and mask.ndim > 1:
            mask = mask.flatten(1)[:, -last.shape[1] :]
        options = {"alpha": self.alpha, "beta": self.beta, "ratio": self.ratio}
        return vitkd_loss(projected, [t.values for _, t in pairs], hidden, mask=mask, **options)

    def _draw_hidden(self, tokens: Tensor) -> Tensor:
        """Which tokens are hidden, (B, N): a share of each sample."""
        batch, count = tokens.shape[:2]
        generator = None if self.training else torch.Generator(tokens.device).manual_seed(0)
        drawn = torch.rand(batch, count, device=tokens.device, generator=generator)
        return self._hidden_by(drawn)

    def _hidden_by(self, drawn: Tensor) -> Tensor:
        kept = int(drawn.shape[1] * (1 - self.ratio))
        return drawn.argsort(dim=1, stable=True).argsort(dim=1) >= kept
