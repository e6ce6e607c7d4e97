"""What a network is: the hash of its state, and the weights files that it came from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lit_distill.models.state_files import require_plain


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """The sha256 over names, dtypes, shapes and bytes of a state dict, in the order of its names.

    A tensor that is sharded over processes (DTensor) counts as the whole, so that each process must call it; one of a
    subclass that is made of tensors, such as quantized weights, counts as these.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        for path, part in plain_parts(name, state[name].detach()):
            tensor = part.cpu().contiguous()
            digest.update(f"{path}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def plain_parts(name: str, tensor: Tensor, *, whole: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The tensors of no subclass that a tensor is made of, each with a name.

    Args:
        name: of the tensor.
        tensor: any.
        whole: of one that is sharded over processes all of it, which each process must ask for, not its part here.

    Example:
        >>> [name for name, _ in plain_parts("weight", torch.zeros(2))]
        ['weight']
    """
    gathered = getattr(tensor, "full_tensor", None) if whole else None
    if gathered is not None:
        yield from plain_parts(name, gathered())
    elif is_traceable_wrapper_subclass(tensor):
        for inner in tensor.__tensor_flatten__()[0]:
            part = getattr(tensor, inner)
            if isinstance(part, Tensor):  # and not the mesh of a sharded one
                yield from plain_parts(f"{name}.{inner}", part, whole=whole)
    else:
        yield name, tensor


def state_of(checkpoint: Mapping[str, Any], model: str) -> dict[str, Tensor]:
    """The state of one named model in a checkpoint, under the model's own keys.

    Raises:
        ValueError: the checkpoint holds no such model, or what a network cannot simply copy.
    """
    prefix = f"models.{model}."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if not state:
        names = sorted({key.split(".")[1] for key in checkpoint["state_dict"] if key.startswith("models.")})
        raise ValueError(f"the checkpoint holds no model {model!r}; it holds {names}")
    require_plain(state, "the checkpoint")
    return state


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all tensors of a network of this version, from a file that keeps nothing but tensors.

    The versions that modules note beside their tensors are those of the network: without any, MNASNet refuses them.

    Raises:
        RuntimeError: a tensor is missing, is one too many, or has another shape.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> fill(network, {"weight": torch.zeros(1, 2), "bias": torch.ones(1)})
        >>> network(torch.ones(2)).tolist()
        [1.0]
    """
    versions = network.state_dict()._metadata  # type: ignore[attr-defined]
    complete = OrderedDict(state)
    complete._metadata = versions  # type: ignore[attr-defined]
    network.load_state_dict(complete, strict=True)


def loaded_from(model: nn.Module) -> dict[str, Any]:
    """Path and sha256 of the weights file that a model was initialised from, where there was one.

    Of a model whose parts came from files of their own, such as an ensemble's members, also each ``parts`` one's.
    """
    found = {
        name: {"loaded_from": str(report.path), "loaded_sha256": str(report.sha256)}
        for name, report in load_reports(model).items()
    }
    if not found or "" in found:
        return dict(found.get("", {}))
    files = ", ".join(f"{name} from {part['loaded_from']}" for name, part in found.items())
    return {"loaded_from": files, "parts": found}


def load_reports(model: nn.Module) -> dict[str, Any]:
    """The report of the weights file that a model was loaded from, by '', else those of its parts by their names."""
    reports = {name: getattr(module, "load_report", None) for name, module in model.named_modules()}
    if reports[""] is not None:
        return {"": reports[""]}
    return {name: report for name, report in reports.items() if report is not None}
