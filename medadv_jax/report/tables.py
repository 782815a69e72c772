"""A table, once: as CSV with every digit, as LaTeX and as HTML with those that mean something."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from medadv_jax.evaluation.statistics import Interval

NOTHING = "–"


class Estimate(NamedTuple):
    """A number and its 95 % interval; None where there is none."""

    value: float | None
    interval: Interval | None = None


class Spread(NamedTuple):
    """Mean and standard deviation over runs; None for a single run."""

    mean: float
    sd: float | None


_VERDICTS = ("pass", "warn", "fail")
_LONG = 16  # rows; a longer table may be cut by the end of a printed page
_SENTENCE = 60  # characters; longer text is given a width, lest it make its row tall

Cell = str | int | float | Estimate | Spread | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
      name: of the files.
      title: what it shows.
      columns: headers.
      rows: cells, as many as there are columns.
      notes: lines that belong below it.
      rules: indices of the rows that begin a new block.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()
    rules: frozenset[int] = frozenset()

    def numeric(self, column: int) -> bool:
        """True if a column holds numbers, which stand right; some may be strings as printed."""
        texts = (row[column] for row in self.rows if isinstance(row[column], str))
        return all(_is_number(text) for text in texts)


def _is_number(text: Cell) -> bool:
    return str(text).replace(".", "", 1).isdigit()


def blocks(rows: list[tuple[Cell, ...]], column: int = 0) -> frozenset[int]:
    """Returns where the value of a column changes."""
    return frozenset(i for i in range(1, len(rows)) if rows[i][column] != rows[i - 1][column])


def cell_text(cell: Cell) -> str:
    """Returns a cell as a person reads it: three decimals, an interval in brackets."""
    if cell is None:
        return NOTHING
    if isinstance(cell, Estimate):
        return f"{cell_text(cell.value)}{_brackets(cell.interval)}"
    if isinstance(cell, Spread):
        deviation = "" if cell.sd is None else f" ± {number_text(cell.sd)}"
        return number_text(cell.mean) + deviation
    return number_text(cell) if isinstance(cell, float) else str(cell)


def _brackets(interval: Interval | None) -> str:
    if interval is None:
        return ""
    between = " to " if interval[0] < 0 else "–"
    return f" ({number_text(interval[0])}{between}{number_text(interval[1])})"


def number_text(value: float, sign: str = "") -> str:
    """Returns three decimals with a true minus sign; sign="+" shows the plus, too."""
    return f"{round(value, 3) + 0.0:{sign}.3f}".replace("-", "−")  # + 0.0: no minus zero


def p_text(p: float) -> str:
    """Returns a p-value; below 0.001 no digit of it means anything."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def as_csv(table: Table) -> str:
    """Returns a table with every digit; an interval takes two columns more, a spread one."""
    kinds = [_kind(table, c) for c in range(len(table.columns))]
    header: list[str] = []
    for name, kind in zip(table.columns, kinds, strict=True):
        header += [name, *(f"{name} {suffix}" for suffix in _SUFFIXES.get(kind, ()))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        values: list[Cell] = []
        for cell, kind in zip(row, kinds, strict=True):
            values += _values(cell, kind)
        writer.writerow(["" if v is None else v for v in values])
    return text.getvalue()


_SUFFIXES: dict[type, tuple[str, ...]] = {Estimate: ("low", "high"), Spread: ("SD",)}


def _kind(table: Table, column: int) -> type:
    kinds = {type(row[column]) for row in table.rows}
    return next((kind for kind in _SUFFIXES if kind in kinds), str)


def _values(cell: Cell, kind: type) -> Sequence[Cell]:
    if isinstance(cell, Estimate):
        return [cell.value, *(cell.interval or (None, None))]
    if isinstance(cell, Spread):
        return [cell.mean, cell.sd]
    return [cell] + [None] * len(_SUFFIXES.get(kind, ()))


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "ε": r"$\varepsilon$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$",
    "†": r"$\dagger$", "−": "$-$", "∞": r"$\infty$", "…": r"\ldots{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Returns text in which nothing is a command."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def as_latex(table: Table) -> str:
    r"""Returns a table environment; needs \usepackage{booktabs}."""
    align = "".join("r" if table.numeric(c) else "l" for c in range(len(table.columns)))
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{align}}}", r"\toprule", _latex_row(table.columns), r"\midrule",
    ]  # fmt: skip
    for i, row in enumerate(table.rows):
        if i in table.rules:
            lines.append(r"\addlinespace")
        lines.append(_latex_row(tuple(map(cell_text, row))))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


def as_html(table: Table) -> str:
    """Returns a table element with its notes; every text is escaped."""
    right = [table.numeric(c) for c in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{_class(r)}>{escape(name)}</th>'
        for name, r in zip(table.columns, right, strict=True)
    )
    body = []
    for i, row in enumerate(table.rows):
        cells = "".join(
            f"<td{_class(r)}>{_html_cell(cell)}</td>" for cell, r in zip(row, right, strict=True)
        )
        body.append(f"<tr{' class=rule' if i in table.rules else ''}>{cells}</tr>")
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in table.notes)
    size = "table long" if len(table.rows) > _LONG else "table"
    files = f"{table.name}.csv", f"{table.name}.tex"
    links = " ".join(f'<a href="tables/{escape(f)}">{escape(f)}</a>' for f in files)
    return (
        f'<figure class="{size}"><figcaption>{escape(table.title)} <span class=files>{links}</span>'
        f"</figcaption><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{notes}</figure>"
    )


def _class(right: bool) -> str:
    return " class=number" if right else ""


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, Estimate) and cell.interval:
        return (
            f"{cell_text(cell.value)} <span class=interval>"
            f"{escape(_brackets(cell.interval).strip())}</span>"
        )
    if isinstance(cell, Spread) and cell.sd is not None:
        return f"{number_text(cell.mean)} <span class=interval>± {number_text(cell.sd)}</span>"
    text = escape(cell_text(cell))
    if len(text) > _SENTENCE:
        return f"<div class=sentence>{text}</div>"
    return f"<span class={text}>{text}</span>" if text in _VERDICTS else text
