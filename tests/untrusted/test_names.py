"""Names that others chose: no markup, no terminal control, no formula, no place outside."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table
from torch import nn

from lit_distill._command.run import exit_with
from lit_distill._files import append_text, write_bytes
from lit_distill._screen import Screen
from lit_distill.checkpoints import CheckpointError
from lit_distill.data import VideoError
from lit_distill.inference import test as test_command
from lit_distill.inference.predictions import Prediction, Top
from lit_distill.inference.rows import RowFile
from lit_distill.models import load_weights
from lit_distill.models.identity import state_of
from lit_distill.models.weights import WeightsError
from lit_distill.reporting.charts import shown
from lit_distill.untrusted.naming import file_name, inside, is_address
from lit_distill.untrusted.showing import cell, printable

NAMES = (
    "[/x]", "[bold red]x", "[link=http://a]b[/link]", ":smile:", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb",
    "\x00", "\u202egnp.exe", "\u2066a\u2069", "\u200b", "\ud800", "=cmd|' /C calc'!A0", "a\nb", "\x7f", "\u2028",
)  # fmt: skip
HOSTILE = "".join(chr(code) for code in (0x1B, 0x9B, 0x0D, 0x07, 0x202E, 0x2066, 0x200B, 0x2028, 0x7F))


def harmless(text: str) -> bool:
    return not set(HOSTILE) & set(text)


def written(screen: Screen) -> str:
    file = screen.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    made.file = io.StringIO()
    made.width = 200
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_screen_shows_it_as_it_stands(name: str, screen: Screen) -> None:
    screen.print(name, soft_wrap=True)
    table = Table("class", name, title=name)
    table.add_row(name, "1")
    screen.print(table)
    assert harmless(written(screen))
    visible = printable(name)
    assert written(screen).count(visible) >= 3 or "\n" in name


def test_a_terminal_gets_styles_of_ours_alone(screen: Screen) -> None:
    screen.print("\x1b[2J[red]a", style="red")
    assert "\x1b[2J" not in written(screen)
    assert "[red]a" in written(screen)


def test_the_results_of_classes_of_such_names_are_shown(screen: Screen) -> None:
    classes = [{"name": n, "samples": 3, "top1": 0.5, "confused": 1, "confused_with": n} for n in NAMES]
    figures: dict[str, Any] = {"model": "[/m]", "samples": 3, "split": "test", "views": "center", "top1": 0.5,
                               "top5": 0.5, "loss": 1.0, "calibration": {"ece": 0.1}, "classes": classes,
                               "left_out": 0}  # fmt: skip
    test_command.show(screen, figures, Path("a[/x].json"))
    assert harmless(written(screen))
    assert "[/x]" in written(screen)


@pytest.mark.parametrize("name", NAMES)
def test_errors_and_pages_hold_none(name: str) -> None:
    errors = (WeightsError(name), CheckpointError(name), VideoError(name, name))
    for text in (*map(str, errors), shown(name), printable(name)):
        assert harmless(text)


def test_an_error_of_a_command_is_printed_without(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_with(ValueError("no file \x1b[2J\u202e[/x]"), "predict")
    said = capsys.readouterr().err
    assert harmless(said)
    assert "[/x]" in said


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@a", " =1", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "＝1+1", "\u200b=1"]
)
def test_a_spreadsheet_runs_no_formula(name: str, tmp_path: Path) -> None:
    assert cell(name).startswith("'")
    assert test_command.confusion_csv([[1]], [name]).count("'") >= 2
    rows = RowFile(tmp_path / "rows.csv", inputs=[name], topk=1, made_by={})
    rows.write([Prediction(name, (Top(0, name, 0.5),))])
    rows.finish()
    line = (tmp_path / "rows.csv").read_text().splitlines()[1]
    assert all(field.strip('"').startswith("'") for field in (line.split(",")[0], line.split(",")[3]))


@pytest.mark.parametrize("name", ["a;=1+1", "a; =1", "a;\t@b", "a;b;＋1", ";;-1"])
def test_no_cell_of_another_language_is_a_formula(name: str) -> None:
    """Where a comma is a decimal point, a spreadsheet takes the semicolon for the end of a cell."""
    assert all(part.strip()[:1] not in "=+-@＝＋－＠" or not part.strip() for part in cell(name).split(";"))
    assert cell("a;b") == "a;b"


def test_rows_of_such_names_are_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        rows = RowFile(tmp_path / "rows.csv", inputs=["=a", "b\x1b"], topk=1, made_by={}, resume=True)
        rows.write([Prediction("=a", error="=b")] if not rows.done else [])
    assert rows.done == rows.failed == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "/etc/x", ".hidden", "a\0b", "a\nb", "~", "a:b", "x" * 200, "-rf", "a."],
)
def test_a_name_that_is_none_of_a_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name") as caught:
        file_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["Student", "Teacher_2", "resnet18.a1_in1k", "größer", "a-b", "1_hint"])
def test_names_of_models_are_file_names(name: str) -> None:
    assert file_name(name) == name


def test_a_place_is_held_inside_links_included(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "export").symlink_to(outside)
    (run / "test.json").symlink_to(outside / "x")
    (run / "dangling").symlink_to(tmp_path / "nothing" / "x")
    (run / "loop").symlink_to(run / "loop")
    for parts in (
        ("export", "a"),
        ("test.json",),
        ("dangling",),
        ("..", "outside"),
        ("/etc/x",),
        (".",),
        ("..", "run2"),
    ):
        with pytest.raises(ValueError, match="expected a file inside"):
            inside(run, *parts)
    (tmp_path / "link").symlink_to(run)
    assert inside(tmp_path / "link", "a", "b") == tmp_path / "link" / "a" / "b", "the folder itself may be a link"


def test_an_output_that_is_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    write_bytes(tmp_path / "out", b"new")
    assert (tmp_path / "victim").read_text() == "kept"
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="cannot write"):
        append_text(tmp_path / "log", "more\n")
    assert (tmp_path / "victim").read_text() == "kept"


def test_what_is_written_keeps_the_umask(tmp_path: Path) -> None:
    program = (
        "import os, sys; os.umask(0o077)\n"
        "from lit_distill._files import append_text, write_text\n"
        "write_text(sys.argv[1] + '/folder/a', 'x'); append_text(sys.argv[1] + '/b', 'x\\n')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert {(tmp_path / name).stat().st_mode & 0o077 for name in ("folder", "folder/a", "b")} == {0}


def test_addresses() -> None:
    for text in (
        "a://b", "a::b", "simplecache::s3:b", " //host/a", r"\\host\a", "file:///x", "ABC://", r"/\host\a",
        r"\/host/a", r"\\?\C:\a", r"\\.\pipe\a", r"\??\UNC\host\a", "/??/UNC/host", r" \??\a", r"//?/UNC\host",
    ):  # fmt: skip
        assert is_address(text), text
    for text in ("a/b:c.mp4", "a:b", "videos", "../x", "/etc/x", "C:/videos", "a b.mp4", "val/top1"):
        assert not is_address(text), text


def odd_tensors() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = torch.ones(2, 2)
        return {
            "sparse": dense.to_sparse(), "sparse rows": dense.to_sparse_csr(), "meta": torch.empty(2, 2, device="meta"),
            "quantized": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        }  # fmt: skip


@pytest.mark.parametrize("kind", list(odd_tensors()))
def test_a_file_of_odd_tensors_leaves_the_network_untouched(kind: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    odd = {name: torch.full_like(value, 9.0) for name, value in before.items()}
    odd["1.weight"] = odd_tensors()[kind]
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="refused"):
        load_weights(network, tmp_path / "odd.pth")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="refused"):
        state_of({"state_dict": {f"models.A.{name}": value for name, value in odd.items()}}, "A")


def test_a_nested_tensor_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(WeightsError, match="nested"):
        state_of({"state_dict": {"models.A.w": nested}}, "A")
    with pytest.raises(WeightsError, match="a str"):
        state_of({"state_dict": {"models.A.w": "text"}}, "A")


def test_names_of_tensors_are_printed_without(tmp_path: Path) -> None:
    torch.save({f"\x1b[2J[/x]{number}": torch.ones(2) for number in range(3)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(nn.Linear(2, 2), tmp_path / "a.pth")
    assert harmless(str(caught.value))


def test_no_file_of_the_folder_is_left(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]
