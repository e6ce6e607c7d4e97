"""The gradient of each loss term by itself: how hard it pulls, and whether two of them pull the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from lit_distill._lightning import gradient_scaler

_CHUNK = 1 << 20


def gradients_of(value: Tensor, of: Iterable[Tensor], *, scale: float = 1.0) -> list[Tensor | None]:
    """Gradients of one number, of what there is a graph to; the graph stays for a later ``backward``.

    Nothing is accumulated and no random number is drawn, so the backward pass that follows is what it would have been.

    Args:
        value: a scalar.
        of: tensors that it may depend on.
        scale: the value is multiplied by it first, against underflow and overflow in half precision; so are the
            gradients.

    Returns:
        One a tensor, None where the value does not depend on it.

    Example:
        >>> a, b = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
        >>> gradients_of(a * a, [a, b])
        [tensor(6.), None]
    """
    of = list(of)
    wanted = [tensor for tensor in of if tensor.requires_grad]
    if not value.requires_grad or not wanted:
        return [None] * len(of)
    scaled = value if scale == 1.0 else value * scale
    gradients = torch.autograd.grad(scaled, wanted, retain_graph=True, allow_unused=True)
    found = dict(zip(map(id, wanted), gradients, strict=True))
    return [found.get(id(tensor)) for tensor in of]


def norm_of(gradients: Iterable[Tensor | None], *, scale: float = 1.0) -> Tensor:
    """The Euclidean norm over several gradients, in float64 where the device has it.

    Args:
        gradients: of any shapes; None is left out.
        scale: that they were made with; the norm is divided by it.

    Example:
        >>> norm_of([torch.tensor([3.0]), None, torch.tensor([[4.0]])])
        tensor(5., dtype=torch.float64)
    """
    norms = [torch.linalg.vector_norm(g, dtype=_widest(g.device)) for g in gradients if g is not None]
    return torch.stack(norms).norm() / scale if norms else torch.zeros(())


def flattened(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """The gradients of ``like`` as one vector, at least in float32, zeros where there is none."""
    dtype = torch.promote_types(like[0].dtype, torch.float32)
    parts = [
        (torch.zeros_like(tensor) if gradient is None else gradient).to(dtype).reshape(-1)
        for gradient, tensor in zip(gradients, like, strict=True)
    ]
    return torch.cat(parts)


def gram_matrix(gradients: Sequence[Tensor]) -> Tensor:
    """All scalar products of n flat gradients (P,) each, in float64 where the device has it.

    Returns:
        (n, n): squared norms on the diagonal.

    Example:
        >>> gram_matrix([torch.tensor([3.0, 4.0]), torch.tensor([-4.0, 3.0])])
        tensor([[25.,  0.],
                [ 0., 25.]], dtype=torch.float64)
    """
    dtype = _widest(gradients[0].device)
    total = torch.zeros(len(gradients), len(gradients), dtype=dtype, device=gradients[0].device)
    for start in range(0, gradients[0].numel(), _CHUNK):
        rows = torch.stack([gradient[start : start + _CHUNK] for gradient in gradients]).to(dtype)
        total += rows @ rows.T
    return total


def require_whole_parameters(trainer: Trainer, who: str) -> None:
    """Raise where devices have parts of the parameters, so that no gradient that ``who`` wants is whole.

    Raises:
        ValueError: a strategy that shards parameters.
    """
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(
            f"{who} needs whole parameters on each device, {type(trainer.strategy).__name__} shards them: use a single "
            "device or DDP, or leave it out"
        )


def loss_scale(trainer: Trainer) -> float:
    """What the loss is multiplied by before its backward pass: 1, but under fp16's gradient scaler."""
    scaler = gradient_scaler(trainer)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
