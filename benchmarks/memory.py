"""What a training step keeps, by network and by kind, in MiB: exact byte counts of tensors, no timing.

python benchmarks/memory.py [override …] measures DML as published by default: 16 frames of 224 x 224.

Kept for backward is what autograd saves during one forward pass on one sample, each storage counted once; it grows in
proportion with the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from results import parser, write_section
from torch import Tensor, nn

from lit_distill._command.command import conf_dir

MIB = 2**20


def composed(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [*overrides, "run_dir=unused"])


def kept_for_backward(network: nn.Module, inputs: Tensor) -> int:
    """Bytes that autograd saves in one forward pass, without the parameters and the inputs."""
    own = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    own.add(inputs.untyped_storage().data_ptr())
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, unpack):
        network.train()(inputs)
    return sum(kept.values())


def main() -> None:
    options = parser(__doc__, quick="the embedded data's small networks")
    options.add_argument("overrides", nargs="*", help="of `train`'s config")
    asked = options.parse_args()
    usual = ["experiment=dml_pptsmv2", "data=moving_digits_tiny" if asked.quick else "data=kinetics400"]
    config = composed(asked.overrides or usual)
    inputs = torch.zeros(1, config.data.num_frames, 3, config.data.size, config.data.size)
    columns = ["parameters", "weights", "gradients", "SGD momentum", "AdamW", "kept for backward, a sample",
               "the same under 16-bit autocast"]  # fmt: skip
    lines = [f"| network | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, node in config.models.items():
        network = instantiate(node)
        weights = sum(p.numel() * p.element_size() for p in network.parameters()) / MIB
        full = kept_for_backward(network, inputs) / MIB
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = kept_for_backward(network, inputs) / MIB
        count = sum(p.numel() for p in network.parameters()) / 1e6
        copies = [f"{times * weights:.1f}" for times in (1, 1, 1, 2)]
        cells = [f"{name}: {type(network).__name__}", f"{count:.1f} M", *copies, f"{full:,.0f}", f"{half:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "MiB. A frozen network costs its weights alone, and the feature maps that it is at while it runs."]
    print("\n".join(lines))
    if not asked.quick:
        write_section("memory", f"python benchmarks/memory.py {' '.join(asked.overrides)}".strip(), lines)


if __name__ == "__main__":
    main()
