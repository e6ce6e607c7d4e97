"""The way back: RGB frames into small video files, for generated data sets and tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray


def write_video(
    path: str | os.PathLike[str],
    frames: NDArray[np.uint8],
    *,
    fps: int = 25,
    codec: str = "mpeg4",
    options: Mapping[str, str] | None = None,
) -> None:
    """Encode RGB frames into a video file, in one thread so that equal frames give equal bytes.

    Args:
        path: the file to write; its ending names the container.
        frames: (T, H, W, 3), uint8; even height and width.
        fps: frames per second.
        codec: name of an FFmpeg encoder, such as ``"mpeg4"`` or ``"libx264"``.
        options: of the encoder, such as ``{"crf": "23"}``.
    """
    with av.open(os.fspath(path), "w") as container:
        settings = {"threads": "1", **(options or {})}
        stream = cast("av.VideoStream", container.add_stream(codec, rate=fps, options=settings))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
