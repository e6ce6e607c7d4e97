"""Lists and shards that are too long are refused before samples are made of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.lists import read_class_names, read_list
from lit_distill.data.catalogue.tar import TarError, members
from lit_distill.data.preprocess import Preprocess
from lit_distill.data.sources.shards import shard_names
from lit_distill.inference.inputs import find_inputs
from lit_distill.models import state_files
from lit_distill.models.state_files import file_sha256
from lit_distill.paddlevideo.yaml_lines import ConfigError, Source
from lit_distill.untrusted import budgets
from lit_distill.untrusted.budgets import lines_of
from lit_distill.untrusted.check import check_targets
from lit_distill.untrusted.plain import parse_yaml


def listed(file: Path) -> object:
    return read_list(file, root=file.parent, num_classes=2)


def named(file: Path) -> object:
    return shard_names(file.name, Archives(file.parent))


HOSTILE: dict[str, tuple[Callable[[], bytes], Callable[[Path], object], str]] = {
    "a hundred million lines": (lambda: b"\n" * 10**8, listed, "at most 4,000,000 lines"),
    "a hundred million old lines": (lambda: b"\r" * 10**8, listed, "at most 4,000,000 lines"),
    "a line without end": (lambda: b"a" * (200 << 20), listed, "without end"),
    "too many bytes": (lambda: b"a" * (257 << 20), listed, "at most 268,435,456 bytes"),
    "shards twice": (lambda: b"{0..124999}.tar\n" * 2, named, "comes twice"),
    "too many shards": (lambda: b"{0..999999}.tar\n" * 1000, named, "more than 250,000 shards"),
    "too many shards, of many lines": (lambda: b"{0..99999}.tar\n" * 1000, named, "more than 250,000 shards"),
    "long names": (lambda: b"{" + b"0" * 60_000 + b"..999999}.tar", named, "at most 1024 characters"),
    "many names of some length": (lambda: b"{" + b"0" * 900 + b"..249999}.tar", named, "more than 33,554,432 char"),
    "many lines of names of some length": (
        lambda: (b"{" + b"0" * 900 + b"..9999}.tar\n") * 99,
        named,
        "33,554,432 characters",
    ),
    "lines of shards without end": (lambda: b"ab\n" * 10**8, named, "at most 33,554,432 bytes"),
    "many lines of shards": (lambda: b"ab\n" * 10**7, named, "more than 250,000 shards"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_list_that_is_too_long_is_refused(kind: str, tmp_path: Path) -> None:
    made, read, message = HOSTILE[kind]
    (tmp_path / "train.txt").write_bytes(made())
    begin = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "train.txt")
    assert time.process_time() - begin < 3, "a second, where nothing else runs"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("line", ["é" * 60_000, '"' + "a" * 60_000 + '" 7', "\x1b" * 60_000 + " 9"])
def test_a_line_is_repeated_in_part(line: str, tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"train\.txt") as caught:
        read_list(file, root=tmp_path, num_classes=2)
    assert len(str(caught.value)) < 1_000
    assert str(caught.value).isprintable()
    file.write_text(f"{line}\n{line}\n" + "".join(f"{number}\n" * 2 for number in range(999)))
    with pytest.raises(ValueError, match="come twice") as caught:
        read_class_names(file, 2_000)
    assert len(str(caught.value)) < 1_000


def test_texts_that_are_held_against_patterns_take_no_time_that_grows_with_their_square(tmp_path: Path) -> None:
    line = "1" + "," * 60_000 + "a"
    (tmp_path / "inputs.txt").write_text(f"{line}\n" * 3)
    data = {"_target_": "lit_distill.data.VideoDataModule", "suffix": "a" * 60_000 + "!"}
    begin = time.process_time()
    assert find_inputs(tmp_path / "inputs.txt", cast("Preprocess", None)).paths == [str(tmp_path / line)] * 3
    with pytest.raises(ValueError, match="not admitted"):
        check_targets(data)
    assert time.process_time() - begin < 1


def test_names_that_repeat_are_found_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"{number}a\n" for number in range(100_000)) + "0a\n")
    begin = time.process_time()
    with pytest.raises(ValueError, match="come twice"):
        read_class_names(tmp_path / "names.txt", 100_001)
    assert time.process_time() - begin < 3


def test_lines_are_those_of_a_text_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffä 0\r\nb 1\rc 2\n\nd 3".encode())
    with (tmp_path / "a.txt").open(encoding="utf-8-sig") as file:
        assert list(lines_of(tmp_path / "a.txt", what="a list")) == list(file)
    monkeypatch.setattr(budgets, "LIST_LINES", 2)
    with pytest.raises(ValueError, match="at most 2 lines"):
        list(lines_of(tmp_path / "a.txt", what="a list"))


def test_extended_headers_of_shards_are_read_in_linear_time(tmp_path: Path) -> None:
    records = b"5 a=\n" * 13_000
    head = bytearray(512)
    head[:1], head[124:135], head[156:157] = b"x", b"%011o" % len(records), b"x"
    head[257:263] = b"ustar\0"
    head[148:156] = b"%06o\0 " % (sum(head) + 8 * 0x20)
    content = bytes(head) + records + bytes(-len(records) % 512)
    file = tmp_path / "a.tar"
    file.write_bytes(content * 50)
    begin = time.process_time()
    with file.open("rb") as opened, pytest.raises(TarError):
        list(members(opened, file.stat().st_size))
    assert time.process_time() - begin < 3


@pytest.mark.parametrize(
    "entry",
    [
        "simplecache::http://127.0.0.1:9/x.mp4", "simplecache::x.mp4", "a://b", "videos/a://b.mp4", "x::y.mp4",
        r"/\host\a.mp4", r"\/host/a.mp4", r"\\?\C:\a.mp4", r"\??\UNC\host\a.mp4", "//host/a.mp4", "hf::b/c.mp4",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["labelled", "counted", "unlabelled"])
def test_an_address_in_a_list_is_refused_by_its_line(kind: str, entry: str, tmp_path: Path) -> None:
    rest = {"labelled": " 0", "counted": " 8 1", "unlabelled": ""}[kind]
    (tmp_path / "train.txt").write_text(f"a.mp4{rest}\n\n{entry}{rest}\n")
    with pytest.raises(ValueError, match=r"train\.txt:3: .* is no local file"):
        read_list(
            tmp_path / "train.txt", root=tmp_path, num_classes=2, counted=kind == "counted",
            labelled=kind != "unlabelled",
        )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 3_000 + "]" * 3_000,
        "a: " + "{a: " * 3_000 + "1" + "}" * 3_000,
        "".join(" " * level + "a:\n" for level in range(400)),
        "- " * 40_000,
        "? " * 40_000,
        "[" * 49_000 + "]" * 49_000,
        "".join(f"%TAG !a{number}! x\n" for number in range(6_000)) + "--- {}",
        "a: [" + "1," * 45_000 + "]",
    ],
    ids=["lists", "mappings", "blocks", "dashes", "questions", "long", "directives", "values"],
)
def test_a_config_of_paddlevideo_is_refused_before_a_slow_parser_sees_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    begin = time.process_time()
    with pytest.raises(
        ConfigError, match=r"nests deeper than 50|maximum nesting depth|more than 20,000 values|more values|directives"
    ) as caught:
        Source(tmp_path / "a.yaml")
    assert time.process_time() - begin < 3, "a tenth, where nothing else runs"
    assert len(str(caught.value)) < 500


def test_a_file_to_hash_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"a" * 100)
    assert len(file_sha256(tmp_path / "a.safetensors")) == 64
    monkeypatch.setattr(state_files, "WEIGHTS_BYTES", 99)
    with pytest.raises(ValueError, match="at most 99 bytes, got 100"):
        file_sha256(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("".join(f"%TAG !a{number}! x\n" for number in range(60_000)) + "--- {}", "directives"),
        ("".join(f"{number * (2**61 - 1)}: 1\n" for number in range(1, 9_900)), "at most 64 bits"),
    ],
    ids=["directives", "names of one hash"],
)
def test_a_config_takes_no_time_that_grows_with_its_square(text: str, said: str) -> None:
    begin = time.process_time()
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)
    assert time.process_time() - begin < 2
