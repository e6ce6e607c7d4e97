"""Text files as other programs write them: encodings, quotes, comments, a field too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_distill.data import VideoDataModule
from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.lists import read_class_names, read_list
from lit_distill.data.preprocess import Preprocess
from lit_distill.data.sources.shards import shard_names
from lit_distill.inference.inputs import find_inputs
from lit_distill.untrusted.plain import read_plain

TEXT = "a/视频 é.mp4 1\nb.mp4 0\n"


def listed(tmp_path: Path, text: str | bytes, written: str = "utf-8", **given: Any) -> list[tuple[str, int]]:
    file = tmp_path / "list.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode(written))
    samples = read_list(file, root=tmp_path, num_classes=9, **given)
    return [(str(Path(sample.path).relative_to(tmp_path)), sample.label) for sample in samples]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(encoding: str, tmp_path: Path) -> None:
    assert listed(tmp_path, TEXT, encoding) == [("a/视频 é.mp4", 1), ("b.mp4", 0)]
    assert listed(tmp_path, TEXT, encoding, encoding="gbk" if encoding != "utf-8" else "utf-8")[1] == ("b.mp4", 0)


@pytest.mark.parametrize(("encoding", "text"), [("gbk", "a.mp4 0\n视频.mp4 1\n"), ("latin-1", "a.mp4 0\né.mp4 1\n")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_another_encoding_is_said_with_file_line_and_remedy(encoding: str, text: str, end: str, tmp_path: Path) -> None:
    content = text.replace("\n", end).encode(encoding)
    with pytest.raises(ValueError, match=r"list\.txt:2: expected text in UTF-8, got the byte 0x..: .*data\.encoding"):
        listed(tmp_path, content)
    assert listed(tmp_path, content, encoding=encoding)[1] == (text.split()[2], 1)
    with pytest.raises(ValueError, match=r"list\.txt:2: expected text in UTF-8"):
        read_class_names(tmp_path / "list.txt", 2)
    assert read_class_names(tmp_path / "list.txt", 2, encoding=encoding) == tuple(text.splitlines())


def test_the_line_is_right_in_a_long_file(tmp_path: Path) -> None:
    lines = [f"folder/video {number}.mp4 1\n".encode() for number in range(40_000)]
    lines[33_332] = "视频.mp4 1\n".encode("gbk")
    with pytest.raises(ValueError, match=r"list\.txt:33333: "):
        listed(tmp_path, b"".join(lines))


def test_an_unknown_encoding_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.txt: expected the encoding utf-8, gbk, .*got 'klingon'"):
        listed(tmp_path, "a.mp4 0\n", encoding="klingon")


def test_data_encoding(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("视频.mp4 1\n".encode("gbk"))
    (tmp_path / "names.txt").write_bytes("猫\n狗\n".encode("gbk"))
    (tmp_path / "视频.mp4").touch()
    given: dict[str, Any] = {"root": tmp_path, "train_list": "list.txt", "val_list": "list.txt", "num_classes": 2}
    data = VideoDataModule(**given, class_names="names.txt", encoding="gbk")
    data.setup("fit")
    assert data.class_names == ("猫", "狗")
    with pytest.raises(ValueError, match=r"list\.txt:1: .*data\.encoding"):
        VideoDataModule(**given).setup("fit")


def test_other_text_files_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes("a: 1\nb: 视频\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"config\.yaml:2: expected text in UTF-8"):
        read_plain(tmp_path / "config.yaml")
    (tmp_path / "card.json").write_bytes('{"a": "é"}'.encode("utf-16"))
    assert read_plain(tmp_path / "card.json") == {"a": "é"}
    (tmp_path / "shards.txt").write_bytes("a.tar\n视频.tar\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"shards\.txt:2: expected text in UTF-8"):
        shard_names("shards.txt", Archives(tmp_path))


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("a.mp4 1", "a.mp4"),
        ("a.mp4\t1", "a.mp4"),
        ("a.mp4,1", "a.mp4"),
        ("  a b.mp4   1  ", "a b.mp4"),
        ('"a, b.mp4",1', "a, b.mp4"),
        ('"a b.mp4" 1', "a b.mp4"),
        ('"a ""b"".mp4",1', 'a "b".mp4'),
        ('"a.mp4" , 1', "a.mp4"),
        ("#a.mp4 1", "#a.mp4"),
        ("a 2.mp4 1", "a 2.mp4"),
        ("folder 2/a 1", "folder 2/a"),
    ],
)
def test_lines_that_are_read(line: str, path: str, tmp_path: Path) -> None:
    text = f"# a comment, of 3 lines 4\r\n\r\n#\r\n{line}\r\n   \r\n"
    assert listed(tmp_path, text) == [(path, 1)]


@pytest.mark.parametrize(
    "line", ["a.mp4 1 2", "a.mp4,1,2", "a.mp4\t1\t2", "a.mp4 -1 2", "path,label", '"a.mp4",x', "a.mp4"]
)
def test_lines_that_are_refused_by_their_number(line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.txt:3: expected 'path label', got"):
        listed(tmp_path, f"b.mp4 1\n\n{line}\n")


def test_a_file_whose_name_looks_like_two_fields(tmp_path: Path) -> None:
    (tmp_path / "a.mp4 1").touch()
    assert listed(tmp_path, "a.mp4 1 2\n") == [("a.mp4 1", 2)]


def test_lists_of_predict(tmp_path: Path) -> None:
    video = VideoDataModule(root=".", train_list="a", val_list="b", num_classes=3)
    file = tmp_path / "list.csv"
    file.write_text('# what to classify\n"a, b.mp4",1\nc.mp4 2\n')
    assert [Path(path).name for path in find_inputs(file, Preprocess.of(video)).paths] == ["a, b.mp4", "c.mp4"]
    file.write_bytes("a.mp4\n视频.mp4\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"list\.csv:2: expected text in UTF-8"):
        find_inputs(file, Preprocess.of(video))
    file.write_text("视频.mp4\n", encoding="utf-16")
    assert [Path(path).name for path in find_inputs(file, Preprocess.of(video)).paths] == ["视频.mp4"]
