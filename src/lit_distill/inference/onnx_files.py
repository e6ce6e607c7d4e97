"""Networks as ONNX files: written, quantised to int8, run by ONNX Runtime; needs the extra ``lit-distill[onnx]``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lit_distill.untrusted.budgets import ONNX_BYTES, WEIGHTS_BYTES
from lit_distill.untrusted.onnx_graphs import check_graph
from lit_distill.untrusted.opening import read_untrusted
from lit_distill.untrusted.showing import printable

INPUT, OUTPUT = "clips", "logits"
_SILENT = 4  # of ONNX Runtime's log: names of the file stand in it as they are
_UNBOUNDED = ["ConstantFolding"]  # it takes memory from elsewhere; what is exported is folded already
_LONGEST = 1_000  # characters of an error


class OnnxNetwork:
    """An ONNX file as a callable: a float batch (B, ...) to logits (B, C), both on the CPU.

    The file has one input and one output whose first dimension is the batch, and nodes that are computed one after the
    other: see :func:`lit_distill.untrusted.onnx_graphs.check_graph`. All such networks of a process together have
    ``ONNX_BYTES`` of memory.

    Args:
        path: of the file.
        threads: that compute a node; None for as many as there are cores.
        seconds: that a batch may take; None for any.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
        ValueError: the file is missing, no ONNX model that ONNX Runtime can run, or has other inputs and outputs.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None, seconds: float | None = None
    ) -> None:
        runtime = _imported("onnxruntime")
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"no ONNX file at {self.path}")
        options = runtime.SessionOptions()
        options.log_severity_level = _SILENT
        if threads is not None:
            options.intra_op_num_threads = threads
        # Threads that spin between calls take the cores from the decoding of the next clip.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self._runtime, self._seconds = runtime, seconds
        try:
            content = read_untrusted(self.path, what="an ONNX file", limit=WEIGHTS_BYTES)
            check_graph(content)
            _bound_memory()
            # Bytes, not a path: external data, which could name any file of the machine, is then refused once more.
            self._session = runtime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], disabled_optimizers=_UNBOUNDED
            )
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise ValueError(f"{self.path} is no ONNX model that can be run here: {_line(error)}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            names = [i.name for i in inputs], [o.name for o in outputs]
            said = f"{self.path} must have one input and one output, has {names[0]} and {names[1]}"
            raise ValueError(printable(said)[:_LONGEST])
        self._input: str = inputs[0].name
        self.input_shape: tuple[int | str, ...] = tuple(inputs[0].shape)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of a batch.

        Raises:
            ValueError: the file was made for inputs of another shape, or what it says cannot be computed.
        """
        batch = inputs.detach().cpu().float().contiguous()
        wanted = self.input_shape[1:]
        if len(batch.shape) != len(self.input_shape) or any(
            isinstance(w, int) and w != c for w, c in zip(wanted, batch.shape[1:], strict=True)
        ):
            said = f"{self.path} takes batches of {self.input_shape}, got {tuple(batch.shape)}"
            raise ValueError(printable(said)[:_LONGEST])
        options = self._runtime.RunOptions()
        options.log_severity_level = _SILENT
        try:
            with _stopped_after(self._seconds, options):
                (outputs,) = self._session.run(None, {self._input: batch.numpy()}, options)
            return torch.from_numpy(outputs)
        except Exception as error:
            late = (
                f"it takes more than {self._seconds:g} seconds: give fewer samples a batch" if options.terminate else ""
            )
            raise ValueError(f"{self.path} cannot be run on {tuple(batch.shape)}: {late or _line(error)}") from error


def write_onnx(network: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a network in evaluation mode as an ONNX file with a dynamic batch, at the exporter's current opset.

    Args:
        network: on the CPU; it is traced once.
        example: an input (B, ...), B at least 2, so that the batch is not taken for a constant.
        path: the file to write.

    Raises:
        ModuleNotFoundError: the packages of the extra are not installed.
        ValueError: the network can't be exported; the exporter's reason.
    """
    for package in ("onnx", "onnxscript"):
        _imported(package)
    if example.shape[0] < 2:
        raise ValueError(f"write_onnx needs an example batch of at least 2, got {tuple(example.shape)}")
    network = network.eval()
    name = next(iter(inspect.signature(network.forward).parameters))
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False,
                dynamic_shapes={name: {0: torch.export.Dim("batch", min=1)}},
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=False)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(f"{type(network).__name__} can't be exported to ONNX: {str(error).splitlines()[0]}") from error


def quantize_onnx(
    source: str | os.PathLike[str], path: str | os.PathLike[str], batches: Iterable[Tensor], *, narrow: bool = False
) -> int:
    """Quantise an ONNX file to int8: static, weights per channel, ranges from calibration batches, QDQ form.

    Args:
        source: a float file of :func:`write_onnx`.
        path: the int8 file to write.
        batches: inputs like those of use, such as a few dozen training clips.
        narrow: weights in 7 bits, for processors without VNNI, whose 16-bit sums may saturate otherwise.

    Returns:
        How many batches were looked at.

    Raises:
        ModuleNotFoundError: the packages of the extra are not installed.
        ValueError: there is no batch.
    """
    _imported("onnx")
    quantization = _imported("onnxruntime.quantization")
    preparation = _imported("onnxruntime.quantization.shape_inference")
    reader = _Calibration(batches)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        preparation.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared), str(path), reader, quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            reduce_range=narrow,
        )  # fmt: skip
    return reader.count


class _Calibration:
    """What ONNX Runtime's calibration pulls its inputs from."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches: Iterator[Tensor] = iter(batches)
        self.count = 0

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        if batch is None:
            if not self.count:
                raise ValueError("int8 needs at least one calibration batch, got none")
            return None
        self.count += 1
        return {INPUT: batch.detach().cpu().float().numpy()}


@functools.cache
def _bound_memory() -> None:
    """Have ONNX Runtime take at most ``ONNX_BYTES`` in this process: it keeps one allocator for all of its sessions."""
    runtime = _imported("onnxruntime")
    place = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    runtime.create_and_register_allocator(place, runtime.OrtArenaCfg({"max_mem": ONNX_BYTES}))


@contextlib.contextmanager
def _stopped_after(seconds: float | None, options: Any) -> Iterator[None]:
    """Stop the run of these options, between two nodes, when its time is over."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _line(error: Exception) -> str:
    """What ONNX Runtime says, which may repeat names of the file."""
    return printable((str(error) or type(error).__name__).splitlines()[0][:500])


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX files need {error.name}, which is not installed: pip install 'lit-distill[onnx]'", name=error.name
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporters' progress on the screen; their errors are raised all the same."""
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
