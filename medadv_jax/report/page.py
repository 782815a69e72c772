"""One HTML page that needs no other file and no network. Every text from a run is escaped."""

import dataclasses
from collections.abc import Sequence
from html import escape

from medadv_jax.report.style import Drawn, LeftOut
from medadv_jax.report.tables import Table, as_html

GOOD, UNSURE, BAD, PLAIN = "good", "unsure", "bad", "plain"  # kinds of a card

CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px 24px 48px; color: var(--ink);
  background: var(--paper); font: 15px/1.45 "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans",
  sans-serif; overflow-wrap: break-word; }
h1 { font-size: 25px; margin: 0 0 2px; }
h2 { font-size: 19px; margin: 34px 0 8px; border-bottom: 1px solid var(--line);
  padding-bottom: 4px; }
p { margin: 6px 0; }
.lead { color: var(--soft); margin: 0 0 14px; }
.cards { display: grid; grid-template-columns: repeat(2, 1fr); gap: 12px; margin-bottom: 14px; }
.card { border: 1px solid var(--line); border-left: 7px solid var(--soft); border-radius: 5px;
  padding: 9px 14px 11px; }
.card h2 { border: 0; font-size: 14px; margin: 0 0 5px; padding: 0; color: var(--soft);
  font-weight: 600; }
.card ul { margin: 0; padding: 0; list-style: none; }
.card .big { font-size: 17px; font-weight: 600; margin-bottom: 3px; }
.card.good { border-left-color: #009e73; }
.card.unsure { border-left-color: #e69f00; }
.card.bad { border-left-color: #b3002d; background: #fdf1f3; }
.number-row { display: flex; gap: 10px; align-items: baseline; }
.number-row b { font-size: 17px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.number-row span:first-child { min-width: 104px; }
.pass { color: #00583b; }
.warn { color: #8a5a00; font-weight: 600; }
.fail { color: #b3002d; font-weight: 700; }
.interval, .files, .note, figcaption { color: var(--soft); }
.interval { font-size: 12.5px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.files { font-size: 12px; white-space: nowrap; }
nav { font-size: 14px; margin: 4px 0 0; }
nav a { margin-right: 14px; white-space: nowrap; }
a { color: #0b57a4; }
figure { margin: 14px 0 20px; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: 13.5px; margin-top: 5px; }
figure.table > figcaption { color: var(--ink); font-weight: 600; font-size: 15px; margin: 0 0 5px; }
figure.table > figcaption .files { font-weight: 400; }
.note { font-size: 13px; margin: 5px 0 0; max-width: 105ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; min-width: 50%; }
th, td { padding: 3px 6px; text-align: left; vertical-align: baseline; }
td { border-top: 1px solid #eaeef2; }
tr.rule td { border-top: 1.5px solid #8c959f; }
thead th { border-bottom: 1.5px solid #8c959f; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.sentence { min-width: 13em; }
.pair { display: flex; flex-wrap: wrap; gap: 0 24px; }
.left-out { color: var(--soft); font-size: 13.5px; }
@media (max-width: 800px) { .cards { grid-template-columns: 1fr; } }
@media print {
  @page { size: A4; margin: 13mm; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .scroll { overflow: visible; }
  table { font-size: 7.6pt; width: 100%; min-width: 0; }
  th, td { padding: 1.5px 4px; }
  .interval { font-size: 6.8pt; }
  .sentence { min-width: 0; }
  td .interval { display: block; }
  .note, figcaption, .left-out { font-size: 8.5pt; }
  nav, .files { display: none; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  figure.long { break-inside: auto; }
  figure img { max-height: 215mm; }
  h1 { font-size: 17pt; }
  .card .big, .number-row b { font-size: 12.5pt; }
  thead { display: table-header-group; }
  .card { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


@dataclasses.dataclass(frozen=True)
class Card:
    """One of the four answers of the first screen.

    Attributes:
      question: what a reader asks.
      kind: GOOD, UNSURE, BAD or PLAIN.
      rows: (name, number, interval) lines, shown first.
      text: sentences; the first stands out if there are no rows.
    """

    question: str
    kind: str
    rows: tuple[tuple[str, str, str], ...] = ()
    text: tuple[str, ...] = ()

    def html(self) -> str:
        """Returns the card as an element."""
        lines = [
            f"<li class=number-row><span>{escape(name)}</span><b>{escape(number)}</b>"
            f"<span class=interval>{escape(interval)}</span></li>"
            for name, number, interval in self.rows
        ]
        for i, sentence in enumerate(self.text):
            big = " class=big" if i == 0 and not self.rows else ""
            lines.append(f"<li{big}>{escape(sentence)}</li>")
        return (
            f'<section class="card {escape(self.kind)}"><h2>{escape(self.question)}</h2>'
            f"<ul>{''.join(lines)}</ul></section>"
        )


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: its heading.
      parts: tables, figures and paragraphs in their order; None is skipped.
    """

    title: str
    parts: Sequence[Table | Drawn | str | None]

    @property
    def anchor(self) -> str:
        """The name by which the page links to it."""
        kept = (c if c.isalnum() else "-" for c in self.title.lower())
        return "".join(kept).strip("-")

    def html(self) -> str:
        """Returns the section as an element, "" if nothing is in it."""
        parts = [_part(part) for part in self.parts if part is not None]
        if not parts:
            return ""
        body = "".join(parts)
        return f'<section><h2 id="{escape(self.anchor)}">{escape(self.title)}</h2>{body}</section>'


def _part(part: Table | Drawn | str) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Table):
        return as_html(part)
    if isinstance(part, LeftOut):
        return f"<p class=left-out>Left out: {escape(part.name)}: {escape(part.reason)}.</p>"
    return part.html()


def render(
    title: str, lead: str, cards: Sequence[Card], first: Sequence[Drawn | Table],
    sections: Sequence[Section],
) -> str:  # fmt: skip
    """Returns the page.

    Args:
      title: of the page.
      lead: the line below it.
      cards: the answers of the first screen.
      first: what stands below them, before the sections.
      sections: the rest; empty ones are dropped.
    """
    shown = [(section, html) for section in sections if (html := section.html())]
    links = "".join(f'<a href="#{escape(s.anchor)}">{escape(s.title)}</a>' for s, _ in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p></header>"
        f"<div class=cards>{''.join(card.html() for card in cards)}</div>"
        f"{''.join(map(_part, first))}<nav>{links}</nav>"
        f"{''.join(html for _, html in shown)}</body></html>\n"
    )
