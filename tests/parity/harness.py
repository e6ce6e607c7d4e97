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
from torch import Tensor, nn
from torch.func import functional_call

SHIPPED = Path(__file__).parents[1] / "golden"
GOLDEN = Path(os.environ.get("LIT_DISTILL_GOLDEN") or SHIPPED)


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
    """What a loss adapter gets: float64 leaves that need gradients (``inputs``), and module parameters (``params``).

    A parameter of which the case holds a gradient is a leaf as well, so an adapter uses it as it is: by :func:`call`.
    """

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
"""Gives the loss, or ``{"loss": …, other: …}`` with every further ``out_<other>`` and each ``term_<name>``."""

CaseAdapter: TypeAlias = Callable[[Case], None]
"""Runs and asserts a case of any other kind by itself."""


def load_cases(folder: Path = GOLDEN) -> list[Case]:
    return [Case(meta, folder) for meta in json.loads((folder / "cases.json").read_text())["cases"]]


def call(loss: nn.Module, state: Mapping[str, Tensor], *signals: Any) -> Tensor:
    """The value of a loss with the parameters and buffers of a case in place of its own, by our names.

    The gradients reach the case's tensors, through parametrizations as well. A counter that no case gives stays.
    """
    own = {n: tuple(x.shape) for n, x in loss.double().state_dict().items() if not n.endswith("num_batches_tracked")}
    assert {name: tuple(value.shape) for name, value in state.items()} == own
    value: Tensor = functional_call(loss, dict(state), signals)
    return value


def check_loss(case: Case, adapter: LossAdapter) -> None:
    """Compare all of the case's file with what the adapter gives.

    These are every ``out_*`` and ``term_*``, the gradients ``grad_*`` of inputs and ``gradparam_*`` of parameters, and
    that ``nograd_*`` and ``noparamgrad_*`` have none. ``refgrad_*`` is what a published loss passes on to its teacher:
    compared where ours passes a gradient on, too.
    """
    arrays = case.arrays()
    inputs = {
        name[3:]: torch.from_numpy(value).clone().requires_grad_(value.dtype.kind == "f")
        for name, value in arrays.items()
        if name.startswith("in_")
    }
    params = {
        name[6:]: torch.from_numpy(value)
        .clone()
        .requires_grad_(bool({f"gradparam_{name[6:]}", f"noparamgrad_{name[6:]}"} & arrays.keys()))
        for name, value in arrays.items()
        if name.startswith("param_")
    }
    rtol, atol = float(case.meta["tolerance"]["rtol"]), float(case.meta["tolerance"]["atol"])

    given = adapter(case, LossInputs(inputs, params))
    outputs = {"loss": given} if isinstance(given, Tensor) else given
    expected = {name[4:]: value for name, value in arrays.items() if name.startswith("out_")}
    assert expected, f"{case}: the file holds no out_* array, so nothing would be checked"
    expected |= {name: value for name, value in arrays.items() if name.startswith("term_")}
    missing = expected.keys() - outputs.keys()
    assert not missing, f"{case}: the adapter gives no {sorted(missing)}"
    for name, value in expected.items():
        ours = outputs[name].detach().double().numpy().reshape(value.shape)
        np.testing.assert_allclose(ours, value, rtol=rtol, atol=atol, err_msg=f"{case}: out_{name}")

    # Prefixes are tried in this order, so that "grad_" does not take the others.
    kinds = ("gradparam_", "refgrad_", "nograd_", "noparamgrad_", "grad_")
    wanted: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name in arrays:
        kind = next((kind for kind in kinds if name.startswith(kind)), None)
        if kind is not None:
            wanted[kind].append(name.removeprefix(kind))
    if any(wanted[kind] for kind in ("gradparam_", "refgrad_", "grad_")):
        outputs["loss"].backward()  # type: ignore[no-untyped-call]
    for kind, leaves in (("grad_", inputs), ("gradparam_", params), ("refgrad_", inputs)):
        for name in wanted[kind]:
            gradient = leaves[name].grad
            if kind == "refgrad_" and gradient is None:
                continue
            assert gradient is not None, f"{case}: no gradient reaches {name}"
            value = arrays[kind + name]
            loose = value.dtype == np.float32 or kind + name in case.meta.get("stored_as_float32", ())
            np.testing.assert_allclose(
                gradient.numpy(),
                value,
                rtol=max(rtol, 1e-6 if loose else 0.0),
                atol=max(atol, 1e-9 if loose else 0.0),
                err_msg=f"{case}: {kind}{name}",
            )
    for kind, leaves in (("nograd_", inputs), ("noparamgrad_", params)):
        for name in wanted[kind]:
            gradient = leaves[name].grad if name in leaves else None
            assert gradient is None or not gradient.any(), f"{case}: {name} must get no gradient"
