from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from lit_distill.data import Sample, VideoDataModule, VideoError
from lit_distill.data.catalogue.archives import Archives, MemberFile
from lit_distill.data.catalogue.lists import ListFile
from lit_distill.data.catalogue.samples import Member
from lit_distill.data.pack import pack, run
from lit_distill.data.sources import shards as shards_module
from lit_distill.data.sources.shards import ShardOrder, Shards, expand, scan_shard, shard_names

from ..conftest import write_lines
from ..test_datamodule import make
from ..test_loading import epochs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def packed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set ``videos`` in shards of a few samples, and the lists train.txt and val.txt of them."""
    root = tmp_path_factory.mktemp("packed")
    data = make(videos)
    data.setup("fit")
    for split in ("train", "val"):
        names = pack(data.datasets[split].samples, root, split, shard_bytes=8_000, root=videos)
        assert len(names) > 1
        write_lines(root / f"{split}.txt", names)
    return root


def make_shards(packed: Path | str, **arguments: Any) -> VideoDataModule:
    return make(packed, format="shards", **arguments)  # type: ignore[arg-type]


def same(one: Iterator[Any], other: Iterator[Any]) -> int:
    count = 0
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        count += 1
    return count


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", ["center", "dense"])
def test_batches_are_those_of_the_files(videos: Path, packed: Path, views: str, workers: int) -> None:
    given: dict[str, Any] = {"views": views, "eval_batch_size": 4}
    assert same(epochs(make(videos, **given)), epochs(make_shards(packed, **given, num_workers=workers))) == 2 * 5


def test_with_the_clip_cache_and_patterns(videos: Path, packed: Path) -> None:
    last = len(list(packed.glob("train-*.tar"))) - 1
    data = make_shards(packed, train_list=f"train-{{000000..{last:06}}}.tar", cache="memory")
    assert same(epochs(make(videos, cache="memory")), epochs(data)) == 2 * 5
    assert data.clip_cache is not None
    assert data.clip_cache.stats()[:2] == (12 + 7, 12 + 7)


@pytest.mark.parametrize("shuffle", ["samples", "shards"])
def test_ranks_and_workers_neither_lose_nor_repeat(packed: Path, monkeypatch: pytest.MonkeyPatch, shuffle: str) -> None:
    trained, seen = Counter[int](), Counter[int]()
    orders = []
    for rank in (0, 1):
        data = make_shards(packed, num_workers=2, batch_size=2, shuffle=shuffle, shuffle_window=3)
        monkeypatch.setattr(data, "_replicas", lambda rank=rank: (2, rank))
        loader = data.train_dataloader()
        orders.append([index for _, _, indices in loader for index in indices.tolist()])
        trained.update(orders[-1])
        seen.update(index for _, _, indices in data.val_dataloader() for index in indices.tolist())
    assert trained == Counter(range(12))
    assert seen == Counter(range(7))
    assert len(orders[0]) == len(orders[1]) == 6


def test_the_order_of_shards_is_a_function_of_seed_and_epoch() -> None:
    groups = np.repeat(np.arange(20), 10)
    order = ShardOrder(groups, window=30, seed=3)
    one = order(4)
    assert sorted(one) == list(range(200))
    assert one == ShardOrder(groups, window=30, seed=3)(4)
    assert one != order(5)
    assert one != ShardOrder(groups, window=30, seed=4)(4)
    for start in range(0, 200, 30):
        assert len({position // 10 for position in one[start : start + 30]}) <= 3
    assert one[:30] != sorted(one[:30])


def test_a_shard_is_looked_through_once(packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cache.parent / "copy"
    shutil.copytree(packed, root)
    scanned: list[str] = []

    def count(archives: Archives, path: str, size: int) -> Any:
        scanned.append(path)
        return scan_shard(archives, path, size)

    monkeypatch.setattr(shards_module, "scan_shard", count)
    shards = len(list(root.glob("*.tar")))
    for _ in range(2):
        make_shards(root).setup("fit")
        assert len(scanned) == shards
    os.utime(root / "train-000000.tar", ns=(1, 1))
    make_shards(root).setup("fit")
    assert len(scanned) == shards + 1
    for file in (cache / "shards").iterdir():
        file.write_text(file.read_text()[:-9])
    make_shards(root).setup("fit")
    assert len(scanned) == 2 * shards + 1


class CountedFiles(LocalFileSystem):  # type: ignore[misc]
    """An object store in a folder that tells what it was asked for."""

    protocol = "counted"
    ranges: ClassVar[list[tuple[str, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: str, remove_trailing_slash: bool = False) -> str:
        stripped: str = super()._strip_protocol(str(path).removeprefix("counted://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        assert start is not None
        assert end is not None
        self.ranges.append((path, end - start))
        return super().cat_file(path, start=start, end=end, **options)


def test_an_object_store_is_asked_once_a_sample(videos: Path, packed: Path) -> None:
    fsspec.register_implementation("counted", CountedFiles, clobber=True)
    url = f"counted://{packed}"
    data = make_shards(url)
    sizes = {(sample.path, sample.member) for sample in _samples(data)}
    assert all(path.startswith("counted://") for path, _ in sizes)
    CountedFiles.ranges.clear()
    assert same(epochs(make(videos)), epochs(data)) == 2 * 5
    wanted = Counter((path.removeprefix("counted://"), member.size) for path, member in sizes if member is not None)
    assert set(CountedFiles.ranges) == set(wanted)
    assert len(CountedFiles.ranges) == 2 * (12 + 7)


def _samples(data: VideoDataModule) -> list[Sample]:
    data.setup("fit")
    return [*data.datasets["train"].samples, *data.datasets["val"].samples]


def test_a_url_is_for_shards_only(packed: Path) -> None:
    with pytest.raises(ValueError, match=r"is a URL, which goes with data\.format=shards, not video"):
        make("s3://bucket/videos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.shuffle=shards goes with data\.format=shards, not video"):
        make(packed, shuffle="shards")
    with pytest.raises(ValueError, match=r"data\.shuffle_window must be at least 1, got 0"):
        make_shards(packed, shuffle_window=0)


def test_unreadable_videos_are_quarantined_by_their_names(packed: Path, tmp_path: Path) -> None:
    root = tmp_path / "some"
    shutil.copytree(packed, root)
    first = _samples(make_shards(root))[0]
    assert first.member is not None
    with open(first.path, "r+b") as shard:
        shard.seek(first.member.offset)
        shard.write(bytes(first.member.size))
    with pytest.raises(VideoError, match=r"train-000000\.tar/00000000\.mp4"):
        list(epochs(make_shards(root)))
    data = make_shards(root, on_bad="quarantine", max_bad=1, batch_size=3)
    indices = [i for _, _, part in data.train_dataloader() for i in part.tolist()]
    assert sorted(indices) == list(range(1, 12))


# Hostile and damaged shards -------------------------------------------------------------------------------------------


def tar(path: Path, *members: tuple[str, bytes], format: int = tarfile.USTAR_FORMAT, **fields: Any) -> Path:
    """Write an archive; ``fields`` are set on the header of its last member."""
    with tarfile.open(path, "w", format=format) as archive:
        for number, (name, content) in enumerate(members):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if number == len(members) - 1:
                for key, value in fields.items():
                    setattr(header, key, value)
            archive.addfile(header, io.BytesIO(content))
    return path


def samples_of(root: Path, listed: str, **given: Any) -> list[Sample]:
    return Shards(archives=Archives(root)).samples(ListFile(file=listed, key="data.train_list", root=root, **given))


def scan(path: Path) -> list[tuple[str, str, bytes, int | str]]:
    archives = Archives(path.parent)
    entries = scan_shard(archives, str(path), path.stat().st_size)
    return [(e.key, e.video.name, archives.read(str(path), e.video.offset, e.video.size), e.label) for e in entries]


GOOD = [("a.mp4", b"video"), ("a.cls", b"3\n")]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tar_writers_write(tmp_path: Path, format: int) -> None:
    long = "d" * 90 + "/" + "é" * 70 if format != tarfile.USTAR_FORMAT else "d" * 90 + "/" + "e" * 70
    path = tar(
        tmp_path / "a.tar",
        ("x/0.MP4", b"one"),
        ("x/0.json", json.dumps({"label": 7, "other": "ü"}).encode()),
        ("x/0.txt", b"a caption"),
        (f"{long}.webm", b"two" * 400),
        (f"{long}.cls", b"4"),
        ("./c.mp4", b""),
        ("./c.json", b'{"label": "swim"}'),
        format=format,
    )
    assert scan(path) == [
        ("x/0", "x/0.MP4", b"one", 7),
        (long, f"{long}.webm", b"two" * 400, 4),
        ("c", "./c.mp4", b"", "swim"),
    ]


def test_folders_among_the_members_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.mp4").write_bytes(b"v")
    (tmp_path / "d" / "a.cls").write_bytes(b"0")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "d", "d")
    assert [key for key, *_ in scan(tmp_path / "a.tar")] == ["d/a"]


@pytest.mark.parametrize(
    ("members", "fields", "reason"),
    [
        ([*GOOD, ("../b.mp4", b"")], {}, r"member '\.\./b\.mp4' leads out of the archive"),
        ([*GOOD, ("x/../../b.txt", b"")], {}, "leads out of the archive"),
        ([*GOOD, (f"../{'a' * 90}/{'b' * 90}", b"")], {}, r"member '\.\./a{90}/b{6} …' leads out of the archive"),
        ([*GOOD, ("/etc/passwd", b"")], {}, "member '/etc/passwd' leads out"),
        ([*GOOD, ("b.mp4", b"")], {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "'b.mp4' is a symbolic link"),
        ([*GOOD, ("b.mp4", b"")], {"type": tarfile.LNKTYPE, "linkname": "a.mp4"}, "'b.mp4' is a hard link"),
        ([*GOOD, ("b.mp4", b"")], {"type": tarfile.CHRTYPE}, "'b.mp4' is a device"),
        ([*GOOD, ("b.mp4", b"")], {"type": tarfile.FIFOTYPE}, "'b.mp4' is a pipe"),
        ([*GOOD, ("b.mp4", b"")], {"type": b"S"}, "'b.mp4' is neither a file nor a folder"),
        ([*GOOD, ("b\udcff.mp4", b"")], {}, "has a name that is not UTF-8"),
        ([("a.mp4", b"video")], {}, "the sample 'a' has no label: expected a.cls or a.json"),
        ([("a.cls", b"3")], {}, "the sample 'a' has 0 videos"),
        ([("a.mp4", b""), ("a.avi", b""), ("a.cls", b"3")], {}, "the sample 'a' has 2 videos"),
        ([*GOOD, ("b.mp4", b""), ("b.cls", b"1"), *GOOD], {}, "the sample 'a' comes twice"),
        ([("a.mp4", b""), ("a.json", b"[" * 5000)], {}, "'a.json' holds no label"),
        ([("a.mp4", b""), ("a.json", b'{"label": true}')], {}, "'a.json' holds no label"),
        ([("a.mp4", b""), ("a.json", b'{"label": 1.5}')], {}, "'a.json' holds no label"),
        ([("a.mp4", b""), ("a.cls", b"")], {}, "'a.cls' holds no label"),
    ],
)
def test_hostile_shards_are_refused_by_name(
    tmp_path: Path, members: list[tuple[str, bytes]], fields: dict[str, Any], reason: str
) -> None:
    path = tar(tmp_path / "bad.tar", *members, **fields)
    with pytest.raises(ValueError, match=rf"bad\.tar: .*{reason}.*; the shard is refused"):
        scan(path)


def with_size(content: bytes, field: bytes) -> bytes:
    """The archive with the size in its first header replaced, and the header's sum mended."""
    header = bytearray(content[:512])
    header[124:136] = field.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda content: content[:-10240], "its end is missing|has 5 bytes, beyond its end"),
        (lambda content: content[:1500], "its end is missing"),
        (lambda content: content[:514], "beyond its end"),
        (lambda content: b"", "its end is missing"),
        (lambda content: content[:200], "its end is missing"),
        (lambda content: b"\x1f\x8b" + content[2:], "not an uncompressed tar archive"),
        (lambda content: content[:1024] + b"\1" * 512 + content[1536:], "no tar header at byte 1024"),
        (lambda content: with_size(content, b"77777777777"), "has 8589934591 bytes, beyond its end"),
        (lambda content: with_size(content, b"\x80" + b"\x7f" * 11), "beyond its end"),
        (lambda content: with_size(content, b"\xff" * 12), "beyond its end"),
        (lambda content: with_size(content, b"12x"), "not an uncompressed tar archive"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, harm: Callable[[bytes], bytes], reason: str) -> None:
    path = tar(tmp_path / "bad.tar", *GOOD)
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"bad\.tar: .*({reason}).*; the shard is refused"):
        scan(path)


def test_mutated_shards_are_refused_or_read_within_bounds(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", ("x/0.mp4", b"one"), ("x/0.cls", b"1"), format=tarfile.PAX_FORMAT).read_bytes()[
        :3072
    ]
    rng = np.random.default_rng(0)
    path = tmp_path / "b.tar"
    refusals: list[str] = []
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        header = content[:512]
        header[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(content[: int(rng.integers(1, len(content) + 1))])
        try:
            entries = scan_shard(Archives(tmp_path), str(path), path.stat().st_size)
        except ValueError as error:
            refusals.append(str(error))
            continue
        assert all(0 <= e.video.offset <= e.video.offset + e.video.size <= len(content) for e in entries)
    assert all(refusal.startswith(f"{path}: ") for refusal in refusals)


def test_a_shard_cut_short_later_is_an_error_of_the_video(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    for size in (9, 65 << 20):
        sample = Sample(str(tmp_path / "a.tar"), 0, member=Member("x.mp4", 2, size))
        with pytest.raises(VideoError, match=r"a\.tar/x\.mp4: its archive ends within it"):
            MemberFile(Archives(tmp_path), sample).read()
    sample = Sample(str(tmp_path / "b.tar"), 0, member=Member("x.mp4", 2, 3))
    with pytest.raises(VideoError, match=r"b\.tar/x\.mp4"):
        MemberFile(Archives(tmp_path), sample).read()


def test_a_member_reads_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(b"..0123456789..")
    for most in (100, 1):
        monkeypatch.setattr("lit_distill.data.catalogue.archives._AT_ONCE", most)
        with Archives(tmp_path).source(Sample(str(tmp_path / "a.tar"), 0, member=Member("x", 2, 10))) as file:
            assert (file.read(3), file.tell(), file.seek(-2, os.SEEK_END), file.read(5), file.read()) == (
                b"012", 3, 8, b"89", b""
            )  # fmt: skip
            assert (file.seek(4), file.readinto(bytearray(3)), file.tell(), file.seek(1, os.SEEK_CUR)) == (4, 3, 7, 8)


# Lists and labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a-{3..1}.tar", "runs backwards"),
        ("a-{0..99999999}.tar", "more than 250,000 shards"),
        ("{0..9999}{0..9999}.tar", "more than 250,000 shards"),
        ("a-{x}.tar", "expected a range"),
        ("a-{0..1.tar", "a brace without its partner"),
    ],
)
def test_bad_patterns(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        expand(pattern)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("../a.tar", "is not inside the root"),
        ("/a.tar", "is not inside the root"),
        ("s3://bucket/a.tar", "is not inside the root"),
        ("file:///a.tar", "is not inside the root"),
        ("a.tar.gz", "an uncompressed .tar"),
        ("a.tar\na.tar", "'a.tar' comes twice"),
        ("", "no shards"),
    ],
)
def test_bad_lists(tmp_path: Path, line: str, reason: str) -> None:
    write_lines(tmp_path / "train.txt", [line])
    with pytest.raises(ValueError, match=reason):
        shard_names("train.txt", Archives(tmp_path))


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.tar").symlink_to(tar(tmp_path / "a.tar", *GOOD))
    with pytest.raises(ValueError, match=r"a link that leads out of data\.root"):
        samples_of(tmp_path / "root", "a.tar", num_classes=4)
    samples = samples_of(tmp_path / "root", "a.tar", num_classes=4, roots=[tmp_path])
    assert [sample.label for sample in samples] == [3]


def test_labels(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", *GOOD, ("b.mp4", b""), ("b.json", b'{"label": "run"}'))
    given: dict[str, Any] = {"num_classes": 3, "first_label": 1}
    samples = samples_of(tmp_path, "a.tar", class_names=("jump", "run", "swim"), **given)
    assert [sample.label for sample in samples] == [2, 1]
    with pytest.raises(ValueError, match=r"the label 'run' of 'b' is out of range: expected 1 to 3"):
        samples_of(tmp_path, "a.tar", **given)
    with pytest.raises(ValueError, match="the label 3 of 'a' is out of range: expected 0 to 2"):
        samples_of(tmp_path, "a.tar", num_classes=3)
    with pytest.raises(FileNotFoundError, match=r"no shard .*gone\.tar, set data\.root="):
        samples_of(tmp_path, "gone.tar", num_classes=3)
    with pytest.raises(FileNotFoundError, match=r"no list of shards .*train\.txt, set data\.train_list="):
        make_shards(tmp_path).setup("fit")


# Packing --------------------------------------------------------------------------------------------------------------


def test_packing(videos: Path, tmp_path: Path) -> None:
    data = make(videos)
    data.setup("fit")
    samples = data.datasets["train"].samples
    one, two = (pack(samples, tmp_path / name, "train", shard_bytes=8_000, root=videos) for name in "ab")
    assert one == two
    for name in one:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    write_lines(tmp_path / "a" / "list.txt", one)
    found = samples_of(tmp_path / "a", "list.txt", num_classes=3)
    assert [sample.label for sample in found] == [sample.label for sample in samples]
    for sample, original in zip(found, samples, strict=True):
        with Archives(tmp_path / "a").source(sample) as file:
            assert file.read() == Path(original.path).read_bytes()
    with tarfile.open(tmp_path / "a" / one[0]) as archive:
        record = archive.extractfile("00000000.json")
        assert record is not None
        assert json.load(record) == {"label": 0, "source": "jump/0.mp4"}
    with pytest.raises(ValueError, match="can't be packed"):
        pack([Sample("list.m3u8", 0)], tmp_path / "c", "train", shard_bytes=9)
    assert list((tmp_path / "c").iterdir()) == []


def test_the_command(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create(
        {
            "data": {
                "_target_": "lit_distill.data.VideoDataModule",
                "root": str(videos),
                "train_list": "train.txt",
                "val_list": "val.txt",
                "num_classes": 3,
            },
            "output": str(tmp_path / "out"),
            "shard_mb": 0.008,
            "splits": ["train", "val"],
        }
    )
    packed = run(config)
    assert len(packed["train"]) > 1
    assert (tmp_path / "out" / "train.txt").read_text().split() == packed["train"]
    assert "train: 12 videos in" in capsys.readouterr().out
    assert len(_samples(make_shards(tmp_path / "out"))) == 12 + 7
    with pytest.raises(ValueError, match="holds shards already"):
        run(config)
