"""Latencies are measured in turns, for each engine of the same network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from lit_distill.inference import benchmark
from run_folders import composed, video_overrides, video_root, write_run

pytest.importorskip("onnxruntime")


def test_engines_compute_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(256, 5),
    ).eval()  # fmt: skip
    example = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        expected = network(example)
        for name in ("eager", "onnx"):
            got = benchmark.engine(name, network, example, tmp_path)(example)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
        small = benchmark.engine("int8", network, example, tmp_path)(example)
    assert torch.linalg.norm(small - expected) < 0.2 * torch.linalg.norm(expected)


def test_stages_take_turns() -> None:
    order: list[str] = []
    seconds = benchmark.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=4)
    assert order == ["a", "b"] * (4 + 3)  # three to warm up
    assert [len(values) for values in seconds.values()] == [4, 4]


def test_multiply_adds_of_a_matrix_and_a_convolution() -> None:
    assert benchmark.multiply_adds(nn.Linear(5, 7, bias=False), torch.zeros(3, 5)) == 3 * 5 * 7
    assert benchmark.multiply_adds(nn.Conv2d(2, 3, 3, padding=1), torch.zeros(1, 2, 4, 4)) == 16 * 2 * 3 * 9


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert benchmark.summary([i / 1000 for i in range(1, 101)]) == {"median": 50.5, "p95": 95.0}


def test_a_run_is_measured_and_written(tmp_path: Path) -> None:
    root = video_root(tmp_path / "videos")
    run = write_run(tmp_path / "run", video_overrides(root))
    video = root / "0.mp4"
    result = benchmark.run(
        composed("benchmark", f"run={run}", f"input={video}", "engines=[eager,onnx]", "rounds=2", "threads=1",
                 f"output={tmp_path / 'b.json'}")
    )  # fmt: skip
    assert json.loads((tmp_path / "b.json").read_text()) == result
    times = result["milliseconds"]
    assert set(times) == {"decode", "preprocess", "eager", "onnx"}
    assert all(times["eager"][part]["median"] > 0 for part in ("network", "total"))
    assert result["parameters"] > result["parameters_fused"] > 0
    console = Console(record=True, width=120)
    benchmark.show(console, result)
    assert "onnxruntime" in (text := console.export_text())
    assert "multiply-adds" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"needs input=<a video or an image>"),
        (
            ["input=a.mp4", "engines=[tensorrt]"],
            r"engines is a list of eager, compile, onnx, int8, got \['tensorrt'\]",
        ),
        (["input=a.mp4", "rounds=0"], "rounds and threads must be at least 1"),
        (["input=a.mp4", "weights=b"], "one of the two"),
    ],
)
def test_wrong_arguments_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark.run(composed("benchmark", "run=somewhere", *overrides))
