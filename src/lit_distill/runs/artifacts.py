"""The files of a run folder, read and written: its config, its results, its student with the card, its stages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from lit_distill._files import write_bytes, write_text
from lit_distill.models.identity import loaded_from, state_sha256
from lit_distill.models.state_files import file_sha256
from lit_distill.runs.names import CONFIG_FILE, RESULTS_FILE, STAGES, STUDENT_FILE, card_of
from lit_distill.runs.secrets import redacted
from lit_distill.untrusted.budgets import TEXT_BYTES
from lit_distill.untrusted.plain import read_plain


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON file, without secrets, so that a reader sees the old one or the whole new one."""
    write_text(path, json.dumps(redacted(dict(content)), indent=2, default=str) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a JSON file that a run has written; empty where there is none.

    Raises:
        ValueError: it is no JSON object, or has more than 16 MB or 200,000 values.
    """
    try:
        content = read_plain(path, limit=TEXT_BYTES)
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} is refused: expected a JSON object, got {type(content).__name__}")
    return content


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``: after all other files, since it says that the run is finished or was interrupted."""
    write_json(folder / RESULTS_FILE, results)


def read_results(folder: Path) -> dict[str, Any]:
    """The content of ``results.json``; empty where the run has not ended."""
    return read_json(folder / RESULTS_FILE)


def is_finished(folder: Path) -> bool:
    """Whether the run of a folder has ended, and was not interrupted."""
    results = read_results(folder)
    return bool(results) and not results.get("interrupted")


def stage_folders(run: Path) -> list[Path]:
    """The folders of a run's stages that have begun, in their order."""
    found = [path.parent for path in (run / STAGES).glob(f"*/{CONFIG_FILE}")]
    numbered = {int(path.name.partition("_")[0]): path for path in found if path.name.partition("_")[0].isdecimal()}
    return [numbered[number] for number in sorted(numbered)]


def write_student(folder: str | os.PathLike[str], state: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write ``student.safetensors``, a bare state dict under the network's own keys, and ``student.json``, its card."""
    path = Path(folder) / STUDENT_FILE
    write_bytes(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}))
    write_json(card_of(path), {"weights": path.name, "sha256": file_sha256(path), **card})
    return path


def teacher_card(models: Mapping[str, nn.Module], student: str) -> dict[str, Any]:
    """For every other model of the run: its class, the hash of its weights, and the file it was loaded from."""
    return {
        name: {
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "sha256": state_sha256(model.state_dict()),
            **loaded_from(model),
        }
        for name, model in models.items()
        if name != student
    }
