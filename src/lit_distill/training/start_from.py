"""Where a model of a stage begins: as an earlier stage left it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from lit_distill._module.frozen import check_keys
from lit_distill._module.patterns import names
from lit_distill.checkpoints import read_checkpoint
from lit_distill.models.identity import fill, state_of
from lit_distill.models.simkd import SimKDStudent
from lit_distill.models.state_files import file_sha256, read_safetensors, split_name
from lit_distill.models.weights import LoadReport, is_counter


def start_from(
    model: nn.Module,
    source: str,
    *,
    name: str,
    folder: str | os.PathLike[str],
    fresh: Collection[str] = (),
    expected: Mapping[str, Tensor] | None = None,
) -> LoadReport | None:
    """Copy what an earlier stage left of a model into it; all of it must fit, but for what is reinitialized.

    Args:
        model: the network.
        source: a checkpoint with the model's name there, ``../1_hint/checkpoints/last.ckpt#Student``, or a
            ``.safetensors`` file.
        name: the model's name here.
        folder: what ``source`` is relative to.
        fresh: parts that stay as they are, such as ``Student.fc``; ``*`` stands for anything.
        expected: what the earlier stage will leave there, by name and shape: it is checked, and nothing is read.

    Returns:
        What was loaded, and what is reinitialized; nothing after a check.

    Raises:
        ValueError: a tensor is missing, superfluous or of another shape; ``fresh`` names no part of the model.
        FileNotFoundError: the earlier stage has left no such file.
    """
    # without the .. of a folder that is not made yet
    file, there = split_name(os.path.normpath(Path(folder) / source))
    if expected is not None:
        state = dict(expected)
    elif not file.exists():
        raise FileNotFoundError(f"{name} begins as an earlier stage left it, but there is no {file}")
    else:
        state = read_safetensors(file)[0] if file.suffix == ".safetensors" else state_of(read_checkpoint(file), there)
    if isinstance(model, SimKDStudent):
        model.size_like(state)
    own = model.state_dict()
    begun = [key for key in own if any(names(pattern, f"{name}.{key}") for pattern in fresh)]
    for pattern in fresh:
        if pattern.split(".")[0] == name and not any(names(pattern, f"{name}.{key}") for key in own):
            raise ValueError(
                f"fresh={pattern}: {name} has no such part; its parts are {[n for n, _ in model.named_children()]}"
            )
    kept = {key: value for key, value in state.items() if not any(names(p, f"{name}.{key}") for p in fresh)}
    try:
        check_keys({key: value for key, value in own.items() if key not in begun}, kept)
    except ValueError as error:
        frames = " (temporal attention is made for one number of frames)" if "temporal_attention" in str(error) else ""
        raise ValueError(
            f"{name} cannot begin as {file} has it: {error}; fresh=[{name}.<part>] reinitializes a part{frames}"
        ) from error
    if expected is not None:
        return None
    fill(model, {**{key: own[key] for key in begun}, **kept})
    reset = {key: "is reinitialized in this stage" for key in begun if not is_counter(key)}
    matched = [key for key in kept if not is_counter(key)]
    return LoadReport(file, file_sha256(file), len(matched), len(matched) + len(reset), reset=reset, name=there)
