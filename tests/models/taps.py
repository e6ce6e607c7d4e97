"""What the tests of both networks look at: tensors inside a forward pass."""

from __future__ import annotations

from torch import Tensor, nn


def outputs_of(network: nn.Module, video: Tensor, *names: str) -> list[Tensor]:
    """The outputs of some submodules in one forward pass; ``name:input`` for an input. Each must run once."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:
        path, _, side = name.partition(":")

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, name: str = name, s: str = side) -> None:
            assert name not in found, f"{name} ran twice"
            found[name] = args[0] if s else output

        handles.append(network.get_submodule(path).register_forward_hook(keep))
    network(video)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]
