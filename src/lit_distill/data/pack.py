"""What `pack` does: it writes a data set's videos as tar shards, as they are."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track

from lit_distill._files import atomic_file, expand_home, write_text
from lit_distill._screen import Screen
from lit_distill.data import Sample, VideoDataModule
from lit_distill.data.sources import VideoFiles
from lit_distill.data.sources.shards import VIDEO_ENDINGS

_SPLITS = ("train", "val", "test")


def pack(
    samples: Iterable[Sample],
    folder: str | os.PathLike[str],
    prefix: str,
    *,
    shard_bytes: int,
    root: str | os.PathLike[str] = ".",
) -> list[str]:
    """Write videos into tar shards in WebDataset's layout: ``<number>.mp4`` and ``<number>.json`` for each sample.

    The number is the sample's position; the JSON object has its ``label``, from 0, and its path in the ``root`` as
    ``source``. Each shard is written whole or not at all, and equal videos give equal bytes.

    Args:
        samples: of video files.
        folder: where the shards go.
        prefix: of their names: ``<prefix>-000000.tar`` and so on.
        shard_bytes: after so many bytes of videos a new shard begins.
        root: folder that ``source`` is relative to.

    Returns:
        the shards' names.

    Raises:
        ValueError: a sample is no file of a kind that shards hold.
        OSError: a video can't be read or a shard can't be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.mp4").write_bytes(b"0123")
        ...     names = pack([Sample(f"{folder}/a.mp4", 2)], folder, "train", shard_bytes=1000, root=folder)
        ...     with tarfile.open(f"{folder}/{names[0]}") as shard:
        ...         names, shard.getnames(), shard.extractfile("00000000.json").read()
        (['train-000000.tar'], ['00000000.mp4', '00000000.json'], b'{"label": 2, "source": "a.mp4"}')
    """
    if shard_bytes < 1:
        raise ValueError(f"a shard needs at least 1 byte, got {shard_bytes}: set shard_mb")
    names: list[str] = []
    left = enumerate(samples)
    first = next(left, None)
    while first is not None:
        names.append(f"{prefix}-{len(names):06}.tar")
        with (
            atomic_file(Path(folder, names[-1])) as file,
            tarfile.open(fileobj=cast("Any", file), mode="w", format=tarfile.USTAR_FORMAT) as shard,
        ):
            first = _fill(shard, first, left, shard_bytes, root)
    return names


def run(config: DictConfig) -> dict[str, list[str]]:
    """Pack the splits of a data set as a composed ``pack.yaml`` says; the shards of each.

    Raises:
        ValueError: the data are no listed videos, or there are shards in the output already.
    """
    console = Screen()
    if not config.shard_mb > 0:
        raise ValueError(f"shard_mb must be above 0, got {config.shard_mb}")
    data = instantiate(config.data, _convert_="all")
    if not isinstance(data, VideoDataModule) or not isinstance(data.source, VideoFiles) or data.source.packed:
        raise ValueError("only videos that list files name are packed: data.format=video")
    unknown = [split for split in config.splits if split not in _SPLITS]
    if unknown:
        raise ValueError(f"splits are of {', '.join(_SPLITS)}, got {', '.join(map(str, unknown))}")
    output = expand_home(config.output)
    there = sorted(output.glob("*.tar")) if output.is_dir() else []
    if there:
        raise ValueError(f"{output} holds shards already, such as {there[0].name}: name another folder by output=…")
    data.prepare_data()
    packed: dict[str, list[str]] = {}
    for split in config.splits:
        data.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        samples: Sequence[Sample] = data.datasets[split].samples
        shown = track(samples, f"packing {split}", console=console, disable=not console.is_terminal)
        packed[split] = pack(shown, output, split, shard_bytes=int(config.shard_mb * 1e6), root=data.root)
        write_text(output / f"{split}.txt", "".join(f"{name}\n" for name in packed[split]))
        said = f"{split}: {len(samples)} videos in {len(packed[split])} shards, {output / split}.txt"
        console.print(said, highlight=False, soft_wrap=True)
    return packed


def _fill(
    shard: tarfile.TarFile,
    first: tuple[int, Sample],
    left: Iterator[tuple[int, Sample]],
    limit: int,
    root: str | os.PathLike[str],
) -> tuple[int, Sample] | None:
    """Add samples until a shard is full; the sample that did not fit any more, None if all are in."""
    size = 0
    upcoming: tuple[int, Sample] | None = first
    while upcoming is not None:
        number, sample = upcoming
        ending = Path(sample.path).suffix.removeprefix(".").lower()
        if sample.member is not None or sample.frames is not None or ending not in VIDEO_ENDINGS:
            raise ValueError(f"{sample.name} can't be packed: expected a file that ends in {', '.join(VIDEO_ENDINGS)}")
        with open(sample.path, "rb") as video:
            length = os.fstat(video.fileno()).st_size
            if size and size + length > limit:
                return upcoming
            _add(shard, f"{number:08}.{ending}", video, length)
        size += length
        source = os.path.relpath(sample.path, root)
        record = json.dumps({"label": sample.label, "source": source}).encode()
        _add(shard, f"{number:08}.json", io.BytesIO(record), len(record))
        upcoming = next(left, None)
    return None


def _add(shard: tarfile.TarFile, name: str, content: BinaryIO, size: int) -> None:
    header = tarfile.TarInfo(name)  # of no time and no owner: equal videos give equal shards
    header.size, header.mode = size, 0o644
    shard.addfile(header, content)
