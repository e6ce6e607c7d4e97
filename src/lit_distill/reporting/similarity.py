"""How alike two networks see the same samples: linear CKA of their layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_distill.signals import SignalCapture, parse_references

OUTPUT = "output"
"""What the last row and column of a table of similarities are: the logits."""
_STAGES = ("stages", "blocks", "layers", "features")
_MOST = 8


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> float:
    r"""Linear centred kernel alignment of two representations of the same n samples, 1 for the same up to a rotation.

    With the Gram matrices :math:`K = X X^T, L = Y Y^T`,

    .. math:: CKA = \frac{HSIC(K, L)}{\sqrt{HSIC(K, K)\, HSIC(L, L)}}, \qquad HSIC(K, L) = tr(K H L H)

    where H centres; that is :math:`\lVert Y^T X \rVert_F^2 / (\lVert X^T X \rVert_F \lVert Y^T Y \rVert_F)` of centred
    features (Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019). It is between 0
    and 1, and does not change where either is rotated, scaled or moved. With fewer samples than features that estimate
    is high even for representations that have nothing in common; ``debiased`` uses the unbiased estimator of HSIC (Song
    et al., "Feature Selection via Dependence Maximization", JMLR 2012), which is around 0 there and may be below:

    .. math:: HSIC_1(K, L) = \frac{1}{n (n - 3)} \Bigl[ tr(\tilde K \tilde L)
              + \frac{1^T \tilde K 1 \, 1^T \tilde L 1}{(n - 1)(n - 2)} - \frac{2}{n - 2} 1^T \tilde K \tilde L 1 \Bigr]

    with the diagonals of :math:`\tilde K, \tilde L` zero.

    Args:
        x: features (n, p), a row a sample.
        y: features (n, q), the same samples in the same order.
        debiased: take the unbiased estimator; it needs 4 samples.

    Returns:
        CKA in float64; NaN where a representation is the same for all samples.

    Raises:
        ValueError: not matrices, another number of rows, or too few of them.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> round(linear_cka(x, 3 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])), 6)
        1.0
        >>> round(linear_cka(x, x[:, :1]), 6)
        0.707107
    """
    least = 4 if debiased else 2
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < least:
        raise ValueError(
            f"expected features (n, p) and (n, q) of the same n >= {least} samples, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    # Centred first: that changes neither estimate, and without it the unbiased one is a difference of large numbers.
    centred = [features.double() - features.double().mean(0) for features in (x, y)]
    for one, features in zip(centred, (x, y), strict=True):
        if float(one.square().sum()) <= 1e-20 * float(features.double().square().sum()):
            return math.nan  # the same for all: only rounding is left
    k, l = (one @ one.T for one in centred)  # noqa: E741 - the names of the formula
    estimate = _unbiased_hsic if debiased else _hsic
    scale = estimate(k, k) * estimate(l, l)
    return estimate(k, l) / math.sqrt(scale) if scale > 0 else math.nan


def _hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741
    return float((k * l).sum())


def _unbiased_hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741
    n = len(k)
    k, l = (gram - torch.diag(gram.diagonal()) for gram in (k, l))  # noqa: E741
    sums = k.sum(0), l.sum(0)
    inner = (k * l).sum() + sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums[0] @ sums[1])
    return float(inner) / (n * (n - 3))


def stage_names(network: nn.Module) -> tuple[str, ...]:
    """The stages of a network by the names that a reference takes; none where it is not built of any.

    They are the parts of its ``stages``, ``blocks``, ``layers`` or ``features``, or its ``layer1``, ``layer2``, …; of
    more than eight, eight that are evenly spread, the last among them.

    Example:
        >>> stage_names(nn.ModuleDict({"layer1": nn.Identity(), "layer2": nn.Identity(), "fc": nn.Identity()}))
        ('layer1', 'layer2')
    """
    children = dict(network.named_children())
    found = [name for name in children if re.fullmatch(r"layer\d+", name)]
    for name in _STAGES:
        if not found and isinstance(children.get(name), (nn.ModuleList, nn.Sequential)):
            found = [f"{name}.{part}" for part, _ in children[name].named_children()]
    if len(found) > _MOST:
        found = [found[math.ceil((place + 1) * len(found) / _MOST) - 1] for place in range(_MOST)]
    return tuple(found)


@torch.no_grad()
def stage_features(network: nn.Module, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """One forward pass: what each layer gives, averaged over its positions, and the output, as rows a sample.

    Args:
        network: in eval mode.
        inputs: clips (B, T, 3, H, W) or images (B, 3, H, W).
        layers: names of submodules, as in a reference without the model: ``stages.2``, ``fc:input``.

    Returns:
        For each layer and :data:`OUTPUT` features (B, k) in float32 on the CPU. Frames that a network keeps in its
        batch dimension stay side by side.

    Raises:
        ValueError: an unknown layer, that gives no tensor, or one that is of other samples.

    Example:
        >>> features = stage_features(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten()), torch.zeros(2, 3, 4, 4), ["0"])
        >>> {name: tuple(rows.shape) for name, rows in features.items()}
        {'0': (2, 8), 'output': (2, 128)}
    """
    texts = {layer: f"model.{layer}" for layer in layers} | {OUTPUT: "model"}
    # cloned, since an activation that follows may work in place
    with SignalCapture({"model": network}, parse_references(texts.values()), clone=texts.values()) as signals:
        network(inputs)
        return {layer: _rows(signals[text], len(inputs), layer) for layer, text in texts.items()}


def _rows(features: Tensor, samples: int, layer: str) -> Tensor:
    if features.ndim < 2 or len(features) % samples:
        raise ValueError(f"{layer} gives {tuple(features.shape)} for {samples} samples: expected (samples x frames, …)")
    features = features.float()
    if features.ndim == 3:  # tokens
        features = features.mean(1)
    elif features.ndim > 3:
        features = features.flatten(2).mean(2)
    return features.reshape(samples, -1).cpu()
