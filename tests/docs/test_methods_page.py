"""docs/methods.md is what its generator makes, and the generator says what it lacks."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

import lit_distill.losses
from losses.cases import KINDS, classes_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(maker: ModuleType) -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == maker.render(), "docs/methods.md is stale: run python docs/make_methods.py"


def test_every_exported_loss_has_its_section(maker: ModuleType) -> None:
    page = maker.render()
    for cls in itertools.chain.from_iterable(classes_of(kind) for kind in KINDS):
        section = page.partition(f"\n### {cls.__name__}\n")[2].partition("\n### ")[0]
        for part in ("```", "- **Paper:** ", "- **Defaults:** ", "- **Config:** ", "- **Taps:**", "- **Use when:** "):
            assert part in section, f"{cls.__name__} has no {part}"


DOCSTRING = """Answers are drawn
together by :func:`lit_distill.losses.kd_loss`.

With p the answers:

.. math::
    L = p
      + 1

Paper: A, "B", 2020. With ``x``
and more.

Use when: always,
    or never.

Args:
    x: a number.
"""


def test_a_docstring_is_read_in_its_parts(maker: ModuleType) -> None:
    summary, parts = maker.read_docstring(DOCSTRING)
    assert summary == "Answers are drawn together by `kd_loss`."
    assert parts == {
        "Formula": "With p the answers:\n\n```math\nL = p\n  + 1\n```",
        "Paper": 'A, "B", 2020. With `x` and more.',
        "Use when": "always, or never.",
    }


def test_a_formula_may_be_plain_text(maker: ModuleType) -> None:
    _, parts = maker.read_docstring("Sums.\n\nFormula:\n    L = a\n\n      + b\n\nArgs:\n    a: one.")
    assert parts["Formula"] == "```text\nL = a\n\n  + b\n```"


def test_missing_parts_are_named(maker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class NamelessLoss(nn.Module):
        """Says nothing."""

    monkeypatch.setattr(lit_distill.losses, "NamelessLoss", NamelessLoss, raising=False)
    monkeypatch.setattr(NamelessLoss, "__module__", "lit_distill.losses.response.nameless")
    with pytest.raises(
        ValueError, match=r"NamelessLoss lacks 'Formula:'.*'Paper:'.*'Use when:'.*conf/loss/<stem>.yaml"
    ):
        maker.methods()


def test_every_method_of_another_library_is_here_or_its_absence_is_explained() -> None:
    page = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    assert len(rows) > 40
    headings = {
        name: {line.lstrip("# ").lower().replace(" ", "-") for line in (ROOT / "docs" / name).read_text().splitlines()}
        for name in ("methods.md", "recipes.md")
    }
    for method, *libraries, here in rows:
        if here in ("here", "its terms here"):  # the heading of the table of libraries, or of that of several terms
            continue
        assert len(libraries) in (0, 5)
        assert not libraries or "✓" in libraries, f"{method}: no library has it"
        links = re.findall(r"\]\((\w+\.md)#([\w-]+)\)", here)
        assert links or here.startswith("not here: "), method
        assert all(anchor in headings[name] for name, anchor in links), here
