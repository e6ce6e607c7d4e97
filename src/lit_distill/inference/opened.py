"""A classifier from what a run left: its network, or an exported file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_distill.data.preprocess import Preprocess
from lit_distill.inference.classifiers import Classifier, NetworkClassifier
from lit_distill.inference.exported import load_program
from lit_distill.runs.run import Run
from lit_distill.untrusted.budgets import ONNX_SECONDS

LOADS_PROGRAMS = "torch.export.load"
"""What ``allow`` has to name before a ``.pt2`` file is loaded."""


def open_classifier(
    opened: Run, preprocess: Preprocess, *, model: str | None, checkpoint: str, device: str
) -> Classifier:
    """A classifier of a run's network, by default its student, or of an exported file, on the CPU.

    Raises:
        ValueError: the file is none that can be run, or a torch.export program that ``opened.allow`` does not admit;
            there is no such device.
    """
    if opened.weights is not None and opened.weights.suffix == ".onnx":
        from lit_distill.inference.onnx_files import OnnxNetwork  # its extra may be missing

        network: Callable[[Tensor], Tensor] = OnnxNetwork(opened.verified(opened.weights), seconds=ONNX_SECONDS)
        return NetworkClassifier(network, preprocess)
    if opened.weights is not None and opened.weights.suffix == ".pt2":
        if LOADS_PROGRAMS not in opened.allow:
            raise ValueError(
                f"{opened.weights} is a torch.export program: loading one can run what is hidden in it. If you trust "
                f"where it is from, --allow {LOADS_PROGRAMS}; its .onnx or .safetensors form runs nothing"
            )
        return NetworkClassifier(load_program(opened.verified(opened.weights)), preprocess)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device} is not available: {str(error).splitlines()[0]}") from error
    return NetworkClassifier(opened.model(model, checkpoint=checkpoint), preprocess, device=place)
