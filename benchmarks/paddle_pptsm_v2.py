"""PP-TSMv2 in inference form in the origin's framework, and a worker that times it; run by an interpreter with Paddle.

`benchmarks/inference.py --paddle-python <interpreter>` starts it with a folder that holds the fused weights, the input
and what is to be expected of them, and asks for one run a line on the standard input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import inference, nn
from paddle.nn import functional as F

# width at scale 1, kernel, gated, two pointwise convolutions, shortcut
STAGES = ((128, 3, False, False, False), (256, 3, False, False, False), (512, 5, True, True, False),
          (1024, 5, False, False, True))  # fmt: skip
DEPTHS = (2, 2, 6, 2)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    """A convolution with BatchNorm folded into its weights."""
    return nn.Conv2D(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups)


class Block(nn.Layer):  # type: ignore[misc]
    """Depthwise (its branches fused) and pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, stage: Sequence[Any]) -> None:
        super().__init__()
        _, kernel, gated, self.split, shortcut = stage
        self.shortcut = shortcut and stride == 1 and inputs == outputs
        self.dw = conv(inputs, inputs, kernel, stride, inputs)
        self.gate = None
        if gated:
            self.gate = nn.LayerList([conv(inputs, inputs // 4, 1), conv(inputs // 4, inputs, 1)])
        half = outputs // 2
        self.pw = nn.LayerList([conv(inputs, half, 1), conv(half, outputs, 1)] if self.split
                               else [conv(inputs, outputs, 1)])  # fmt: skip

    def forward(self, x: Any) -> Any:
        y = F.relu(self.dw(x))
        if self.gate is not None:
            y = y * F.sigmoid(self.gate[1](F.relu(self.gate[0](F.adaptive_avg_pool2d(y, 1)))))
        for pointwise in self.pw:
            y = F.relu(pointwise(y))
        return y + x if self.shortcut else y


class PPTSMv2(nn.Layer):  # type: ignore[misc]
    """Clips (B, T, 3, H, W) to logits (B, C)."""

    def __init__(self, classes: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.stem = nn.LayerList([conv(3, 32, 3, 2), Block(32, 64, 1, (64, 3, False, False, False))])
        width, blocks = 64, []
        for stage, depth in zip(STAGES, DEPTHS, strict=True):
            for block in range(depth):
                blocks.append(Block(width, stage[0], 1 if block else 2, stage))
                width = stage[0]
        self.blocks = nn.LayerList(blocks)
        self.attention = nn.Linear(frames, frames)
        self.last_conv = nn.Conv2D(width, 1280, 1, bias_attr=False)
        self.fc = nn.Linear(1280, classes)

    def forward(self, video: Any) -> Any:
        x = paddle.reshape(video, [-1, *video.shape[2:]])
        x = self.stem[1](F.relu(self.stem[0](x)))
        for index, block in enumerate(self.blocks):
            if index == DEPTHS[0] + DEPTHS[1]:
                means = paddle.reshape(paddle.mean(x, axis=[1, 2, 3]), [-1, self.frames])
                x = x * paddle.reshape(F.sigmoid(self.attention(means)), [-1, 1, 1, 1])
                x = F.temporal_shift(x, self.frames, 1.0 / self.frames)
            x = block(x)
        x = F.relu(self.last_conv(F.adaptive_avg_pool2d(x, 1))) * 0.8  # the published dropout in evaluation
        x = paddle.mean(paddle.reshape(x, [-1, self.frames, 1280]), axis=1)
        return self.fc(x)


def predictor(folder: Path, threads: int) -> Any:
    """Paddle's own deployment form: a saved program, oneDNN, its graph optimised."""
    weights = dict(np.load(folder / "weights.npz"))
    clip = np.load(folder / "clip.npy")
    network = PPTSMv2(len(weights["fc.bias"]), clip.shape[1])
    missing, unexpected = network.set_state_dict({key: paddle.to_tensor(value) for key, value in weights.items()})
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    network.eval()
    saved = str(folder / "paddle")
    paddle.jit.save(network, saved, input_spec=[paddle.static.InputSpec(list(clip.shape), "float32", "clips")])
    program = next(path for path in (f"{saved}.json", f"{saved}.pdmodel") if Path(path).is_file())
    config = inference.Config(program, f"{saved}.pdiparams")
    config.disable_gpu()
    config.enable_mkldnn()
    config.set_cpu_math_library_num_threads(threads)
    config.switch_ir_optim(True)
    config.disable_glog_info()
    return inference.create_predictor(config)


def main() -> None:
    """Answer every line with the seconds of one run."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    runs = predictor(folder, threads)
    given = runs.get_input_handle(runs.get_input_names()[0])
    taken = runs.get_output_handle(runs.get_output_names()[0])
    clip = np.load(folder / "clip.npy")
    told: dict[str, Any] = {"version": paddle.__version__}
    for line in sys.stdin:
        del line
        wall, cpu = time.perf_counter(), time.process_time()
        given.copy_from_cpu(clip)
        runs.run()
        logits = taken.copy_to_cpu()
        told |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "logits": logits.tolist()}
        print("ANSWER " + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
