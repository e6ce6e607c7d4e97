from __future__ import annotations

from pathlib import Path

import pytest

from lit_distill.data import Sample, read_class_names, read_list
from lit_distill.data.catalogue.lists import missing_samples

from ..conftest import write_lines


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/b.mp4 3", "a/b.mp4", 3),
        ("a/b.mp4\t3", "a/b.mp4", 3),
        ("a/b.mp4,3", "a/b.mp4", 3),
        ("a/b.mp4 , 3 ", "a/b.mp4", 3),
        ("a/b c 2.mp4,3", "a/b c 2.mp4", 3),
        ("a/b c.mp4 3", "a/b c.mp4", 3),
        ("a/b,c.mp4 3", "a/b,c.mp4", 3),
        ("a/b,c.mp4,3", "a/b,c.mp4", 3),
        ("a/1,2 x.mp4 3", "a/1,2 x.mp4", 3),
        ("./a//b.mp4 3", "a/b.mp4", 3),
        ("a/c/../b.mp4 3", "a/b.mp4", 3),
        ("ü/日本.mp4 3", "ü/日本.mp4", 3),
    ],
)
def test_video_lines(tmp_path: Path, line: str, path: str, label: int) -> None:
    file = write_lines(tmp_path / "list.txt", [line])
    assert read_list(file, root="root", num_classes=4) == [Sample(f"root/{path}", label)]


@pytest.mark.parametrize("line", ["a/b 30 2", "a/b,30,2", "a/b , 30 , 2"])
def test_frame_lines(tmp_path: Path, line: str) -> None:
    file = write_lines(tmp_path / "list.txt", [line])
    assert read_list(file, root="root", num_classes=4, counted=True) == [Sample("root/a/b", 2, 30)]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfa.mp4 0\r\n\r\n  \r\nb.mp4 1")
    assert [sample.path for sample in read_list(file, root="r", num_classes=2)] == ["r/a.mp4", "r/b.mp4"]


def test_labels_from_one_and_from_folders(tmp_path: Path) -> None:
    names = read_class_names(write_lines(tmp_path / "classInd.txt", ["1 Archery", "2 Bowling"]), 2)
    train = write_lines(tmp_path / "trainlist01.txt", ["Bowling/v_1.avi 2", "Archery/v_2.avi 1"])
    test = write_lines(tmp_path / "testlist01.txt", ["Archery/v_3.avi", "Bowling/v_4.avi"])
    given = [read_list(file, root="r", num_classes=2, first_label=1, class_names=names) for file in (train, test)]
    assert [[sample.label for sample in samples] for samples in given] == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.mp4", "expected 'path label', got 'b.mp4'"),
        ("b.mp4 one", "expected 'path label', got 'b.mp4 one'"),
        ("b.mp4 1.0", "expected 'path label'"),
        ("b.mp4 -1", "expected 'path label'"),
        ("7", "expected 'path label'"),
        ("b.mp4 4", "label 4 is out of range: num_classes=4 and first_label=0 allow 0 to 3"),
        ("../b.mp4 1", "'../b.mp4' is not inside the root"),
        ("a/../../b.mp4 1", "not inside the root"),
        ("/etc/passwd 1", "not inside the root"),
        ("a/.. 1", "not inside the root"),
    ],
)
def test_bad_lines_say_where_and_what(tmp_path: Path, line: str, message: str) -> None:
    file = write_lines(tmp_path / "list.txt", ["a.mp4 0", line])
    with pytest.raises(ValueError, match=message) as caught:
        read_list(file, root=tmp_path / "root", num_classes=4)
    assert str(caught.value).startswith(f"{file}:2: ")


@pytest.mark.parametrize("line", ["a/b 2", "a/b x 2", "a/b 3 x"])
def test_bad_frame_lines(tmp_path: Path, line: str) -> None:
    file = write_lines(tmp_path / "list.txt", [line])
    with pytest.raises(ValueError, match="expected 'dir frames label'"):
        read_list(file, root="r", num_classes=4, counted=True)


def test_a_folder_without_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        read_list(write_lines(tmp_path / "list.txt", ["a 0 1"]), root="r", num_classes=4, counted=True)


def test_absolute_paths_inside_the_root_are_allowed(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "list.txt", [f"{tmp_path}/a/b.mp4 0"])
    assert read_list(file, root=tmp_path, num_classes=1)[0].path == f"{tmp_path}/a/b.mp4"


def test_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the list is empty"):
        read_list(write_lines(tmp_path / "list.txt", [""]), root="r", num_classes=1)


def test_class_names(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "names.txt", ["riding a bike", "3 jumps"])
    assert read_class_names(file, 2) == ("riding a bike", "3 jumps")
    assert read_class_names(write_lines(file, ["0,bike", "1,car"]), 2) == ("bike", "car")
    with pytest.raises(ValueError, match="expected num_classes=3 names, one a line, got 2"):
        read_class_names(file, 3)
    with pytest.raises(ValueError, match=r"come twice: \['car'\]"):
        read_class_names(write_lines(file, ["car", "car"]), 2)


def test_missing_samples(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.mp4").touch()
    (tmp_path / "file").touch()
    names = ("a/0.mp4", "a/1.mp4", "b/0.mp4", "file/0.mp4", "file")
    samples = [Sample(str(tmp_path / name), 0) for name in names]
    assert missing_samples(samples) == samples[1:4]
