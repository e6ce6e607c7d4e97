"""How Sphinx builds these pages: `make docs`; a warning is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lit_distill

project = "lit_distill"
author = "The lit_distill developers"
release = version = lit_distill.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = "lit_distill"

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

_INCLUDED = {
    "../SECURITY.md": "security.md",
    "../benchmarks/RESULTS.md": "results.md",
    "../CHANGELOG.md": "changelog.md",
    "../examples/README.md": "examples.md",
}
"""Pages that stand outside of docs/, where a reader of the repository finds them, and what they are on the site."""

_LINKED = {**_INCLUDED, "../README.md": "quickstart.md"}

_FILE = re.compile(r"\[(`[\w./]+`)\]\((?!\.\.)[\w./]+\)")
"""A link of such a page to a file beside it, which is not on the site."""

_VERBATIM = re.compile(r"(``.*?``|:math:`.*?`)")


def _link_inside(app: Any, docname: str, source: list[str]) -> None:
    for outside, inside in _INCLUDED.items():
        if inside == f"{docname}.md":
            source[0] = (Path(app.srcdir) / outside).read_text(encoding="utf-8").replace("](docs/", "](")
            source[0] = _FILE.sub(r"\1", source[0])
    for outside, inside in _LINKED.items():
        source[0] = source[0].replace(f"]({outside}", f"]({inside}")


def _escape_bars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write |x| plainly; reStructuredText would look for a substitution of that name."""
    math_indent = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if math_indent is not None and line.strip() and indent <= math_indent:
            math_indent = None
        if line.lstrip().startswith(".. math::"):
            math_indent = indent
        if math_indent is None and not line.lstrip().startswith((">>>", "...")):
            parts = _VERBATIM.split(line)
            lines[number] = "".join(p if _VERBATIM.fullmatch(p) else p.replace("|", r"\|") for p in parts)


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("source-read", _link_inside)
    app.connect("autodoc-process-docstring", _escape_bars, priority=400)
