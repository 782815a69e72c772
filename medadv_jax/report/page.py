"""One HTML page that needs no other file and no network. Jinja2 escapes every text from a run."""

import dataclasses
import functools
from collections.abc import Sequence

import jinja2

from medadv_jax.report.style import Graphic, Picture
from medadv_jax.report.tables import Table, cell_parts

GOOD, UNSURE, BAD, PLAIN = "good", "unsure", "bad", "plain"  # kinds of a card

Part = Table | Graphic | str


@dataclasses.dataclass(frozen=True)
class Card:
    """One of the four answers at the top of the page.

    Attributes:
      question: the heading.
      kind: GOOD, UNSURE, BAD or PLAIN.
      rows: (name, number, interval) lines, shown first.
      text: sentences; without rows the first one is large.
    """

    question: str
    kind: str
    rows: tuple[tuple[str, str, str], ...] = ()
    text: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
      title: the heading.
      parts: tables, figures and paragraphs in order; None is skipped.
    """

    title: str
    parts: Sequence[Part | None]

    @property
    def anchor(self) -> str:
        """The id that the navigation links to."""
        kept = (c if c.isalnum() else "-" for c in self.title.lower())
        return "".join(kept).strip("-")

    @property
    def content(self) -> list[Part]:
        """The parts without None; a section without content is not shown."""
        return [part for part in self.parts if part is not None]


@dataclasses.dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
      title: the heading.
      summary: a plain sentence below it: what was found.
      lead: the line below that: on what.
      legend: (word, meaning) of the words that the page uses.
      cards: the answers at the top.
      first: parts between the cards and the sections.
      sections: the rest; empty ones are not shown.
      more_tables: written as files only.
    """

    title: str
    summary: str
    lead: str
    legend: Sequence[tuple[str, str]]
    cards: Sequence[Card]
    first: Sequence[Part]
    sections: Sequence[Section]
    more_tables: Sequence[Table] = ()

    @property
    def _parts(self) -> list[Part]:
        return [*self.first, *(part for section in self.sections for part in section.content)]

    @property
    def tables(self) -> list[Table]:
        """All tables to write as files."""
        return [part for part in (*self._parts, *self.more_tables) if isinstance(part, Table)]

    @property
    def pictures(self) -> list[Picture]:
        """All figures on the page."""
        return [part for part in self._parts if isinstance(part, Picture)]

    def html(self) -> str:
        """Returns the page as HTML."""
        return _environment().get_template("page.html.j2").render(page=self)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medadv_jax.report"), autoescape=True, trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["cell_parts"] = cell_parts
    environment.tests["table"] = lambda part: isinstance(part, Table)
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    return environment
