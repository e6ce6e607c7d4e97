"""What `export` does: it writes the student as a file that others run, checked before it is written."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_distill._files import atomic_file
from lit_distill._screen import Screen
from lit_distill.data.preprocess import Preprocess
from lit_distill.inference.exported import compare, fused, load_program, top1
from lit_distill.inference.onnx_files import OnnxNetwork, quantize_onnx, write_onnx
from lit_distill.inference.sample_batches import batches_of, labelled_batches
from lit_distill.models.identity import fill
from lit_distill.models.state_files import file_sha256
from lit_distill.runs.artifacts import write_json
from lit_distill.runs.names import EXPORT, STUDENT_FILE, card_of
from lit_distill.runs.opened import open_run
from lit_distill.runs.run import Run
from lit_distill.untrusted.naming import file_name, inside
from lit_distill.untrusted.plain import read_plain

Format = Literal["onnx", "torch_export", "safetensors"]
_SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
# No two share their card, and none that of the run's own student.safetensors.
_ENDING = {"onnx": ".onnx", "torch_export": ".program.pt2", "safetensors": ".fused.safetensors"}


def run(config: DictConfig) -> Path:
    """Export what a composed ``export.yaml`` describes.

    Returns:
        The file that was written; its card stands beside it.

    Raises:
        FileNotFoundError: the run, its weights or its data are not there.
        ValueError: an argument is out of its range, or the exported file does not do what the network does; nothing
            has been written then.
        ModuleNotFoundError: the extra ``onnx`` is not installed.
    """
    _validate(config)
    source = open_run(config)
    if source.weights is not None and source.weights.suffix != ".safetensors":
        raise ValueError(f"{source.weights} has been exported already: give the run folder or {STUDENT_FILE}")
    name = config.named or source.student
    reference = source.model(name, checkpoint=config.checkpoint)
    network = fused(source.model(name, checkpoint=config.checkpoint))
    preprocess = source.preprocess(views="center", model=name)
    samples = _Samples(source, preprocess, config)
    checked_on = list(samples.check(config.check_samples))
    if not checked_on:
        raise ValueError("an export needs real samples to be checked on, got none")
    ending = ".int8.onnx" if config.int8 else _ENDING[config.format]
    path = Path(config.output or inside(source.folder, EXPORT, f"{file_name(name).lower()}{ending}"))
    if path.suffix != _SUFFIX[config.format]:
        raise ValueError(f"output of format={config.format} ends in {_SUFFIX[config.format]}, got {path}")
    _refuse_other_card(path)
    console = Screen()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"float{_SUFFIX[config.format]}"
        exported = _write(config.format, network, checked_on[0], file)
        first, *rest = checked_on  # one sample by itself: a batch of one is what is most often sent
        check = compare(reference, exported, iter([first[:1], *([first[1:]] if len(first) > 1 else []), *rest]))
        if check.difference > config.tolerance:
            raise ValueError(
                f"the exported network differs from the trained one: logits by {check.difference:.2e} of the largest "
                f"on {check.samples} samples, above tolerance={config.tolerance:g}; nothing was written"
            )
        console.print(
            f"{config.format}: logits equal within {check.difference:.1e} of the largest on {check.samples} samples"
        )
        facts: dict[str, Any] = {"format": config.format, "check": vars(check), "tolerance": config.tolerance}
        if config.int8:
            narrow_file = Path(folder) / "int8.onnx"
            facts["int8"] = _quantise(file, narrow_file, reference, samples, config, console)
            file = narrow_file
        with atomic_file(path) as target:
            target.write(file.read_bytes())
    weights = source.weights_file(name, config.checkpoint)
    facts |= {"from": weights.name, "from_sha256": file_sha256(weights)}
    write_json(card_of(path), _card(source, name, network, path, preprocess, facts))
    console.print(f"wrote {path} ({os.path.getsize(path) / 1e6:.2f} MB) and {card_of(path).name}", soft_wrap=True)
    return path


def _validate(config: DictConfig) -> None:
    if config.format not in get_args(Format):
        raise ValueError(f"format is one of {', '.join(get_args(Format))}, got {config.format!r}")
    if config.int8 and config.format != "onnx":
        raise ValueError(f"int8=true is for format=onnx, got format={config.format}")
    for key in ("check_samples", "calibration_samples"):
        if config[key] < 1:
            raise ValueError(f"{key} must be at least 1, got {config[key]}")
    if not config.tolerance > 0 or not 0 <= config.max_drop <= 1:
        raise ValueError(
            f"tolerance must be above 0 and max_drop within 0 and 1, got {config.tolerance} and {config.max_drop}"
        )


class _Samples:
    """Normalised inputs to check, calibrate and judge on: of ``input``, or of the run's own data."""

    def __init__(self, source: Run, preprocess: Preprocess, config: DictConfig) -> None:
        self._preprocess, self._config = preprocess, config
        overrides = {str(key): value for key, value in config.data.items()}
        self._data = None if config.input is not None else source.data(views="center", **overrides)

    def check(self, count: int) -> Iterator[Tensor]:
        """Up to ``count`` samples, in batches of at least two where there are as many."""
        return self._of("val", count)

    def calibration(self, count: int) -> Iterator[Tensor]:
        """Up to ``count`` samples of the training data, one at a time."""
        for batch in self._of("train", count):
            yield from torch.split(batch, 1)

    def labelled(self, count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Up to ``count`` labelled samples of the validation data; raises where only ``input`` was given."""
        if self._data is None:
            raise ValueError("int8's accuracy needs labelled data: leave input out, or give data.root=<folder>")
        return labelled_batches(self._data, "val", count, view=self._preprocess.view)

    def _of(self, split: Literal["train", "val"], count: int) -> Iterator[Tensor]:
        if self._data is None:
            return batches_of(self._config.input, self._preprocess, count)
        return (inputs for inputs, _ in labelled_batches(self._data, split, count, view=self._preprocess.view))


def _write(format: Format, network: nn.Module, example: Tensor, file: Path) -> Callable[[Tensor], Tensor]:
    """Write the network, and read it back as a callable."""
    example = example if len(example) > 1 else example.repeat(2, *[1] * (example.ndim - 1))
    if format == "onnx":
        write_onnx(network, example, file)
        return OnnxNetwork(file)
    if format == "torch_export":
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, file)
        return load_program(file)
    save_file({key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}, file)
    again = copy.deepcopy(network)
    for tensor in again.state_dict().values():
        tensor.zero_()  # what the file does not bring is not there
    fill(again, load_file(file))
    return again


def _quantise(
    file: Path, path: Path, reference: nn.Module, samples: _Samples, config: DictConfig, console: Console
) -> dict[str, Any]:
    """Quantise, and measure the accuracy beside that of the float network."""
    seen = quantize_onnx(file, path, samples.calibration(config.calibration_samples), narrow=config.narrow)
    whole, count = top1(reference, samples.labelled(config.accuracy_samples))
    small, _ = top1(OnnxNetwork(path), samples.labelled(config.accuracy_samples))
    said = f"top-1 {100 * whole:.2f} % as trained, {100 * small:.2f} % in int8, on {count} validation samples"
    if whole - small > config.max_drop:
        raise ValueError(
            f"int8 loses too much: {said}; max_drop={config.max_drop:g}, nothing was written. More "
            "calibration_samples or narrow=true may help"
        )
    console.print(f"int8: {said}; ranges of {seen} training samples")
    return {
        "calibration_samples": seen, "narrow": bool(config.narrow), "accuracy_samples": count,
        "val/top1_float": whole, "val/top1_int8": small,
    }  # fmt: skip


def _refuse_other_card(path: Path) -> None:
    """Raise where the card would take the place of another file's, such as that of student.safetensors."""
    card = card_of(path)
    there = read_plain(card) if card.is_file() else None
    if there is not None and (not isinstance(there, dict) or there.get("weights") != path.name):
        raise ValueError(f"{card} is the card of another file: choose another name by output=…")


def _card(
    source: Run, name: str, network: nn.Module, path: Path, preprocess: Preprocess, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The student's card, of this file: lineage goes along, what the file is and what it was compared with is added."""
    model = dict(source.config["models"][name])
    if path.suffix == ".safetensors" and hasattr(network, "reparameterize"):
        model["reparameterized"] = True
    left_out = {"weights", "sha256", "model", "input"}
    if not facts["from"].endswith(".safetensors"):
        left_out.add("figures")  # of the best student, and this is a network of a checkpoint
    kept = {key: value for key, value in source.card.items() if key not in left_out}
    return {
        "weights": path.name,
        "sha256": file_sha256(path),
        "model": model,
        **kept,
        "data": source.config["data"],
        "input": None if preprocess.view is None else preprocess.view.arguments,
        "input_shape": ["batch", *preprocess.input_shape],
        "exported": facts,
    }
