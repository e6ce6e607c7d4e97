"""What a finished run leaves beside its checkpoints: results.json, student.safetensors and its card."""

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

STUDENT_FILE = "student.safetensors"
CARD_FILE = "student.json"
RESULTS_FILE = "results.json"


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the whole new one."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_student(folder: str | os.PathLike[str], state: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
    """Write ``student.safetensors``, a bare state dict under the network's own keys, and ``student.json``, its card."""
    path = Path(folder) / STUDENT_FILE
    write_bytes(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}))
    write_json(path.with_name(CARD_FILE), {"weights": path.name, "sha256": file_sha256(path), **card})
    return path


def teacher_card(models: Mapping[str, nn.Module], student: str) -> dict[str, Any]:
    """For every other model of the run: its class, the hash of its weights, and the file it was loaded from."""
    cards = {}
    for name, model in models.items():
        if name != student:
            cards[name] = {
                "class": _class_name(model),
                "sha256": state_sha256(model.state_dict()),
                **loaded_from(model),
            }
    return cards


def _class_name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
