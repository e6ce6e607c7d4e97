"""Adapters from golden cases to the library's networks, by kind."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lit_distill.models import temporal_shift
from parity.harness import Case, CaseAdapter
from parity.rules import Array, build_network, load_rule_weights, rule_video

_RESNET_FEATURES = {"conv1_3": "stem.2", "pool2D_max": "stem_pool"}


def check_model_eval(case: Case) -> None:
    """Logits in both precisions, every listed feature, and the fused kernels where there are any."""
    arrays, tolerance = case.arrays(), case.meta["tolerance"]
    network = build_network(case.meta["config"]).eval()
    assert load_rule_weights(network) == case.meta["n_keys"]
    if case.meta["reparameterised"]:
        network.reparameterize()  # type: ignore[operator]
        fused = [module for module in network.modules() if getattr(module, "dw_conv_list", False) is None]
        assert sum(isinstance(module.dw_conv, nn.Conv2d) for module in fused) == case.meta["n_rep_blocks"]
    video = rule_video(case.meta["input_seed"], case.meta["input_shape"])

    features: dict[str, Tensor] = {}
    names = {_native_feature(name.split("_", 1)[1]): name.split("_", 1)[1] for name in arrays if "featstat_" in name}
    handles = [
        network.get_submodule(native).register_forward_hook(
            lambda module, inputs, output, name=name: features.__setitem__(name, output)
        )
        for native, name in names.items()
    ]
    with torch.inference_mode():
        logits = network(video)
    for handle in handles:
        handle.remove()

    relative = float(tolerance["float64_relative_to_max_abs"])
    _close(case, "logits_float64", logits, arrays["logits_float64"], relative)
    for name in names.values():
        _check_summary(case, arrays, "feat", name, features[name], relative)
    state = network.state_dict()
    for name in (n.removeprefix("repstat_") for n in arrays if n.startswith("repstat_")):
        _check_summary(case, arrays, "rep", name, state[name], relative)

    with torch.inference_mode():
        logits = network.float()(video.float())
    relative = float(tolerance["float32_relative_to_max_abs"])
    _close(case, "logits_float32", logits, arrays["logits_float32"], relative)


def check_temporal_shift(case: Case) -> None:
    arrays = case.arrays()
    for sub in case.meta["cases"]:
        frames = torch.from_numpy(arrays[f"x_{sub['seed']}"])
        shifted = temporal_shift(frames, sub["seg_num"], ratio=sub["shift_ratio"])
        np.testing.assert_array_equal(shifted.numpy(), arrays[f"y_{sub['seed']}"], err_msg=f"{case}: {sub}")


def _native_feature(name: str) -> str:
    if match := re.fullmatch(r"stage(\d)(?:\.block(\d+))?", name):
        return f"stages.{match[1]}" + (f".{match[2]}" if match[2] else "")
    return _RESNET_FEATURES.get(name, name.replace("global_attention", "temporal_attention"))


def _check_summary(case: Case, arrays: Mapping[str, Array], kind: str, name: str, ours: Tensor, rel: float) -> None:
    """Compare mean, deviation, extremes and the first values; relative to the largest magnitude."""
    values = ours.double()
    stat = torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()])
    scale = float(values.abs().max())
    _close(case, f"{kind}stat_{name}", stat, arrays[f"{kind}stat_{name}"], rel, scale)
    _close(case, f"{kind}head_{name}", values.flatten()[:16], arrays[f"{kind}head_{name}"], rel, scale)
    if f"{kind}shape_{name}" in arrays:
        assert ours.shape == tuple(arrays[f"{kind}shape_{name}"]), f"{case}: shape of {name}"


def _close(case: Case, what: str, ours: Tensor, published: Array, relative: float, scale: float = 0.0) -> None:
    error = np.abs(ours.double().numpy() - published).max()
    assert error <= relative * (scale or np.abs(published).max()), f"{case}: {what} is off by {error}"


ADAPTERS: dict[str, CaseAdapter] = {
    "model_eval": check_model_eval,
    "op": check_temporal_shift,
}
