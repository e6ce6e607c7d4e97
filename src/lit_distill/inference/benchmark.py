"""What `benchmark` does: it measures the latency of decoding, preprocessing and the network."""

from __future__ import annotations

import logging
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_distill._screen import Screen, numeric
from lit_distill._version import versions
from lit_distill.inference.exported import fused
from lit_distill.inference.onnx_files import OnnxNetwork, quantize_onnx, write_onnx
from lit_distill.runs.artifacts import write_json
from lit_distill.runs.opened import open_run

Engine = Literal["eager", "compile", "onnx", "int8"]
Network = Callable[[Tensor], Tensor]
_LABEL = {"eager": "torch eager", "compile": "torch.compile", "onnx": "onnxruntime", "int8": "onnxruntime int8"}
_WARM_UP = 3


def multiply_adds(network: nn.Module, inputs: Tensor) -> int:
    """Multiplications with addition of one forward pass: convolutions and matrix products, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(inputs)
    return int(counter.get_total_flops()) // 2


def engine(name: Engine, network: nn.Module, example: Tensor, folder: Path, *, threads: int | None = None) -> Network:
    """A network on the CPU as an engine runs it; branches are fused for all but ``"eager"``.

    Raises:
        ModuleNotFoundError: the engine needs the extra ``onnx``.
        ValueError: the network can't be exported.
    """
    if name == "eager":
        return network
    if name == "compile":
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # there is no GPU: that is known
        compiled = torch.compile(network)

        def frozen(inputs: Tensor) -> Tensor:
            # freezing folds BatchNorm into constants; it is wanted for this call's compilation alone
            with torch._inductor.config.patch(freezing=True):
                result: Tensor = compiled(inputs)
            return result

        return frozen
    whole = folder / "float.onnx"
    if not whole.exists():
        write_onnx(network, torch.cat([example, example]), whole)
    if name == "onnx":
        return OnnxNetwork(whole, threads=threads)
    small = folder / "int8.onnx"
    quantize_onnx(whole, small, [example])
    return OnnxNetwork(small, threads=threads)


@torch.inference_mode()
def measure(stages: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each stage, taken in turns: all stages once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for turn in range(_WARM_UP + rounds):
        for name, stage in stages.items():
            start = time.perf_counter()
            stage()
            if turn >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile (the nearest rank), in milliseconds.

    Example:
        >>> summary([0.001, 0.002, 0.010])
        {'median': 2.0, 'p95': 10.0}
    """
    ordered = sorted(seconds)
    return {
        "median": round(1e3 * statistics.median(ordered), 3),
        "p95": round(1e3 * ordered[math.ceil(0.95 * len(ordered)) - 1], 3),
    }


def run(config: DictConfig) -> dict[str, Any]:
    """Measure what a composed ``benchmark.yaml`` describes.

    Returns:
        The content of ``benchmark.json``.

    Raises:
        FileNotFoundError: the run, its weights or the clip are not there.
        ValueError: an argument is out of its range.
        ModuleNotFoundError: an engine needs the extra ``onnx``.
        VideoError: the clip can't be read.
    """
    _validate(config)
    source = open_run(config)
    name = config.named or source.student
    preprocess = source.preprocess(views="center", model=name)
    clip = Path(config.input)
    if not clip.exists():
        raise FileNotFoundError(f"no file {clip} (input=…)")
    pixels = preprocess.read(clip)[None]
    inputs = preprocess.normalize(pixels)
    as_trained = source.model(name, checkpoint=config.checkpoint)
    with tempfile.TemporaryDirectory() as folder, _threads(config.threads):
        networks: dict[str, Network] = {}
        for which in config.engines:
            network = as_trained if which == "eager" else fused(source.model(name, checkpoint=config.checkpoint))
            networks[which] = engine(which, network, inputs, Path(folder), threads=config.threads)
        stages: dict[str, Callable[[], object]] = {
            "decode": lambda: preprocess.read(clip),
            "preprocess": lambda: preprocess.normalize(pixels),
        }
        for which, network_run in networks.items():
            stages[which] = lambda run_it=network_run: run_it(inputs)  # type: ignore[misc]
        seconds = measure(stages, config.rounds)
        used = torch.get_num_threads()
    bare = fused(source.model(name, checkpoint=config.checkpoint))
    shared = [d + p for d, p in zip(seconds["decode"], seconds["preprocess"], strict=True)]
    result = {
        "model": name,
        "parameters": sum(p.numel() for p in as_trained.parameters()),
        "parameters_fused": sum(p.numel() for p in bare.parameters()),
        "multiply_adds": multiply_adds(as_trained, inputs),
        "input": str(clip),
        "input_shape": list(inputs.shape),
        "rounds": config.rounds,
        "threads": config.threads or used,
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
        "milliseconds": {
            "decode": summary(seconds["decode"]),
            "preprocess": summary(seconds["preprocess"]),
            **{
                which: {
                    "network": summary(seconds[which]),
                    "total": summary([s + n for s, n in zip(shared, seconds[which], strict=True)]),
                }
                for which in networks
            },
        },
    }
    file = Path(config.output or source.folder / "benchmark.json")
    write_json(file, result)
    show(Screen(), result)
    return result


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Print one table, in milliseconds: a stage or an engine a row, what the whole clip takes with each engine."""
    shape = "x".join(map(str, result["input_shape"]))
    title = f"{result['model']}: milliseconds a clip on {result['threads']} CPU threads, {shape}"
    numbers = numeric("median", "p95", "decoded to classified", "p95", "network's speed-up")
    table = Table(Column("stage", no_wrap=True), *numbers, title=title)
    times = result["milliseconds"]
    for stage in ("decode", "preprocess"):
        table.add_row(stage, *_both(times[stage]))
    table.add_section()
    first = None
    for which in (name for name in times if name in _LABEL):
        network = times[which]["network"]
        first = first or network["median"]
        speed = f"{first / network['median']:.2f}x"
        table.add_row(_LABEL[which], *_both(network), *_both(times[which]["total"]), speed)
    console.print(table)
    console.print(
        f"{result['parameters']:,} parameters ({result['parameters_fused']:,} with branches fused), "
        f"{result['multiply_adds'] / 1e6:,.1f} M multiply-adds a clip", soft_wrap=True
    )  # fmt: skip


def _both(times: Mapping[str, float]) -> tuple[str, str]:
    return f"{times['median']:.1f}", f"{times['p95']:.1f}"


def _validate(config: DictConfig) -> None:
    if not config.input:
        raise ValueError("benchmark needs input=<a video or an image>")
    if not config.engines or set(config.engines) - set(get_args(Engine)):
        raise ValueError(f"engines is a list of {', '.join(get_args(Engine))}, got {list(config.engines)}")
    if config.rounds < 1 or (config.threads is not None and config.threads < 1):
        raise ValueError(f"rounds and threads must be at least 1, got {config.rounds} and {config.threads}")


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
