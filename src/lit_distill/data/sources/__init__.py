"""What videos are read from: one interface, one file a format.

* :mod:`.base`: the interface, :class:`Source` and :class:`Video`; a custom source subclasses it.
* :mod:`.videos`: video files; :mod:`.frames`: folders of frames; :mod:`.shards`: video files in tar shards.
* :mod:`.images`: folders of images, which have no frames and are read by a data module of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, get_args

from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.video_index import VideoIndex
from lit_distill.data.decoding.layout import Limits
from lit_distill.data.sources.base import Source, Video
from lit_distill.data.sources.frames import FrameFolders
from lit_distill.data.sources.shards import Shards
from lit_distill.data.sources.videos import VideoFiles

__all__ = ["FrameFolders", "Shards", "Source", "Video", "VideoFiles", "source_of"]

Format: TypeAlias = Literal["video", "frames", "shards"]

_FORMATS: Final = get_args(Format)


def source_of(
    format: str,
    *,
    root: str | os.PathLike[str],
    roots: Sequence[str | os.PathLike[str]] = (),
    suffix: str = "img_{:05}.jpg",
    limits: Limits | None = None,
    index: bool = True,
    stream: int | None = None,
) -> Source:
    """The source that ``data.format`` names.

    Raises:
        ValueError: there is no such format.

    Example:
        >>> source_of("frames", root="videos", suffix="{}.png").suffix
        '{}.png'
    """
    if format not in _FORMATS:
        raise ValueError(f"data.format is one of {', '.join(_FORMATS)}, got {format!r}; or give data.source")
    limits = limits or Limits()
    if format == "frames":
        return FrameFolders(suffix=suffix, limits=limits, inside=(root, *roots))
    known = VideoIndex(root) if index else None
    if format == "video":
        return VideoFiles(limits=limits, index=known, stream=stream)
    return Shards(archives=Archives(root), limits=limits, index=known, stream=stream)
