"""Parts of a page to look at: text, tables and pictures as strings of HTML and inline SVG.

A page is one file without a network and without a script that it needs. Colours follow the reader's light or dark
setting; pictures have a text alternative, and what they show stands in a table too. Whatever comes from a file goes
through `escape`.
"""

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Sequence

from fastsparse._table import printable

__all__ = [
    "Cell",
    "bars",
    "columns",
    "curves",
    "escape",
    "fragment",
    "grid",
    "note",
    "page",
    "percent",
    "pictures",
    "section",
    "table",
    "tiles",
]

Cell = str | tuple[str, float | None]
"""The text of a cell; with a number it is aligned and sorted as that, before all others where there is none."""

_LONGEST = 160
"""Characters of a text from a file."""

_STYLE = """
.fs{--ink:#1c2430;--soft:#5b6675;--line:#d9dee6;--paper:#fff;--card:#f6f8fb;--mark:#2563c9;--other:#c2571a;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);background:var(--paper)}
@media(prefers-color-scheme:dark){.fs{--ink:#e4e9f0;--soft:#9aa7b8;--line:#303a48;--paper:#12171e;--card:#1a212b;
--mark:#6ea8ff;--other:#f0975c}}
.fs *{box-sizing:border-box}
.fs main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
.fs h1{font-size:1.6rem;line-height:1.25;margin:.2em 0;overflow-wrap:anywhere}
.fs h2{font-size:1.15rem;margin:2.2em 0 .5em}
.fs p{max-width:70ch;margin:.4em 0}
.fs .soft,.fs figcaption{color:var(--soft)}
.fs .note{border-left:3px solid var(--other);padding:.4em .9em;background:var(--card);border-radius:0 8px 8px 0}
.fs .tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:10px;margin:16px 0}
.fs .tiles div{background:var(--card);border-radius:10px;padding:10px 14px}
.fs .tiles dt{color:var(--soft);font-size:.85rem}
.fs .tiles dd{margin:0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.fs .pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:14px;margin:14px 0}
.fs .wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr))}
.fs figure{margin:0;background:var(--card);border-radius:10px;padding:12px 12px 8px;min-width:0}
.fs figcaption{font-size:.85rem;margin-top:4px}
.fs svg{display:block;width:100%;height:auto}
.fs svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.fs .axis{stroke:var(--line);stroke-width:1}
.fs .main{fill:none;stroke:var(--mark);stroke-width:2.5;stroke-linejoin:round}
.fs .faint{fill:none;stroke:var(--soft);stroke-width:1;opacity:.35}
.fs .point{fill:var(--other)}.fs .bar{fill:var(--mark)}
.fs .cell{fill:var(--mark);stroke:var(--card)}.fs .bare{fill:none;stroke:var(--line)}
.fs .scroll{overflow-x:auto;border:1px solid var(--line);border-radius:10px}
.fs .scroll:focus-visible{outline:2px solid var(--mark)}
.fs table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
.fs caption{text-align:left;padding:10px 12px;color:var(--soft)}
.fs th,.fs td{padding:6px 12px;text-align:left;border-top:1px solid var(--line);background:none}
.fs thead th{border-top:0;color:var(--soft);font-weight:600;white-space:nowrap}
.fs td.n,.fs th.n{text-align:right;white-space:nowrap}
.fs tbody th{font-weight:500;overflow-wrap:anywhere;min-width:min(30ch,45vw)}
.fs th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer}
.fs th button::after{content:" \\2195";opacity:.5}
.fs th[aria-sort=ascending] button::after{content:" \\2191";opacity:1}
.fs th[aria-sort=descending] button::after{content:" \\2193";opacity:1}
.fs .tip{position:fixed;pointer-events:none;background:var(--ink);color:var(--paper);padding:3px 8px;border-radius:6px;
font-size:.82rem;max-width:min(90vw,44ch);overflow-wrap:anywhere;z-index:9}
@media(max-width:520px){.fs th,.fs td{padding:6px 7px}}
body.fs{margin:0}
"""

_SCRIPT = """
"use strict";
for (const head of document.querySelectorAll(".fs thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table"), at = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[at].dataset.v ?? row.cells[at].textContent;
    const order = new Intl.Collator("en", {numeric: true});
    const compare = (a, b) => (head.className === "n" ? value(a) - value(b) : order.compare(value(a), value(b)));
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a))));
  });
}
const tip = Object.assign(document.createElement("div"), {className: "tip", hidden: true});
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
document.addEventListener("pointerover", (event) => {
  const title = event.target.closest?.(".fs svg *")?.querySelector(":scope > title");
  tip.hidden = !title;
  if (!title) return;
  tip.textContent = title.textContent;
  tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 10) + "px";
});
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body class="fs">
<main>
{content}
</main>
<script>{script}</script>
</body>
</html>
"""


def escape(text: object, longest: int | None = _LONGEST) -> str:
    """Text as HTML, in quotes too: what cannot be shown replaced, shortened in the middle; None for words of ours."""
    shown = printable(text)
    if longest is not None and len(shown) > longest:
        shown = shown[: longest // 2] + "…" + shown[-longest // 2 :]
    return html.escape(shown)


def page(title: str, *content: str) -> str:
    """A whole file."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return _PAGE.format(
        title=escape(title), style=_STYLE, script=_SCRIPT, digest=digest, content="\n".join(filter(None, content))
    )


def fragment(*content: str) -> str:
    """A part of somebody else's page, such as a notebook's."""
    return f'<div class="fs"><style>{_STYLE}</style>{"".join(content)}</div>'


def section(heading: str, *content: str) -> str:
    """A heading and what belongs to it; nothing where there is nothing."""
    inner = "\n".join(filter(None, content))
    return f"<section>\n<h2>{escape(heading)}</h2>\n{inner}\n</section>" if inner else ""


def note(text: str) -> str:
    """A sentence that is not to be missed."""
    return f'<p class="note">{escape(text, None)}</p>'


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """A few numbers, large."""
    inner = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in pairs)
    return f'<dl class="tiles">{inner}</dl>'


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table; the first cell of each row is its heading. A column is of numbers if its cells are."""
    body = list(rows)
    if not body:
        return ""
    number = [isinstance(cell, tuple) for cell in body[0]]
    head = "".join(
        _cell("th", heading, is_number, ' scope="col"') for heading, is_number in zip(headings, number, strict=True)
    )
    lines = ("<tr>" + "".join(_body_cell(at, cell) for at, cell in enumerate(row)) + "</tr>" for row in body)
    text = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text}"><table><caption>{text}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _cell(tag: str, text: str, number: bool, attributes: str) -> str:
    kind = ' class="n"' if number else ""
    return f"<{tag}{kind}{attributes}>{escape(text)}</{tag}>"


def _body_cell(at: int, cell: Cell) -> str:
    if isinstance(cell, tuple):
        value = -1.0 if cell[1] is None or not math.isfinite(cell[1]) else cell[1]
        return _cell("td", cell[0], True, f' data-v="{value:.6g}"')
    # Names break after dots.
    return _cell("td", cell, False, "") if at else _cell("th", cell, False, ' scope="row"').replace(".", ".<wbr>")


def pictures(*figures: str, wide: bool = False) -> str:
    """Pictures beside each other where there is room: three, or two wide ones."""
    inner = "\n".join(filter(None, figures))
    kind = "pictures wide" if wide else "pictures"
    return f'<div class="{kind}">{inner}</div>' if inner else ""


def _figure(caption: str, alternative: str, height: float, content: str) -> str:
    """A picture; names from files in its alternative are short."""
    return (
        f'<figure><svg viewBox="0 0 400 {height:g}" role="img" aria-label="{escape(alternative, None)}">{content}</svg>'
        f"<figcaption>{escape(caption, None)}</figcaption></figure>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.4g}" y="{y:.4g}" text-anchor="{anchor}">{escape(text)}</text>'


_Points = Sequence[tuple[float, float]]


def curves(
    caption: str,
    alternative: str,
    main: _Points,
    others: Sequence[tuple[str, _Points]],
    points: Sequence[tuple[str, float, float]],
) -> str:
    """Shares over shares: one curve, others beside it, and named points; both axes end at 1."""
    if not main:
        return ""
    lowest = min([y for _, y in main] + [y for _, line in others for _, y in line] + [y for _, _, y in points])
    bottom = max(0.0, int(lowest * 10 - 1e-9) / 10)

    def place(x: float, y: float) -> tuple[float, float]:
        return 44 + 330 * x, 12 + 200 * (1 - y) / (1 - bottom or 1)

    def path(line: _Points) -> str:
        return "M" + "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in line)

    parts = []
    for step in range(5):
        share = bottom + (1 - bottom) * step / 4
        y = place(0, share)[1]
        parts.append(f'<path class="axis" d="M44 {y:.1f}H374"/>' + _text(36, y + 4, percent(share), "end"))
        parts.append(_text(44 + 82.5 * step, 230, percent(step / 4), "middle"))
    parts += [f'<path class="faint" d="{path(line)}"><title>{escape(name)}</title></path>' for name, line in others]
    parts.append(f'<path class="main" d="{path(main)}"/>')
    for name, at, share in [*points, *((f"{percent(at)}", at, share) for at, share in main)]:
        x, y = place(at, share)
        named = (name, at, share) in points
        title = f"<title>{escape(f'{name}: {percent(share, 2)}')}</title>"
        kind = "point" if named else "bar"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{4 if named else 3.5}">{title}</circle>')
        if named:
            parts.append(_text(x - 7, y + 14, name, "end"))
    return _figure(caption, alternative, 238, "".join(parts))


def columns(caption: str, alternative: str, values: Sequence[tuple[str, float]], ends: tuple[str, str]) -> str:
    """A histogram: narrow columns with a name each, and what the two ends of the axis are."""
    most = max((value for _, value in values), default=0.0)
    if not most:
        return ""
    width = 384 / len(values)
    bars = (
        f'<rect class="bar" x="{8 + at * width:.2f}" y="{110 - 100 * value / most:.2f}" width="{width * 0.9:.2f}" '
        f'height="{100 * value / most:.2f}"><title>{escape(name)}</title></rect>'
        for at, (name, value) in enumerate(values)
        if value
    )
    axis = '<path class="axis" d="M8 110.5H392"/>' + _text(8, 126, ends[0]) + _text(392, 126, ends[1], "end")
    return _figure(caption, alternative, 132, "".join(bars) + axis)


def bars(caption: str, alternative: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Named bars, one below the other, each with a text at its end."""
    most = max((value for _, value, _ in rows), default=0.0)
    if not most:
        return ""
    parts = []
    for at, (name, value, text) in enumerate(rows):
        y, width = 4 + 20 * at, 210 * value / most
        parts.append(_text(100, y + 12, name, "end"))
        parts.append(f'<rect class="bar" x="106" y="{y}" width="{width:.1f}" height="15"/>')
        parts.append(_text(112 + width, y + 12, text))
    return _figure(caption, alternative, 8 + 20 * len(rows), "".join(parts))


def grid(
    caption: str,
    alternative: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float] | None]]],
    ends: tuple[str, str],
) -> str:
    """Cells with a name and a number from 0 to 1 each, shown as strength of colour; and what 0 and 1 are."""
    across = max((len(cells) for _, cells in rows), default=0)
    if not across:
        return ""
    width, height = 272 / across, 15
    parts = []
    for at, (label, cells) in enumerate(rows):
        y = 4 + at * height
        shown = label if len(label) <= 20 else "…" + label[-19:]
        parts.append(f"<g>{_text(112, y + 11, shown, 'end')}<title>{escape(label)}</title></g>")
        for col, cell in enumerate(cells):
            if cell is not None:
                parts.append(_shade(118 + col * width, y, width, height, cell[1], f"<title>{escape(cell[0])}</title>"))
    y = 8 + len(rows) * height
    shades = (_shade(178 + 15 * i, y, 15, 11, i / 10) for i in range(11))
    parts += [*shades, _text(172, y + 10, ends[0], "end"), _text(349, y + 10, ends[1])]
    return _figure(caption, alternative, y + 18, "".join(parts))


def _shade(x: float, y: float, width: float, height: float, strength: float, inner: str = "") -> str:
    return (
        f'<rect class="cell" x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}" '
        f'fill-opacity="{0.06 + 0.94 * strength:.2f}">{inner}</rect>'
    )


def percent(share: float | None, digits: int = 0) -> str:
    """A share in percent; a dash where there is none, or one of nothing."""
    if share is None or not math.isfinite(share):
        return "–"
    shown = f"{100 * share:.{digits}f}"
    # A little is not shown as nothing, nor what is not all as if it were.
    if share > 0 and float(shown) == 0:
        return f"< {10.0**-digits:g} %"
    if share < 1 and float(shown) == 100:
        return f"> {100 - 10.0**-digits:g} %"
    return f"{shown} %"
