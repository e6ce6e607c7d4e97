"""The page: one file with its style, no script, nothing that is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_distill.reporting.charts import COLOURS, DARK, LIGHT, STYLE, Chart, shown

# No source but the page itself and its own pictures: what a hostile name might smuggle in could load nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LIGHT, _DARK = (";".join(f"--{name}:{value}" for name, value in colours.items()) for colours in (LIGHT, DARK))
_STYLE = (
    f"""
:root{{color-scheme:light dark;{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"""
    + """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:75rem;background:var(--page);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.25rem;margin:2.2rem 0 .6rem;padding-top:.6rem;
border-top:1px solid var(--rule)}h3{font-size:1.02rem;margin:1.4rem 0 .4rem}
p{margin:.4rem 0 .8rem;max-width:48rem}.note{color:var(--soft);font-size:.92rem}a{color:var(--c0)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.6rem 0;padding:0}
nav a{display:inline-block;padding:.2rem 0}
.scroll{overflow-x:auto;max-width:100%;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.3rem .65rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:7rem;max-width:20rem;overflow-wrap:anywhere}
th{color:var(--soft);font-weight:600}
table.shaded th,table.shaded td{text-align:center;padding:.25rem .45rem}
table.shaded td{background:rgb(var(--tint)/calc(var(--v)*.6))}table.shaded th:first-child{text-align:left}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:.8rem;margin:.6rem 0 1rem}
figure{margin:0;padding:.6rem;background:var(--card);border-radius:.5rem;min-width:0;max-width:34rem}
figcaption{font-size:.86rem;font-weight:600;margin-bottom:.3rem}
svg,img{display:block;width:100%;max-width:100%;height:auto}img{image-rendering:pixelated;border-radius:.25rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;list-style:none;margin:.3rem 0 0;padding:0;font-size:.8rem}
.key{display:inline-block;width:1.3rem;border-top:3px solid;vertical-align:middle;margin-right:.35rem}
.key.dashed{border-top-style:dashed}
.clip p{font-size:.84rem;margin:.35rem 0 0}.clip figcaption{font-weight:400}.clip b{font-weight:600}
"""
    + STYLE
    + "".join(f".key.c{number}{{color:var(--c{number})}}" for number in range(COLOURS))
)


@dataclass(frozen=True)
class Section:
    """A part of the page: HTML, untrusted text escaped by :func:`lit_distill.reporting.charts.shown`."""

    name: str
    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document: a title and a sentence in plain text, a table of contents, the sections.

    Example:
        >>> "<title>a &lt; b</title>" in page("a < b", "", [Section("one", "One", "<p>text</p>")])
        True
    """
    contents = "".join(f'<li><a href="#{s.name}">{shown(s.title)}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.name}"><h2>{shown(s.title)}</h2>{s.body}</section>' for s in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{shown(title)}</title><style>{_STYLE}</style></head>'
        f"<body><header><h1>{shown(title)}</h1><p>{shown(lead)}</p></header>"
        f'<nav aria-label="contents"><ul>{contents}</ul></nav><main>{body}</main></body></html>\n'
    )


def note(text: str) -> str:
    """A plain sentence in small print."""
    return f'<p class="note">{shown(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls where it is wider than the screen; all cells are plain text."""
    top = "".join(f'<th scope="col">{shown(cell)}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{shown(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def shaded(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]], said: Sequence[Sequence[str]],
    *, corner: str = "",
) -> str:  # fmt: skip
    """A matrix of what cells say, the darker the nearer their share is to 1; NaN is taken for 0."""
    top = "".join(f'<th scope="col">{shown(name)}</th>' for name in (corner, *columns))
    lines = []
    for name, values, texts in zip(rows, shares, said, strict=True):
        cells = "".join(
            f'<td style="--v:{min(1.0, max(0.0, value if value == value else 0.0)):.3f}">{shown(text)}</td>'
            for value, text in zip(values, texts, strict=True)
        )
        lines.append(f'<tr><th scope="row">{shown(name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="shaded"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def grid(figures: Sequence[Chart | str]) -> str:
    """Charts, or figures that are HTML already, side by side, as many as fit."""
    made = (figure.html if isinstance(figure, Chart) else figure for figure in figures)
    return f'<div class="grid">{"".join(made)}</div>'
