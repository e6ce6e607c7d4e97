"""What a finished run leaves beside its checkpoints: results.json, student.safetensors and its card."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lit_distill._files import write_bytes, write_text
from lit_distill.models.state_files import file_sha256

STUDENT_FILE = "student.safetensors"
CARD_FILE = "student.json"
RESULTS_FILE = "results.json"


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the whole new one."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """The sha256 over names, dtypes, shapes and bytes of a state dict, in the order of its names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def state_of(checkpoint: Mapping[str, Any], model: str) -> dict[str, Tensor]:
    """The state of one named model in a checkpoint, under the model's own keys.

    Raises:
        ValueError: the checkpoint holds no such model.
    """
    prefix = f"models.{model}."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    if not state:
        names = sorted({key.split(".")[1] for key in checkpoint["state_dict"] if key.startswith("models.")})
        raise ValueError(f"the checkpoint holds no model {model!r}; it holds {names}")
    return state


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


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import lightning

    import lit_distill

    return {
        "lit_distill": lit_distill.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def _class_name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"
