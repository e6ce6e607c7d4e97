"""One harness over a folder of golden values: compares what an adapter gives with what was published.

The folder, with its ``cases.json``, is ``tests/golden`` or what ``LIT_DISTILL_GOLDEN`` names. An adapter is a function
in ``tests/parity/adapters``; each of those modules lists its adapters in ``ADAPTERS``, keyed by the case's kind, or for
losses by its family.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(os.environ.get("LIT_DISTILL_GOLDEN") or Path(__file__).parents[1] / "golden")


@dataclass(frozen=True)
class Case:
    """One entry of cases.json and the folder that it stands in."""

    meta: Mapping[str, Any]
    folder: Path = GOLDEN

    @property
    def id(self) -> str:
        return str(self.meta["id"])

    @property
    def kind(self) -> str:
        return str(self.meta["kind"])

    @property
    def family(self) -> str:
        return str(self.meta.get("family", ""))

    @property
    def path(self) -> Path:
        return self.folder / str(self.meta["file"])

    @property
    def hyper(self) -> Mapping[str, Any]:
        hyper: Mapping[str, Any] = self.meta.get("hyper", {})
        return hyper

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        with np.load(self.path) as archive:
            return {name: archive[name] for name in archive.files}

    def __str__(self) -> str:
        return f"{self.kind}-{self.id}"


@dataclass
class LossInputs:
    """What a loss adapter gets: float64 leaves that need gradients (``inputs``), and module parameters (``params``)."""

    inputs: dict[str, Tensor]
    params: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def levels(self, prefix: str) -> list[Tensor]:
        """The inputs ``prefix0``, ``prefix1``, … in order."""
        names = sorted(
            (n for n in self.inputs if n.startswith(prefix) and n[len(prefix) :].isdigit()),
            key=lambda n: int(n[len(prefix) :]),
        )
        return [self.inputs[name] for name in names]


LossAdapter: TypeAlias = Callable[[Case, LossInputs], "Tensor | dict[str, Tensor]"]
"""Gives the loss, or ``{"loss": …, other: …}`` with every further ``out_<other>`` of the file."""

CaseAdapter: TypeAlias = Callable[[Case], None]
"""Runs and asserts a case of any other kind by itself."""


def load_cases(folder: Path = GOLDEN) -> list[Case]:
    return [Case(meta, folder) for meta in json.loads((folder / "cases.json").read_text())["cases"]]


def check_loss(case: Case, adapter: LossAdapter) -> None:
    """Compare every ``out_*``, ``grad_*`` and ``nograd_*`` of the case's file with what the adapter gives."""
    arrays = case.arrays()
    inputs = {
        name[3:]: torch.from_numpy(value).clone().requires_grad_(value.dtype.kind == "f")
        for name, value in arrays.items()
        if name.startswith("in_")
    }
    params = {name[6:]: torch.from_numpy(value).clone() for name, value in arrays.items() if name.startswith("param_")}
    rtol, atol = float(case.meta["tolerance"]["rtol"]), float(case.meta["tolerance"]["atol"])

    given = adapter(case, LossInputs(inputs, params))
    outputs = {"loss": given} if isinstance(given, Tensor) else given
    expected = {name[4:]: value for name, value in arrays.items() if name.startswith("out_")}
    assert expected, f"{case}: the file holds no out_* array, so nothing would be checked"
    missing = expected.keys() - outputs.keys()
    assert not missing, f"{case}: the adapter gives no {sorted(missing)}"
    for name, value in expected.items():
        ours = outputs[name].detach().double().numpy().reshape(value.shape)
        np.testing.assert_allclose(ours, value, rtol=rtol, atol=atol, err_msg=f"{case}: out_{name}")

    wanted = {name[5:]: value for name, value in arrays.items() if name.startswith("grad_")}
    if wanted:
        outputs["loss"].backward()  # type: ignore[no-untyped-call]
    stored_as_float32 = set(case.meta.get("stored_as_float32", ()))
    for name, value in wanted.items():
        gradient = inputs[name].grad
        assert gradient is not None, f"{case}: no gradient reaches {name}"
        loose = value.dtype == np.float32 or f"grad_{name}" in stored_as_float32
        np.testing.assert_allclose(
            gradient.numpy(),
            value,
            rtol=max(rtol, 1e-6 if loose else 0.0),
            atol=max(atol, 1e-9 if loose else 0.0),
            err_msg=f"{case}: grad_{name}",
        )
    for name in (n[7:] for n in arrays if n.startswith("nograd_")):
        gradient = inputs[name].grad if name in inputs else None
        assert gradient is None or not gradient.any(), f"{case}: {name} must get no gradient"
