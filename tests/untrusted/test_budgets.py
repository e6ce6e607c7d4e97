"""Lists and shards that are too long are refused before samples are made of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_distill.data.catalogue.archives import Archives
from lit_distill.data.catalogue.lists import read_class_names, read_list
from lit_distill.data.catalogue.tar import TarError, members
from lit_distill.data.sources.shards import shard_names
from lit_distill.untrusted import budgets
from lit_distill.untrusted.budgets import lines_of
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
    "shards twice": (lambda: b"{0..499999}.tar\n" * 2, named, "comes twice"),
    "too many shards": (lambda: b"{0..999999}.tar\n" * 1000, named, "more than 1000000 shards"),
    "long names": (lambda: b"{" + b"0" * 60_000 + b"..999999}.tar", named, "at most 1024 characters"),
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
