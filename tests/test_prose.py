"""The prose linter finds what it lists, and lets a marked line pass."""

from __future__ import annotations

import re

import pytest
import yaml

import prose
from lit_distill._version import __version__


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("expected a frame, came none", ", came"),
        ("the file is written anew", "anew"),
        ("what fails is told", "is told"),
        ("It goes on from last.ckpt", "goes on from"),
        ("a loss of your own", "of your own"),
        ("a received config may build", "a received config"),
        ("every so-manieth frame", "so-manieth"),
    ],
)
def test_a_word_is_found_with_what_to_say(line: str, said: str) -> None:
    ((number, text),) = prose.findings(["fine", line])
    assert number == 2
    assert re.match(rf"'{said}': say \w+", text)


def test_a_marked_line_and_other_senses_pass() -> None:
    lines = ["is told  # prose: allow", "the signal came late", "told apart", "your own loss", "goes on the CPU"]
    assert list(prose.findings(lines)) == []


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((prose.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
