"""What `convert` does: it writes PaddleVideo's weights and configs as this library's."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lit_distill._command.arguments import path_argument
from lit_distill._files import expand_home, write_bytes
from lit_distill.models import PPTSMResNet, PPTSMv2, WeightsError
from lit_distill.models import paddle_keys as keys
from lit_distill.models.state_files import (
    ORIGIN,
    PUBLISHED,
    Rules,
    choose_prefix,
    display,
    few,
    file_sha256,
    group_by_prefix,
    read_contents,
    split_name,
)
from lit_distill.models.weights import LoadReport, is_counter, leftovers
from lit_distill.paddlevideo.config import convert_config
from lit_distill.untrusted.showing import printable, printable_lines


class _Network(NamedTuple):
    to_native: Callable[[str], str | None]
    to_published: Callable[[str], str | None]
    skeleton: Callable[[dict[str, Tensor]], nn.Module]  # has the names that a complete file must have; any widths


def _pptsm_v2(state: dict[str, Tensor]) -> nn.Module:
    blocks = [
        {match[1] for name in state if (match := re.match(rf"stages\.{stage}\.(\d+)\.", name))} for stage in range(4)
    ]
    return PPTSMv2(
        1,
        3,
        temporal_attention=any(name.startswith("temporal_attention.") for name in state),
        scale=0.125,
        depths=[max(1, len(stage)) for stage in blocks],
        class_expand=8,
        reparameterized=any(map(keys.is_fused_branch, state)),
    )


_NETWORKS = {
    "pptsmv2": _Network(keys.pptsm_v2_to_native, keys.pptsm_v2_to_published, _pptsm_v2),
    **{
        f"pptsm_resnet{depth}": _Network(
            partial(keys.pptsm_resnet_to_native, depth=depth),
            partial(keys.pptsm_resnet_to_published, depth=depth),
            lambda state, depth=depth: PPTSMResNet(depth, 1, 3, width=0.125),  # type: ignore[misc]
        )
        for depth in keys.RESNET_DEPTHS
    },
}


def convert_weights(source: str | os.PathLike[str], target: str | os.PathLike[str], *, model: str) -> LoadReport:
    """Write one network of a weights file as ``.safetensors`` under its native names and layouts.

    Values and types stay as they are, whatever the width, the depth and the number of classes and frames. The file
    remembers that it comes from a published network: an image network in it starts a video network as it did before.

    Args:
        source: any file that :func:`lit_distill.models.load_weights` reads; ``#Name`` where it holds several.
        target: the ``.safetensors`` file to write; replaced if it exists, at once or not at all.
        model: ``pptsmv2``, or ``pptsm_resnet18``, ``34``, ``50``, ``101``, ``152``.

    Returns:
        What was written (``matched``), and what the file lacks or holds too.

    Raises:
        WeightsError: the source is refused, or is no file of that network; the target is not to be written.
    """
    if model not in _NETWORKS:
        raise WeightsError(f"model expects one of {', '.join(_NETWORKS)}, got {model!r}")
    network, path = _NETWORKS[model], expand_home(target)
    file, wanted = split_name(source)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise WeightsError(f"the target is a .safetensors file in a folder that exists, got {path}")
    contents = read_contents(file)
    rules = Rules(network.to_native if contents.paddle else str, contents.paddle)

    def is_ours(name: str) -> bool:
        return network.to_published(name) is not None and not (contents.paddle and keys.is_fused_branch(name))

    groups = group_by_prefix(contents.tensors, rules, is_ours)
    sizes = {prefix: len(places) for prefix, places in groups.items()}
    if not groups:
        raise WeightsError(f"nothing in {file} belongs to {model}: it holds {few(contents.tensors)}")
    prefix = choose_prefix(sizes, wanted, max(sizes.values()), file)
    state = {
        name: contents.tensors[key].t()
        if contents.paddle and contents.tensors[key].ndim == 2
        else contents.tensors[key]
        for name, key in groups[prefix].items()
    }

    names = [name for name in network.skeleton(state).state_dict() if not is_counter(name)]
    missing = {name: "not in the file" for name in names if name not in state}
    foreign = [name for name in state if name not in names]
    lacking = [name for name in missing if not name.startswith("fc.")]
    if foreign or lacking:
        raise WeightsError(
            f"{file} is no {model}: of {len(names)} tensors it lacks {len(lacking)}: {few(lacking)}; "
            f"it has {len(foreign)} besides: {few(foreign)}"
        )
    unexpected, ignored = leftovers(contents.tensors, rules, groups[prefix], prefix)
    sha256 = file_sha256(file)
    metadata = {"format": "pt", "model": model, "source": file.name, "source_sha256": sha256}
    if contents.published:
        metadata[ORIGIN] = PUBLISHED
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    write_bytes(path, save(tensors, metadata))
    return LoadReport(file, sha256, len(state), len(names), missing, unexpected, {}, ignored, {}, display(prefix))


def run(source: str, target: str, model: str | None) -> int:
    """Convert a weights file, or a PaddleVideo config; 0, or 1 after one line on what is wrong.

    Args:
        source: a weights file, or a ``.yaml``.
        target: a ``.safetensors`` file; of a ``.yaml`` the folder of configs.
        model: of a weights file, see :func:`convert_weights`.
    """
    try:
        if model is None:
            print(printable_lines(str(convert_config(source, target))))
            return 0
        report = convert_weights(source, target, model=model)
    except (ValueError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    print(printable_lines(str(report)))
    print(f"written {target}; use it as {path_argument('models.<Name>.pretrained', target)}")
    return 0
