"""What `index` does: it looks at every video that a data set's lists name, once, before a run does."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lit_distill._cores import available_cores
from lit_distill._files import write_text
from lit_distill._screen import Screen
from lit_distill.data.catalogue.counting import counting
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.video_index import VideoIndex
from lit_distill.data.checking import Job, check_all
from lit_distill.data.datamodule import VideoDataModule
from lit_distill.data.decoding.layout import VideoLayout

_SHOWN = 30  # bad files on the screen; the file has all
_KINDS = 3  # codecs and sizes in the table


@dataclass
class Findings:
    """What was found out about a data set: layouts of what is in order, what is wrong with the others, by name.

    ``known`` is how many the index had already.
    """

    root: Path
    splits: dict[str, list[Sample]]
    layouts: dict[str, VideoLayout] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    known: int = 0


def run(config: DictConfig, *, console: Console | None = None) -> Findings:
    """Check and index what a composed ``index.yaml`` names.

    Raises:
        ValueError: the data are no videos, a list is malformed, or ``check`` is unknown.
        FileNotFoundError: the root or a list is missing.
    """
    console = console or Screen()
    if config.check not in ("headers", "decode"):
        raise ValueError(f"check is 'headers' or 'decode', got {config.check!r}")
    data = instantiate(config.data, _convert_="all")
    if not isinstance(data, VideoDataModule):
        raise ValueError(f"the index is for videos, but data={type(data).__name__} has none; name another data=…")
    data.prepare_data()
    findings = Findings(root=data.root, splits=data.listed())
    index = VideoIndex(data.root)
    index.load()
    source, jobs = data.source.bare(), []
    for sample in {sample.name: sample for samples in findings.splits.values() for sample in samples}.values():
        stamp = data.source.stamp(sample)
        entry = None if stamp is None else index.find(sample.name, stamp=stamp, stream=data.video_stream)
        if entry is not None and config.check in ("headers", entry.check):
            findings.layouts[sample.name] = entry.layout
        else:
            jobs.append(Job(sample, source, stamp, config.check))
    findings.known = len(findings.layouts)
    workers = available_cores() if config.workers is None else config.workers
    with counting(len(jobs), console, f"checking {config.check}", "videos") as advance:
        for result in check_all(jobs, workers=min(workers, len(jobs))):
            if result.reason:
                findings.bad[result.name] = result.reason
            elif result.layout is not None:
                findings.layouts[result.name] = result.layout
                index.put(result.name, result.layout, check=config.check, stamp=result.stamp)
            advance()
    return findings


def show(console: Console, findings: Findings, bad_list: Path) -> None:
    """Print the table and the bad files, and write these to ``bad_list``, a line ``path<tab>reason`` each."""
    table = Table()
    for column in ("list", "videos", "frames", "hours", "codecs", "sizes", "bad"):
        table.add_column(column, justify="left" if column in ("list", "codecs", "sizes") else "right", overflow="fold")
    for name, samples in findings.splits.items():
        table.add_row(name, *_row(samples, findings))
    console.print(table)
    if findings.known:
        console.print(f"{findings.known} were known from earlier checks", highlight=False)
    prefix = os.path.join(os.path.normpath(findings.root), "")
    bad = {name.removeprefix(prefix): reason for name, reason in sorted(findings.bad.items())}
    if not bad:
        if bad_list.exists():
            write_text(bad_list, "")
        console.print("all videos are in order", highlight=False)
        return
    write_text(bad_list, "".join(f"{path}\t{reason}\n" for path, reason in bad.items()))
    for path, reason in list(bad.items())[:_SHOWN]:
        console.print(f"{path}: {reason}", highlight=False, markup=False, soft_wrap=True)
    more = f"and {len(bad) - _SHOWN} more; " if len(bad) > _SHOWN else ""
    console.print(
        f"{more}{len(bad)} bad, listed in {bad_list}: mend them or take them out of the lists,", highlight=False
    )
    console.print(f"or train with data.on_bad=quarantine data.max_bad={len(bad)}", highlight=False)


def _row(samples: list[Sample], findings: Findings) -> list[str]:
    paths = [sample.name for sample in samples]
    layouts = [findings.layouts[path] for path in paths if path in findings.layouts]
    frames = sum(layout.info.frames for layout in layouts) + sum(
        sample.frames or 0 for sample in samples if sample.name not in findings.bad
    )
    seconds = sum(layout.info.frames / layout.info.fps for layout in layouts if layout.info.fps > 0)
    codecs = Counter(layout.info.codec for layout in layouts)
    sizes = Counter(f"{layout.info.width}x{layout.info.height}" for layout in layouts)
    bad = sum(path in findings.bad for path in paths)
    return [f"{len(paths):,}", f"{frames:,}", f"{seconds / 3600:.2f}", _kinds(codecs), _kinds(sizes), f"{bad:,}"]


def _kinds(counted: Mapping[str, int]) -> str:
    most = Counter(counted).most_common(_KINDS)
    if len(counted) == 1:
        return most[0][0]
    others = f", {len(counted) - _KINDS} others" if len(counted) > _KINDS else ""
    return ", ".join(f"{kind} ({count:,})" for kind, count in most) + others


def main(config: DictConfig) -> None:
    """Check and index a data set; exit code 1 where videos are bad."""
    console = Screen()
    findings = run(config, console=console)
    show(console, findings, Path(config.bad_list))
    if findings.bad:
        sys.exit(1)
